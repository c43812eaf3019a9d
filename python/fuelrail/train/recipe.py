"""How to train, as plain data: every setting of the loop, its default, and its accepted values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import precision
from .optim import OPTIMIZERS
from .schedule import SCHEDULES


@dataclass(frozen=True)
class Recipe:
    """How to train: every setting of the loop, with its default. An invalid value raises an error that names it.

    epochs            passes over the data
    steps_per_epoch   for streams, which have no length: steps that count as one epoch (of a bounded stream: about
                      as many as it has, for the learning rate)
    accumulate        batches per step: their gradients are added up before the weights change, as if they were
                      one batch
    optimizer         "sgd" (Nesterov momentum) or "adamw"; pass others to the Trainer as an object
    lr                peak learning rate; None: 0.1 (sgd) or 0.001 (adamw) for 256 rows, scaled to the rows of a
                      step over all ranks
    momentum          SGD's momentum
    weight_decay      None: 0.0005 (sgd) or 0.05 (adamw); never applied to norms and biases
    schedule          "cosine" to zero, "step" (times `step_factor` every `step_epochs`), or "constant"
    step_epochs       epochs between drops of the "step" schedule
    step_factor       factor for the learning rate at each drop
    warmup_epochs     epochs of linear warm-up before the schedule
    clip_norm         maximum norm of all gradients together; larger ones are scaled down to it
    ema_decay         decay of a moving average of the weights, which is then used for evaluation and best.pt
    label_smoothing   share of the target spread over all classes, in [0, 1)
    precision         "auto" (bf16 if the hardware has it), "bf16", "fp16" (with loss scaling), "tf32", "fp32"
    channels_last     memory order of images and kernels; None: for 16-bit formats and on GPUs
    activation_checkpointing  keep the activations of about sqrt(blocks) segments and recompute the others: less
                      memory, more time, the same gradients
    compile           run the model through torch.compile
    best_by           the evaluation metric that selects best.pt, with "-" before it if lower is better
                      ("-loss")
    save_every        steps between checkpoints within an epoch; each epoch also ends with one
    keep              number of recent checkpoints to keep (the best is always kept)
    log_every         steps per line of metrics.jsonl
    log_ids           write the sample indices of every step into metrics.jsonl
    """

    epochs: int = 10
    steps_per_epoch: int | None = None
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str = "cosine"
    step_epochs: float = 30.0
    step_factor: float = 0.1
    warmup_epochs: float = 1.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    label_smoothing: float = 0.1
    precision: str = "auto"
    channels_last: bool | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    best_by: str = "top1"
    save_every: int = 500
    keep: int = 3
    log_every: int = 10
    log_ids: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "save_every", "keep", "log_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        steps = self.steps_per_epoch
        _check("steps_per_epoch", steps, steps is None or steps >= 1, "at least 1")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            _check(name, value, value is None or (math.isfinite(value) and value > 0), "above 0")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        decay = self.weight_decay
        _check("weight_decay", decay, decay is None or decay >= 0, "0 or more")
        _check("step_epochs", self.step_epochs, self.step_epochs > 0, "above 0")
        _check("step_factor", self.step_factor, 0 < self.step_factor <= 1, "in (0, 1]")
        _check("warmup_epochs", self.warmup_epochs, self.warmup_epochs >= 0, "0 or more")
        ema = self.ema_decay
        _check("ema_decay", ema, ema is None or 0 < ema < 1, "between 0 and 1, such as 0.999")
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", precision.REQUESTS),
        ):
            _check(name, getattr(self, name), getattr(self, name) in known, f"one of {', '.join(known)}")
        _check("best_by", self.best_by, bool(self.best_by.removeprefix("-")), "a figure's name")


#: Settings of which a change changes nothing that is learned.
HOUSEKEEPING = {"save_every", "keep", "log_every", "log_ids"}


def _check(name: str, value: object, good: bool, need: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r}: must be {need}")
