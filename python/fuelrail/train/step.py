"""One batch in the body of a training loop, and the exception for a signal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .batches import LabelledBatch

if TYPE_CHECKING:
    from .trainer import Trainer


class Stopped(SystemExit):
    """SIGINT, SIGTERM or SIGUSR1 ended the run at a step boundary, after a checkpoint; `code` is 128 + the signal's
    number.

    A SystemExit, so that a plain script ends with the exit status a shell expects and leaves its `with`
    blocks.
    """

    def __init__(self, signum: int, step: int, saved: Path | None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.step = step
        self.saved = saved

    def __str__(self) -> str:
        kept = f"; checkpoint {self.saved}" if self.saved else ""
        return f"stopped by {signal.Signals(self.signum).name} after step {self.step}{kept}"


class Step:
    """The current batch, to be used exactly once: `train()`, or `update(loss)` after your own forward pass.

    `images` (N, C, H, W) and `labels` (N,), or (N, classes) after a `batch_transform`, are on the trainer's device;
    `batch` is the loader's batch, with all of its fields. They belong to the body of the loop: the step releases them
    afterwards. `number` counts the run's steps from 1; with `Recipe(accumulate=k)` k batches have one number.
    """

    def __init__(
        self,
        trainer: Trainer,
        number: int,
        epoch: int,
        batch: LabelledBatch,
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.batch = batch
        self.images = images
        self.labels = labels
        self.rows = len(images)
        self.lr = 0.0
        self._trainer = trainer
        self._updated = False

    def train(self) -> torch.Tensor:
        """The default body: forward, cross entropy with label smoothing, update; returns the loss."""
        trainer = self._trainer
        with trainer.autocast():
            logits = trainer.model(self.images)
            loss = F.cross_entropy(logits, self.labels, label_smoothing=trainer.recipe.label_smoothing)
        return self.update(loss)

    def update(self, loss: torch.Tensor) -> torch.Tensor:
        """Backward from `loss` (a scalar, the mean over the rows); at the last batch of a step also the optimizer's
        step, and gradients cleared.

        Returns `loss`. Raises RuntimeError if `update` was already called for this batch.
        """
        if self._updated:
            raise RuntimeError(
                f"step {self.number} was updated twice; each step of `steps()` takes one update"
            )
        self._updated = True
        self._trainer._update(loss, self.rows)
        return loss

    def log(self, **figures: float | torch.Tensor) -> None:
        """Logs your own metrics to metrics.jsonl: the next line has their means, weighted by rows."""
        for name, value in figures.items():
            self._trainer._note(name, torch.as_tensor(value), self.rows)

    def _finish(self) -> None:
        if not self._updated:
            raise RuntimeError(
                f"step {self.number} was not trained on: the body of `for step in trainer.steps()` "
                "must call step.train() or step.update(loss)"
            )
        # The loop variable of the caller lives on until the next step; the batch must not.
        del self.images, self.labels, self.batch


def unpacked(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels of a batch; no labels if the source has none, as your own body may not need any."""
    if hasattr(batch, "keys") and "label" not in batch.keys():  # noqa: SIM118  (iterating gives values)
        images = batch[0]
        return images, torch.empty(len(images), 0)
    images, labels = batch
    return images, labels
