"""From losses to new weights: backward, accumulation, unscaling, clipping, the optimizer, the moving average.

For several batches in a step, here and on other ranks, the gradient is that of one batch with all their rows: each mean
over rows is weighted by its number of rows. So a short tail counts in proportion to its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Updater:
    """Does everything between a loss and the next forward pass.

    `unit` is the number of rows in a full batch: losses are weighted by their share of it, which keeps them in range.
    `single` means that a step is one batch of one rank, whose loss is used unchanged.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        unit: int,
        ranks: int,
        single: bool,
        scaler: torch.amp.GradScaler | None,
        clip_norm: float | None,
        average: Average | None,
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self.scaler, self.average, self.clip_norm = scaler, average, clip_norm
        self._unit, self._ranks, self._single = unit, ranks, single
        #: The norm of the last gradients for which it was requested, before clipping.
        self.norm: torch.Tensor | None = None

    def backward(self, loss: torch.Tensor, rows: int) -> None:
        """Adds the gradients of `loss`, a mean over `rows` rows."""
        if not self._single:
            loss = loss * (rows / self._unit)
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def apply(self, rows: int, number: int, *, want_norm: bool) -> None:
        """Step `number`, of `rows` rows over all its batches and ranks: new weights, gradients cleared."""
        gradients = self._gradients()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        # Data parallelism has divided by the ranks already.
        if not self._single and (factor := self._unit * self._ranks / rows) != 1.0:
            torch._foreach_mul_(gradients, factor)
        if self.clip_norm is not None:
            self.norm = nn.utils.clip_grad_norm_(self._parameters(), self.clip_norm)
        elif want_norm:
            self.norm = norm(gradients)
        if self.scaler is not None:
            # Skips the update if a gradient is not finite, and lowers the scale.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.module, number)

    def drop(self) -> None:
        """Forgets the gradients of a step that will not be finished."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "ema": self.average.state() if self.average is not None else None,
        }

    def _parameters(self) -> list[torch.Tensor]:
        return [each for group in self.optimizer.param_groups for each in group["params"]]

    def _gradients(self) -> list[torch.Tensor]:
        return [each.grad for each in self._parameters() if each.grad is not None]


class Average:
    """An exponential moving average of weights and running statistics.

    The decay of step n is at most (1 + n) / (10 + n): the initial weights are soon forgotten, even in a short
    run.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._now = 0.0
        self._averaged = AveragedModel(module, multi_avg_fn=self._move, use_buffers=True)

    @property
    def module(self) -> nn.Module:
        """The model with the averaged weights."""
        module: nn.Module = self._averaged.module
        return module

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the weights after `step`."""
        self._now = min(self.decay, (1 + step) / (10 + step))
        self._averaged.update_parameters(module)

    def state(self) -> dict[str, Any]:
        """The averaged weights."""
        return self.module.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Restores averaged weights."""
        self.module.load_state_dict(state)
        self._averaged.n_averaged.fill_(1)

    def _move(self, averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], _count: Any) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1 - self._now)
        else:
            torch._foreach_copy_(list(averaged), list(current))


@torch.no_grad()
def norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients together, as one tensor; nothing waits for the accelerator."""
    if not gradients:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(each.float()) for each in gradients]
    return torch.stack(norms).square().sum().sqrt()
