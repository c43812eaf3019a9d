"""The learning rate as a pure function of the run's progress.

Progress is counted in epochs (a float), not in steps: a run resumed with another batch size stays on its
curve, and there is no state that could disagree with the step counter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup_epochs`, then the peak to the end; the base of the other schedules."""

    epochs: float
    warmup_epochs: float = 0.0

    def factor(self, progress: float) -> float:
        """The factor for the peak learning rate at `progress` epochs; within [0, 1]."""
        if progress < self.warmup_epochs:
            return progress / self.warmup_epochs
        return self.after_warmup(progress)

    def after_warmup(self, progress: float) -> float:
        """The factor after the warm-up."""
        return 1.0

    def apply(self, optimizer: torch.optim.Optimizer, progress: float) -> float:
        """Sets every group's `lr` to its `peak_lr` times the factor; returns the first group's new rate.

        A group without `peak_lr` (from the user's optimizer) gets its current `lr` as its peak.
        """
        factor = self.factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
        return float(optimizer.param_groups[0]["lr"])

    @staticmethod
    def middle(epoch: int, step_in_epoch: float, steps_per_epoch: int) -> float:
        """Progress in the middle of a step (0-based): the first and the last step have a rate above 0."""
        return epoch + (step_in_epoch + 0.5) / max(steps_per_epoch, 1)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """After the warm-up half a cosine down to `floor` times the peak at `epochs`."""

    floor: float = 0.0

    def after_warmup(self, progress: float) -> float:
        """Falls slowly at the start and at the end."""
        span = self.epochs - self.warmup_epochs
        done = min((progress - self.warmup_epochs) / span, 1.0) if span > 0 else 1.0
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """After the warm-up the peak, times `step_factor` after every `step_epochs` of the run."""

    step_epochs: float = 30.0
    step_factor: float = 0.1

    def after_warmup(self, progress: float) -> float:
        """Drops at multiples of `step_epochs` from the start of the run."""
        return float(self.step_factor ** math.floor(progress / self.step_epochs))


#: The schedules that a recipe can name.
SCHEDULES = ("cosine", "step", "constant")


def build_schedule(
    name: str, epochs: float, warmup_epochs: float, *, step_epochs: float = 30.0, step_factor: float = 0.1
) -> Schedule:
    """The schedule of that name. The warm-up takes at most half of the run."""
    warmup = min(warmup_epochs, epochs / 2)
    if name == "step":
        return StepSchedule(epochs, warmup, step_epochs, step_factor)
    return CosineSchedule(epochs, warmup) if name == "cosine" else Schedule(epochs, warmup)
