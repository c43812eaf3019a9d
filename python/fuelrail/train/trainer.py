"""The loop: batch, step, and between two steps everything else.

    recipe    settings as plain data; wrong ones are refused by name
    Trainer   owns model, optimizer, schedule and counters; reads loaders it is given and does not close them
    Step      one batch in hand: `train()` for the usual body, or your own body that ends in `update(loss)`

A *step boundary* is the moment after a step's update and before the next batch is asked for. Only there are
checkpoints saved, signals obeyed and evaluation begun; the loader's token is read there too, so weights,
counters and data position always belong together.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint, precision
from .batches import BatchSource, LabelledBatch, lacking
from .checkpoint import Checkpoints
from .evaluation import Evaluation, evaluate
from .metrics import IdChain, Mean, MetricsLog, read_metrics
from .optim import OPTIMIZERS, build_optimizer, default_lr
from .progress import Pace, Progress
from .schedule import CosineSchedule


@dataclass(frozen=True)
class Recipe:
    """How to train: every setting of the loop, with its default.

    epochs            passes over the data
    steps_per_epoch   for streams, which have no length: steps that count as one epoch (of a bounded stream: about
                      as many as it has, for the learning rate)
    optimizer         "sgd" (Nesterov momentum) or "adamw"
    lr                peak learning rate; None: 0.1 (sgd) or 0.001 (adamw) for 256 rows, scaled to the batch
                      size
    momentum          SGD's momentum
    weight_decay      None: 0.0005 (sgd) or 0.05 (adamw); never applied to norms and biases
    warmup_epochs     epochs of linear warm-up before the cosine
    label_smoothing   share of the target spread over all classes, in [0, 1)
    precision         "auto" (bf16 where the hardware has it), "bf16", "fp32"
    channels_last     memory order of images and kernels; None: for bf16 and on GPUs
    save_every        steps between checkpoints inside an epoch; each epoch ends with one anyway
    keep              how many checkpoints stay (the best one stays beside them)
    log_every         steps per line of metrics.jsonl
    log_ids           write the sample indices of every step into metrics.jsonl
    """

    epochs: int = 10
    steps_per_epoch: int | None = None
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    precision: str = "auto"
    channels_last: bool | None = None
    save_every: int = 500
    keep: int = 3
    log_every: int = 10
    log_ids: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "save_every", "keep", "log_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        steps = self.steps_per_epoch
        _check("steps_per_epoch", steps, steps is None or steps >= 1, "at least 1")
        _check("lr", self.lr, self.lr is None or (math.isfinite(self.lr) and self.lr > 0), "above 0")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _check(
            "weight_decay",
            self.weight_decay,
            self.weight_decay is None or self.weight_decay >= 0,
            "0 or more",
        )
        _check("warmup_epochs", self.warmup_epochs, self.warmup_epochs >= 0, "0 or more")
        _check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        _check("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        requests = precision.REQUESTS
        _check("precision", self.precision, self.precision in requests, f"one of {', '.join(requests)}")


class Stopped(SystemExit):
    """SIGINT or SIGTERM ended the run at a step boundary, after a checkpoint; `code` is 128 + the signal's
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
    """One batch in hand, and what to do with it exactly once: `train()`, or `update(loss)` after your own
    forward.

    `images` (N, C, H, W) and `labels` (N,) are on the trainer's device and belong to the body of the loop:
    the step lets go of them afterwards. `number` counts the run's
    steps from 1.
    """

    def __init__(
        self, trainer: Trainer, number: int, epoch: int, images: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.images = images
        self.labels = labels
        self.rows = len(labels)
        self.lr = 0.0
        self._trainer = trainer
        self._updated = False

    def train(self) -> torch.Tensor:
        """The usual body: forward, cross entropy with label smoothing, update; returns the loss."""
        trainer = self._trainer
        with trainer.autocast():
            logits = trainer.model(self.images)
            loss = F.cross_entropy(logits, self.labels, label_smoothing=trainer.recipe.label_smoothing)
        return self.update(loss)

    def update(self, loss: torch.Tensor) -> torch.Tensor:
        """Backward from `loss` (a scalar, the mean over the rows), one optimizer step, gradients cleared.

        Returns `loss`. Raises RuntimeError when this step was updated before.
        """
        if self._updated:
            raise RuntimeError(
                f"step {self.number} was updated twice; each step of `steps()` takes one update"
            )
        self._updated = True
        self._trainer._update(loss, self.rows)
        return loss

    def _finish(self) -> None:
        if not self._updated:
            raise RuntimeError(
                f"step {self.number} was not trained on: the body of `for step in trainer.steps()` "
                "must call step.train() or step.update(loss)"
            )
        # The loop variable of the caller lives on until the next step; the batch must not.
        del self.images, self.labels


class Trainer:
    """Trains `model` on the batches of `train_loader`; see the module's text for the guarantees.

    `val_loader` is evaluated after every epoch. With `out`, metrics and checkpoints go to that folder;
    `resume=True` continues from its newest readable checkpoint, or starts where there is none. `optimizer`
    replaces the recipe's. `describe` is recorded in the metrics and in every checkpoint; a resume must bring
    the same `describe["model"]` where both have one. The model is moved to `device` (default: the GPU when
    there is one, else the CPU).

    Raises ValueError when `out` holds a run and `resume` is off, or when a checkpoint does not fit; TypeError when
    `train_loader` is no `BatchSource`.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: BatchSource,
        val_loader: Iterable[LabelledBatch] | None = None,
        recipe: Recipe | None = None,
        *,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        device: str | torch.device | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        describe: dict[str, Any] | None = None,
        stream: TextIO | None = None,
    ) -> None:
        if missing := lacking(train_loader):
            raise TypeError(
                f"train_loader, a {type(train_loader).__name__}, has no {', '.join(missing)}: use "
                "fuelrail.torch.Loader, or give yours the parts of a fuelrail.train.BatchSource"
            )
        self.recipe = recipe or Recipe()
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.describe = describe or {}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = precision.choose(self.recipe.precision, self.device)
        self.channels_last = self._wants_channels_last(model)
        self.model = model.to(self.device)
        if self.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = optimizer or self._recipe_optimizer()
        self.schedule = CosineSchedule(
            self.recipe.epochs, min(self.recipe.warmup_epochs, self.recipe.epochs / 2)
        )

        self.steps_per_epoch = _steps_per_epoch(train_loader, self.recipe)
        if self.steps_per_epoch == 0:
            raise ValueError(
                "train_loader has no batch in an epoch: fewer images than batch_size with drop_last?"
            )
        self.step = 0
        self.epoch = train_loader.epoch
        self.history: list[dict[str, Any]] = []
        self.best: float | None = None
        self.total_pace = Pace()
        self._done = 0.0  # steps of this epoch behind us; a fraction after a resume with another batch size
        self._ids = IdChain()
        self._window, self._epoch_loss = Mean(), Mean()
        self._window_pace, self._epoch_pace = Pace(), Pace()
        self._last_loss: float | None = None
        self._token: dict[str, Any] = train_loader.state_dict()
        self._random: dict[str, Any] | None = None
        self._current: Step | None = None
        self._signal: int | None = None
        self._waiting = False

        self.out = Path(out) if out is not None else None
        self._checkpoints = Checkpoints(self.out, self.recipe.keep) if self.out else None
        self._metrics: MetricsLog | None = None
        self.progress = Progress(self.recipe.epochs, stream)
        if self.out and self._checkpoints:
            self._open_run(self.out, self._checkpoints, resume)

    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end of the recipe; returns one record per epoch, those before a resume too."""
        for step in self.steps():
            step.train()
        return self.history

    def steps(self) -> Iterator[Step]:
        """The steps still to do; the body of the loop calls `step.train()`, or computes a loss and
        `step.update(loss)`.

        Evaluation, metrics, checkpoints and signals are taken care of between the steps. Batches without rows
        (a rank can have one in the tail of an epoch) advance the counters and are not handed out. On SIGINT
        or SIGTERM it saves and raises `Stopped`; a second signal kills at once. When the loader raises, the
        last step boundary is saved before the error goes on.
        """
        if self._random is not None:
            checkpoint.restore_random_states(self._random)
            self._random = None
        self._log("run", recipe=asdict(self.recipe), precision=self.precision.name, **self.describe)
        self.model.train()
        with self._listening():
            try:
                for epoch in range(self.epoch, self.recipe.epochs):
                    yield from self._epoch_steps(epoch)
                    self._end_of_epoch()
            finally:
                self.progress.clear()
        self._log("end", epochs=self.epoch, ids=self._ids.state)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context for forward passes of a body of your own: the recipe's precision."""
        return self.precision.autocast()

    def save(self) -> Path | None:
        """Saves a checkpoint of the last step boundary; returns its path, or None without a run folder."""
        return self._save(best=False)

    def _epoch_steps(self, epoch: int) -> Iterator[Step]:
        total = self.steps_per_epoch
        # Of a stream without an end this goes on where the last epoch stopped.
        batches = iter(self.train_loader)
        while not (self.train_loader.endless and self._done >= total):
            began = time.perf_counter()
            batch = self._next(batches)
            if batch is None:
                return
            waited = time.perf_counter() - began
            images, labels = batch
            rows = len(labels)
            if rows:
                step = self._hand_out(epoch, images, labels, total)
                yield step
                step._finish()
                self._current = None
            self._ids.add(indices := torch.as_tensor(batch["index"]).tolist())
            # While we wait for the next batch nobody here holds the last one's slot: the daemon may fill it.
            del batch, images, labels
            self.step += 1
            self._done += 1
            if self.recipe.log_ids:
                self._log("ids", epoch=epoch, ids=indices)
            self._boundary(epoch, total, Pace(rows, time.perf_counter() - began, waited))

    def _hand_out(self, epoch: int, images: torch.Tensor, labels: torch.Tensor, total: int) -> Step:
        images, labels = images.to(self.device), labels.to(self.device)
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        step = Step(self, self.step + 1, epoch, images, labels)
        step.lr = self.schedule.apply(self.optimizer, CosineSchedule.middle(epoch, self._done, total))
        self._current = step
        return step

    def _update(self, loss: torch.Tensor, rows: int) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._window.add(loss, rows)
        self._epoch_loss.add(loss, rows)

    def _boundary(self, epoch: int, total: int, pace: Pace) -> None:
        """After a step: its figures, the token that belongs to it, a due checkpoint, signals."""
        self._token = self.train_loader.state_dict()
        for kept in (self._window_pace, self._epoch_pace, self.total_pace):
            kept.add(pace.images, pace.seconds, pace.waited)
        if self.step % self.recipe.log_every == 0:
            self._log_window(epoch)
        self.progress.step(epoch, int(self._done), total, self._last_loss, self._lr(), self._epoch_pace)
        if self.step % self.recipe.save_every == 0:
            self._save(best=False)
        self._obey_signal()

    def _log_window(self, epoch: int) -> None:
        # Reading the loss waits for the accelerator, which is why it is done here and not in every step.
        if self._window.rows:
            self._last_loss = self._finite_loss()
        self._log(
            "step",
            epoch=epoch,
            loss=self._last_loss,
            lr=self._lr(),
            images_per_s=round(self._window_pace.images_per_s, 1),
            data_wait=round(self._window_pace.data_wait, 4),
            ids=self._ids.state,
        )
        self._window, self._window_pace = Mean(), Pace()

    def _finite_loss(self) -> float:
        loss = self._window.value
        if self._window.rows and not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} by step {self.step} (lr {self._lr():.3g}): "
                "lower lr, lengthen warmup_epochs, or try precision='fp32'"
            )
        return loss

    def _end_of_epoch(self) -> None:
        found = self._evaluate()
        # Only now: a stop during evaluation must save the boundary before it, so that a resume evaluates
        # again.
        self._token = self.train_loader.state_dict()
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "train_loss": self._epoch_loss.value,
            "lr": self._lr(),
            "seconds": round(self._epoch_pace.seconds, 3),
            "images_per_s": round(self._epoch_pace.images_per_s, 1),
            "data_wait": round(self._epoch_pace.data_wait, 4),
        }
        if found is not None:
            record |= {
                "val_loss": found.loss,
                "val_top1": found.top1,
                "val_top5": found.top5,
                "val_rows": found.rows,
                "val_left_out": found.left_out,
            }
        self.history.append(record)
        self._log(**{"event": "epoch", **record})
        self.progress.line(self._epoch_line(record))
        improved = found is not None and found.rows > 0 and (self.best is None or found.top1 > self.best)
        if found is not None and improved:
            self.best = found.top1
        self.epoch += 1
        self._done = 0.0
        self._epoch_loss, self._epoch_pace = Mean(), Pace()
        self._save(best=improved)
        self._obey_signal()

    def _evaluate(self) -> Evaluation | None:
        if self.val_loader is None:
            return None
        try:
            # Evaluation changes nothing that is saved: a signal may end it anywhere, a resume does it again.
            self._waiting = True
            self._obey_signal()
            return evaluate(self.model, self.val_loader, precision=self.precision, device=self.device)
        finally:
            self._waiting = False

    def _next(self, batches: Iterator[LabelledBatch]) -> LabelledBatch | None:
        """The next batch, or None at the end of the epoch."""
        try:
            # While we wait, a signal may end the wait: the token in hand is still that of the last step
            # boundary.
            self._waiting = True
            self._obey_signal()
            return next(batches, None)
        except Exception:
            # The run is whole up to the last boundary whatever happened to the data; do not lose it with the
            # error.
            self._save(best=False)
            raise
        finally:
            self._waiting = False

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM are noted for the next boundary while inside (only in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.signal(signum, self._on_signal) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._signal = signum
        for each in _SIGNALS:
            # From now on the system's own behaviour: a second ctrl-C ends the process at once, whatever it is
            # doing.
            signal.signal(each, signal.SIG_DFL)
        if self._waiting:
            self._obey_signal()

    def _obey_signal(self) -> None:
        if self._signal is not None:
            signum, self._signal, self._waiting = self._signal, None, False
            raise Stopped(signum, self.step, self._save(best=False))

    def _save(self, *, best: bool) -> Path | None:
        # Before the first step there is nothing to keep; inside one, weights and token are of two moments.
        if self._checkpoints is None or self._current is not None or self.step == 0:
            return None
        self._finite_loss()
        path = self._checkpoints.save(self._state(), self.step, best=best)
        self.train_loader.checkpoint_saved(self._token)
        return path

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": asdict(self.schedule),
            "random": checkpoint.random_states(),
            "loader": self._token,
            "step": self.step,
            "epoch": self.epoch,
            "done": self._done,
            "steps_per_epoch": self.steps_per_epoch,
            "ids": self._ids.state,
            "sums": {
                "window": (self._window.total, self._window.rows),
                "epoch": (self._epoch_loss.total, self._epoch_loss.rows),
                "epoch_pace": (self._epoch_pace.images, self._epoch_pace.seconds, self._epoch_pace.waited),
                "last_loss": self._last_loss,
            },
            "history": self.history,
            "best": self.best,
            "recipe": asdict(self.recipe),
            "describe": self.describe,
            "classes": list(self.train_loader.classes),
        }

    def _open_run(self, out: Path, checkpoints: Checkpoints, resume: bool) -> None:
        metrics = out / "metrics.jsonl"
        if not resume:
            if checkpoints.paths() or (
                metrics.exists() and any(line["step"] for line in read_metrics(metrics))
            ):
                raise ValueError(
                    f"{out} already holds a run: resume it (--resume, resume=True) or name another folder"
                )
            metrics.unlink(missing_ok=True)
        found = checkpoints.newest() if resume else None
        if found is not None:
            path, state = found
            try:
                self._load(state)
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"{path} does not fit this run: {_short(error)}") from error
        self._metrics = MetricsLog(metrics)
        if resume:
            dropped = self._metrics.rewind(self.step)
            self._log("resume", epoch=self.epoch, dropped_lines=dropped)
            where = (
                f"{found[0].name}, step {self.step}, epoch {self.epoch + 1}" if found else "nothing saved yet"
            )
            self.progress.line(f"resuming {out}: {where}")

    def _load(self, state: dict[str, Any]) -> None:
        before, now = state["describe"].get("model"), self.describe.get("model")
        if before and now and before != now:
            raise ValueError(f"it was trained as {before}, this run says {now}")
        classes = list(self.train_loader.classes)
        if state["classes"] != classes:
            raise ValueError(f"its classes differ: {_difference(state['classes'], classes)}")
        self.model.load_state_dict(state["model"])
        settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            # Moments are the saved ones; rates and decay are what this run asks for.
            group.update(setting)
        self.train_loader.load_state_dict(state["loader"])
        self._token = state["loader"]
        self.step, self.epoch = state["step"], state["epoch"]
        if not self.train_loader.endless and self.train_loader.epoch != self.epoch:
            raise ValueError(
                f"its loader token is for epoch {self.train_loader.epoch}, its counters for {self.epoch}"
            )
        self._done = state["done"]
        if state["steps_per_epoch"] != self.steps_per_epoch:
            self._done *= self.steps_per_epoch / state["steps_per_epoch"]
        self._ids = IdChain(state["ids"])
        sums = state["sums"]
        self._window, self._epoch_loss = Mean(*sums["window"]), Mean(*sums["epoch"])
        self._epoch_pace = Pace(*sums["epoch_pace"])
        self._last_loss = sums["last_loss"]
        self.history, self.best = list(state["history"]), state["best"]
        # Put back when training begins: what the user does until then must not disturb the sequence.
        self._random = state["random"]

    def _recipe_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        return build_optimizer(
            recipe.optimizer,
            self.model,
            lr=recipe.lr
            if recipe.lr is not None
            else default_lr(recipe.optimizer, self.train_loader.batch_size),
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )

    def _wants_channels_last(self, model: nn.Module) -> bool:
        if self.recipe.channels_last is not None:
            return self.recipe.channels_last
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        return convolves and (self.precision.name == "bf16" or self.device.type == "cuda")

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _log(self, event: str, **fields: Any) -> None:
        if self._metrics is not None:
            self._metrics.write(event, self.step, **fields)

    def _epoch_line(self, record: dict[str, Any]) -> str:
        text = f"epoch {record['epoch'] + 1}/{self.recipe.epochs}  train loss {record['train_loss']:.3f}"
        if "val_top1" in record:
            text += f"  val loss {record['val_loss']:.3f}"
            text += f"  top-1 {record['val_top1']:.2%}  top-5 {record['val_top5']:.2%}"
        return f"{text}  {self._epoch_pace.text()}  {record['seconds']:.1f} s"


def _check(name: str, value: object, good: bool, need: str) -> None:
    if not good:
        raise ValueError(f"{name}={value!r}: must be {need}")


def _steps_per_epoch(loader: BatchSource, recipe: Recipe) -> int:
    try:
        steps = len(loader)
    except TypeError:
        if recipe.steps_per_epoch is None:
            raise ValueError(
                "train_loader is a stream and has no length: give Recipe(steps_per_epoch=N), the steps of one epoch"
            ) from None
        return recipe.steps_per_epoch
    if recipe.steps_per_epoch is not None:
        raise ValueError(
            f"steps_per_epoch={recipe.steps_per_epoch} is for streams: this train_loader has {steps} steps per epoch"
        )
    return steps


def _short(error: Exception) -> str:
    """The first lines of a message; torch lists every missing key of a foreign state on lines of its own."""
    text = error.args[0] if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in str(text).splitlines()]
    return " ".join(lines[:3])[:300] + (" …" if len(lines) > 3 else "")


def _difference(before: list[str], now: list[str]) -> str:
    missing, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    parts = [f"missing now: {', '.join(missing[:5])}"] if missing else []
    parts += [f"new: {', '.join(new[:5])}"] if new else []
    return "; ".join(parts) or "the same names in another order"


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
