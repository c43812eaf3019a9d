"""The learning rate as a pure function of how far the run is.

Progress is counted in epochs (a float), not in steps: a run resumed with another batch size stays on its
curve, and there is no state that could disagree with the step counter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up over `warmup_epochs`, then half a cosine down to `floor` times the peak at `epochs`."""

    epochs: float
    warmup_epochs: float = 0.0
    floor: float = 0.0

    def factor(self, progress: float) -> float:
        """What the peak learning rate is multiplied by at `progress` epochs; within [0, 1]."""
        if progress < self.warmup_epochs:
            return progress / self.warmup_epochs
        span = self.epochs - self.warmup_epochs
        done = min((progress - self.warmup_epochs) / span, 1.0) if span > 0 else 1.0
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    def apply(self, optimizer: torch.optim.Optimizer, progress: float) -> float:
        """Sets every group's `lr` to its `peak_lr` times the factor; returns the first group's new rate.

        A group without `peak_lr` (an optimizer the user brought) gets its present `lr` as its peak.
        """
        factor = self.factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
        return float(optimizer.param_groups[0]["lr"])

    @staticmethod
    def middle(epoch: int, step_in_epoch: float, steps_per_epoch: int) -> float:
        """Progress in the middle of a step (0-based): the first and the last step have a rate above 0."""
        return epoch + (step_in_epoch + 0.5) / max(steps_per_epoch, 1)
