"""The loop: batch, step, and everything else between steps.

    Recipe    settings as plain data (recipe.py)
    Trainer   owns model, optimizer, schedule and counters; reads the given loaders and does not close them
    Step      the current batch: `train()` for the default body, or your own body that ends in `update(loss)` (step.py)

A *step boundary* is the moment after a step's update and before the next batch is requested. Only there, checkpoints
are saved, signals handled and evaluations started. The loader's token is read there too, so weights, counters and data
position always match. All ranks reach each boundary together.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from torch import nn

from . import checkpoint, precision, state
from .activations import checkpoint_activations
from .batches import BatchSource, LabelledBatch, lacking
from .evaluation import Evaluation, evaluate, training_mode
from .feeding import Queues
from .history import versions
from .metrics import IdChain, Mean, MetricsLog, read_metrics
from .optim import OptimizerLike, build_optimizer, default_lr, taken_optimizer
from .progress import Pace, Progress
from .ranks import Ranks
from .recipe import Recipe
from .runfolder import RunFolder
from .schedule import Schedule, build_schedule
from .step import Step, Stopped, unpacked
from .tracking import Trackers
from .updating import Average, Updater

__all__ = ["Recipe", "Step", "Stopped", "Trainer"]

#: A user's metrics: called with the model in evaluation mode.
Evaluate = Callable[[nn.Module], Mapping[str, float]]
#: Maps images and labels to images and labels, (N,) or (N, classes); or `fuelrail.torch.MixUp` and similar.
BatchTransform = Callable[..., Any]


class Trainer:
    """Trains `model` on the batches of `train_loader`; see the module's documentation for the guarantees.

    `val_loader` is evaluated after every epoch, and so is `evaluate(model)`, which returns figures by name. With
    `out`, metrics and checkpoints go to that folder; `resume=True` continues from its latest readable checkpoint, or
    starts a new run if there is none. `optimizer` replaces the recipe's: an object, or a callable that takes parameter
    groups (`torch.optim.RMSprop`). `batch_transform(images, labels)` runs on the device before each step; it can be
    `fuelrail.torch.MixUp` or similar. `describe` is recorded in the metrics and in every checkpoint; a resume must have
    the same `describe["model"]` if both have one. `trackers` names further destinations for metrics: "tensorboard",
    "mlflow", "wandb", or "auto" for those that are installed. The model is moved to `device` (default: the GPU if there
    is one, else the CPU).

    In a process group (`torch.distributed.init_process_group`) all ranks train one model; each needs a loader with its
    own share (`rank=`, `world_size=`). Your own body calls `trainer.model`; `trainer.module` is the model itself.

    Raises ValueError if `out` holds a run and `resume` is off, or if a checkpoint does not match; TypeError if
    `train_loader` is not a `BatchSource`.
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
        optimizer: OptimizerLike | None = None,
        evaluate: Evaluate | None = None,
        batch_transform: BatchTransform | None = None,
        describe: dict[str, Any] | None = None,
        trackers: str | Iterable[str] = (),
        stream: TextIO | None = None,
    ) -> None:
        if missing := lacking(train_loader):
            raise TypeError(
                f"train_loader, a {type(train_loader).__name__}, has no {', '.join(missing)}: use "
                "fuelrail.torch.Loader, or give yours the parts of a fuelrail.train.BatchSource"
            )
        self.recipe = recipe or Recipe()
        self.train_loader, self.val_loader, self.evaluate = train_loader, val_loader, evaluate
        self.batch_transform = batch_transform
        self.describe = describe or {}
        self.ranks = Ranks.found()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = precision.choose(self.recipe.precision, self.device)
        self.precision.prepare()
        self._zeros: torch.Tensor
        self._take_model(model)
        self._take_optimizer(optimizer)
        self._batches_per_step = self.recipe.accumulate
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
        self._done = 0.0  # completed steps of this epoch; a fraction after a resume with another batch size
        self._ids = IdChain()
        self._window, self._epoch_loss = Mean(), Mean()
        self._own: dict[str, Mean] = {}
        self._window_pace, self._epoch_pace = Pace(), Pace()
        self._copying = _CopyWait(train_loader)
        self._queues = Queues(train_loader)
        self._last_loss: float | None = None
        self._token: dict[str, Any] = train_loader.state_dict()
        self._random: dict[str, Any] | None = None
        self._current: Step | None = None
        self._group: _Group | None = None
        self._signals = _Signals(patient=self.ranks.size > 1)
        self._agree()

        self.out = Path(out) if out is not None else None
        self._folder = RunFolder(self.out, self.recipe.keep) if self.out else None
        self._metrics: MetricsLog | None = None
        self._trackers = Trackers((), None, {})
        self.progress = Progress(self.recipe.epochs, stream, silent=self.ranks.rank > 0)
        if self._folder is not None:
            self._open_run(self._folder, resume, trackers)

    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end of the recipe; returns one record per epoch, including those before a resume."""
        for step in self.steps():
            step.train()
        return self.history

    def steps(self) -> Iterator[Step]:
        """The remaining steps; the body of the loop calls `step.train()`, or computes a loss and
        `step.update(loss)`.

        Evaluation, metrics, checkpoints and signals are handled between the steps. Batches without rows
        (a rank can have one in the tail of an epoch) advance the counters and are not yielded. On SIGINT,
        SIGTERM or SIGUSR1, it saves and raises `Stopped`; a second SIGINT or SIGTERM kills at once. If the loader
        raises, the last step boundary is saved before the error propagates.
        """
        if self._folder is not None and self.ranks.rank == 0:
            self._folder.hold()
        if self._random is not None:
            checkpoint.restore_random_states(self._random)
            self._random = None
        elif self.ranks.rank > 0:
            # Ranks start with the same weights, and drop out different activations.
            seed = (torch.initial_seed() + self.ranks.rank) % 2**63
            torch.manual_seed(seed)
            random.seed(seed)
        if self._metrics is not None:
            peak = self.optimizer.param_groups[0]
            self._log(
                "run",
                recipe=asdict(self.recipe),
                precision=self.precision.name,
                ranks=self.ranks.size,
                peak_lr=peak.get("peak_lr", peak["lr"]),
                versions=versions(self._token, _device_name(self.device)),
                **self.describe,
            )
        training_mode(self.module)
        try:
            with self._signals.noted():
                for epoch in range(self.epoch, self.recipe.epochs):
                    yield from self._epoch_steps(epoch)
                    self._end_of_epoch()
            self._log("end", epochs=self.epoch, ids=self._ids.state)
        finally:
            self.progress.clear()
            self._trackers.close()
            if self._folder is not None:
                self._folder.release()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context for forward passes in your own body: the recipe's precision."""
        return self.precision.autocast()

    def save(self) -> Path | None:
        """Saves a checkpoint of the last step boundary; returns its path, or None without a run folder. Must be
        called on all ranks together."""
        return self._save(best=False)

    @property
    def averaged(self) -> nn.Module:
        """The model used for evaluation: with `ema_decay`, the one with averaged weights."""
        average = self._updater.average
        return self.module if average is None else average.module

    # One step ---------------------------------------------------------------------------------------------

    def _epoch_steps(self, epoch: int) -> Iterator[Step]:
        # For an endless stream, this continues where the last epoch stopped.
        batches = iter(self.train_loader)
        ended = False
        while not ended and not (self.train_loader.endless and self._done >= self.steps_per_epoch):
            self._group = group = _Group(self._snapshot())
            while not group.last and not ended:
                began = time.perf_counter()
                turn = self._turn(batches)
                if turn is None:
                    ended = True
                    break
                group.take(turn, self._batches_per_step)
                with self._unsynchronised(not group.last):
                    if turn.mine:
                        yield self._hand_out(epoch, turn)
                        self._put_away()
                    elif turn.rows:
                        self._stand_in()
                # While waiting for the next batch, nothing here holds the last one's slot, so the daemon may fill it.
                turn.batch = None
                group.seconds += time.perf_counter() - began
            if group.batches == 0:
                break
            if not group.last and group.rows:
                self._average_gradients()
                self._apply(group)
            self._group = None
            self._boundary(epoch, group)
        self._group = None

    def _turn(self, batches: Iterator[LabelledBatch]) -> _Turn | None:
        """The next batch of this rank, and the other ranks' row counts; None at the end of the epoch."""
        began = time.perf_counter()
        batch, error = self._next(batches)
        waited = time.perf_counter() - began
        ids = [] if batch is None else torch.as_tensor(batch["index"]).tolist()
        what = _FAILED if error else (_ENDED if batch is None else _READY)
        said = [what, len(ids), round(waited * 1e6), self._signals.pending or 0]
        if self.ranks.size > 1:
            said += ids + [-1] * (self.train_loader.batch_size - len(ids))
        try:
            heard = self.ranks.share(said)
        except RuntimeError as gone:
            self._save(best=False, alone=True)
            raise RuntimeError(
                f"rank {self.ranks.rank} lost another rank after step {self.step}; its own message says why"
            ) from (error or gone)
        if error is not None:
            # The run is complete up to the last boundary, whatever happened to the data; do not lose it with the error.
            self._save(best=False)
            raise error
        if failed := [rank for rank, each in enumerate(heard) if each[0] == _FAILED]:
            self._save(best=False)
            raise RuntimeError(f"rank {failed[0]} failed after step {self.step}; its own message says why")
        if signum := max(each[3] for each in heard):
            self._stop(signum)
        if batch is None or any(each[0] == _ENDED for each in heard):
            self._check_ends(heard)
            return None
        if self.ranks.size > 1:
            each_rank = [each[4 : 4 + each[1]] for each in heard]
            self._check_shares(each_rank)
            # Row j of a global batch is row j // ranks of rank j mod ranks.
            ids = [id for row in itertools.zip_longest(*each_rank) for id in row if id is not None]
        return _Turn(
            batch, said[1], sum(each[1] for each in heard), ids, max(each[2] for each in heard) / 1e6
        )

    def _next(self, batches: Iterator[LabelledBatch]) -> tuple[LabelledBatch | None, Exception | None]:
        """The next batch, or None at the end of the epoch or if a signal ended the wait; or the loader's error."""
        try:
            # A signal may end the wait: the current token is still that of the last step boundary.
            with self._signals.interrupting():
                return next(batches, None), None
        except _Interrupted:
            return None, None
        except Exception as error:
            return None, error

    def _hand_out(self, epoch: int, turn: _Turn) -> Step:
        assert turn.batch is not None and self._group is not None
        images, labels = unpacked(turn.batch)
        began = time.perf_counter()
        if images.device != self.device:
            images, labels = images.to(self.device), labels.to(self.device)
            self._group.copied += time.perf_counter() - began
        if self.batch_transform is not None:
            images, labels = self._transformed(turn.batch, epoch, images, labels)
        if self.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.ranks.size > 1 and self._zeros.shape[1:] != images.shape[1:]:
            self._zeros = torch.zeros(1, *images.shape[1:], device=self.device)
        step = Step(self, self.step + 1, epoch, turn.batch, images, labels)
        middle = Schedule.middle(epoch, self._done, self.steps_per_epoch)
        step.lr = self.schedule.apply(self.optimizer, middle)
        self._current = step
        return step

    def _transformed(
        self, batch: Any, epoch: int, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Applies the batch transform; fuelrail's own are seeded by the position in the run, so that a resume is the
        same."""
        transform: Any = self.batch_transform
        if not hasattr(transform, "mixed"):
            images, labels = transform(images, labels)
            return images, labels
        positions = batch["position"]
        images, labels = transform.mixed(images, labels, epoch=epoch, position=int(positions[0]))
        return images, labels

    def _put_away(self) -> None:
        assert self._current is not None
        self._current._finish()
        self._current = None

    def _update(self, loss: torch.Tensor, rows: int) -> None:
        group = self._group
        assert group is not None
        self._updater.backward(loss, rows)
        group.losses.append((loss.detach(), rows))
        if group.last:
            self._apply(group)

    def _apply(self, group: _Group) -> None:
        number = self.step + 1
        self._updater.apply(group.rows, number, want_norm=number % self.recipe.log_every == 0)

    def _stand_in(self) -> None:
        """Takes part in the others' step if this rank has no rows: zero gradients, and no statistics."""
        self.schedule.apply(self.optimizer, Schedule.middle(self.epoch, self._done, self.steps_per_epoch))
        self.module.eval()
        try:
            with self.autocast():
                loss = self.model(self._zeros).sum() * 0.0
        finally:
            training_mode(self.module)
        self._update(loss, 0)

    def _unsynchronised(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients of all but the last batch of a step are not synchronised."""
        if wanted and isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _average_gradients(self) -> None:
        """Does what DistributedDataParallel would have done, for a step whose last batch did not arrive."""
        if self.ranks.size > 1:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.ranks.size

    # Between steps ----------------------------------------------------------------------------------------

    def _boundary(self, epoch: int, group: _Group) -> None:
        """After a step: its metrics, its token, a due checkpoint, signals."""
        for loss, rows in group.losses:
            self._window.add(loss, rows)
            self._epoch_loss.add(loss, rows)
        self._ids.add(group.ids)
        self.step += 1
        self._done += 1
        self._token = self.train_loader.state_dict()
        if self.recipe.log_ids:
            self._log("ids", epoch=epoch, ids=group.ids)
        for kept in (self._window_pace, self._epoch_pace, self.total_pace):
            kept.add(group.rows, group.seconds, group.waited, group.copied)
        if self.step % self.recipe.log_every == 0:
            self._log_window(epoch)
        done, total = int(self._done), self.steps_per_epoch
        self.progress.step(epoch, done, total, self._last_loss, self._lr(), self._epoch_pace)
        if self.step % self.recipe.save_every == 0:
            self._save(best=False)
        self._obey_signal()

    def _log_window(self, epoch: int) -> None:
        # Reading the loss waits for the accelerator, which is why it is done here and not in every step.
        loss = self._finite_loss(*self.ranks.sum([self._window.total, self._window.rows]))
        self._last_loss = loss if loss is not None else self._last_loss
        copied = self._copying.since_last()
        for kept in (self._window_pace, self._epoch_pace, self.total_pace):
            kept.copied += copied
        own = {name: mean.state for name, mean in self._own.items()}
        figures: dict[str, Any] = {
            "loss": self._last_loss,
            "lr": self._lr(),
            "gradient_norm": None if self._updater.norm is None else float(self._updater.norm),
            **self._window_pace.figures(),
            **self._queues.since_last(),
            **_means(self.ranks.gather(own)),
        }
        if self._updater.scaler is not None:
            figures["loss_scale"] = self._updater.scaler.get_scale()
        self._log("step", epoch=epoch, **figures, ids=self._ids.state)
        self._trackers.write(self.step, figures)
        self._window, self._window_pace, self._own = Mean(), Pace(), {}

    def _note(self, name: str, value: torch.Tensor, rows: int) -> None:
        self._own.setdefault(name, Mean()).add(value, rows)

    def _finite_loss(self, total: float, rows: float) -> float | None:
        loss = total / rows if rows else None
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} by step {self.step} (lr {self._lr():.3g}): "
                "lower lr, lengthen warmup_epochs, or try precision='fp32'"
            )
        return loss

    def _end_of_epoch(self) -> None:
        found = self._evaluate()
        # Only now, because a stop during evaluation must save the boundary before it, so that a resume evaluates again.
        self._token = self.train_loader.state_dict()
        total, rows = self.ranks.sum([self._epoch_loss.total, self._epoch_loss.rows])
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "train_loss": total / rows if rows else None,
            "lr": self._lr(),
            "seconds": round(self._epoch_pace.seconds, 3),
            **self._epoch_pace.figures(),
            **{f"val_{name}": value for name, value in found.items()},
        }
        self.history.append(record)
        self._log(**{"event": "epoch", **record})
        self._trackers.write(self.step, {f"epoch_{name}": value for name, value in record.items()})
        self.progress.line(self._epoch_line(record))
        improved = self._improved(found)
        self.epoch += 1
        self._done = 0.0
        self._epoch_loss, self._epoch_pace = Mean(), Pace()
        self._save(best=improved)
        self._obey_signal()

    def _improved(self, found: dict[str, Any]) -> bool:
        """Whether these results are the best so far; if so, records them."""
        name = self.recipe.best_by.removeprefix("-")
        if found and name not in found:
            if not self.history[:-1]:
                self.progress.line(
                    f"best.pt is not written: the evaluation has no figure {name!r} (it has {', '.join(found)}); "
                    "name one by best_by"
                )
            return False
        value = found.get(name)
        if value is None or not math.isfinite(value):
            return False
        sign = -1 if self.recipe.best_by.startswith("-") else 1
        better = self.best is None or sign * value > sign * self.best
        self.best = value if better else self.best
        return better

    def _evaluate(self) -> dict[str, Any]:
        if self.val_loader is None and self.evaluate is None:
            return {}
        # A checkpoint has rank 0's running statistics.
        self._broadcast_buffers()
        model = self.averaged
        figures: dict[str, Any] = {}
        # Evaluation changes nothing that is saved: a signal may end it anywhere, and a resume repeats it. Several ranks
        # have to leave it together.
        alone = self.ranks.size == 1
        try:
            with self._signals.interrupting() if alone else contextlib.nullcontext():
                if self.val_loader is not None:
                    found = evaluate(
                        model,
                        self.val_loader,
                        precision=self.precision,
                        device=self.device,
                        ranks=self.ranks,
                    )
                    figures |= asdict(found)
                if self.evaluate is not None:
                    figures |= _own_figures(model, self.evaluate)
        except _Interrupted:
            self._stop(self._signals.pending or signal.SIGTERM)
        training_mode(self.module)
        return figures

    def _broadcast_buffers(self) -> None:
        if self.ranks.size > 1:
            for model in {self.module, self.averaged}:
                for buffer in model.buffers():
                    torch.distributed.broadcast(buffer, 0)

    # Signals and checkpoints ------------------------------------------------------------------------------

    def _obey_signal(self) -> None:
        # Several ranks agree on where to stop before the next batch.
        if self._signals.pending is not None and self.ranks.size == 1:
            self._stop(self._signals.pending)

    def _stop(self, signum: int) -> None:
        saved = self._save(best=False)
        # A launcher ends the other ranks as soon as one has ended.
        self.ranks.wait()
        raise Stopped(signum, self.step, saved)

    def _save(self, *, best: bool, alone: bool = False) -> Path | None:
        # Before the first step there is nothing to save; within a step, weights and token do not match.
        if self._folder is None or self._current is not None or self.step == 0:
            return None
        window = [self._window.total, self._window.rows]
        self._finite_loss(*(window if alone else self.ranks.sum(window)))
        found = state.capture(self, alone=alone)
        if self.ranks.rank > 0:
            return None
        path = self._folder.checkpoints.save(found, self.step, best=best)
        self._log("checkpoint", file=path.name, pace=self._epoch_pace.state)
        self.train_loader.checkpoint_saved(self._token)
        return path

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The state that a forward pass changes before the step is complete: random states and running statistics."""
        if self._batches_per_step == 1:
            return None
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return checkpoint.random_states(), buffers

    def _boundary_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Random states of the last step boundary, and those buffers that have changed since."""
        if self._group is not None and self._group.snapshot is not None and self._group.batches:
            return self._group.snapshot
        return checkpoint.random_states(), {}

    def _open_run(self, folder: RunFolder, resume: bool, trackers: str | Iterable[str]) -> None:
        def look() -> str | None:
            folder.hold()
            if not resume:
                folder.refuse_used()
            found = folder.checkpoints.newest() if resume else None
            return None if found is None else str(found[0])

        try:
            path = self.ranks.first(look)
            changed: dict[str, list[Any]] = {}
            if path is not None:
                try:
                    changed = state.restore(self, checkpoint.load(Path(path)))
                except (KeyError, RuntimeError, TypeError, ValueError) as error:
                    raise ValueError(f"{path} does not fit this run: {_short(error)}") from error
            if self.ranks.rank == 0:
                self._trackers = Trackers(trackers, folder.path, {**asdict(self.recipe), **self.describe})
        except BaseException:
            folder.release()
            raise
        if self.ranks.rank > 0:
            return
        self._metrics = MetricsLog(folder.metrics)
        if resume:
            dropped = self._metrics.rewind(self.step, self.epoch)
            self._take_history(read_metrics(folder.metrics))
            self._log("resume", epoch=self.epoch, dropped_lines=dropped, changed=changed)
            where = "nothing saved yet"
            if path is not None:
                where = f"{Path(path).name}, step {self.step}, epoch {self.epoch + 1}"
            self.progress.line(f"resuming {folder.path}: {where}")
            if changed:
                said = ", ".join(
                    f"{name} {_worded(was)} -> {_worded(now)}" for name, (was, now) in changed.items()
                )
                self.progress.line(f"settings differ from the run's: {said}")

    def _take_history(self, records: list[dict[str, Any]]) -> None:
        """Timing, which is not in checkpoints."""
        for record in records:
            if record["event"] == "epoch":
                kept = {
                    name: value for name, value in record.items() if name not in ("event", "step", "time")
                }
                self.history.append(kept)
            elif record["event"] == "checkpoint" and record["step"] == self.step and self._done:
                self._epoch_pace = Pace(*record["pace"])

    # Construction -----------------------------------------------------------------------------------------

    def _take_model(self, model: nn.Module) -> None:
        self.channels_last = self._wants_channels_last(model)
        self.module = model.to(self.device)
        if self.channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)
        if self.recipe.activation_checkpointing:
            checkpoint_activations(self.module)
        self._parallel: nn.Module = self.module
        if self.ranks.size > 1:
            on = [self.device] if self.device.type == "cuda" else None
            self._parallel = nn.parallel.DistributedDataParallel(self.module, device_ids=on)
        self.model: Any = torch.compile(self._parallel) if self.recipe.compile else self._parallel
        # The model's input on a rank without rows; with the images' shape once known.
        shape = tuple(getattr(self.train_loader, "shape", ())) or (3, 32, 32)
        self._zeros = torch.zeros(1, *shape, device=self.device)

    def _take_optimizer(self, optimizer: OptimizerLike | None) -> None:
        recipe = self.recipe
        unit = self.train_loader.batch_size
        rows = unit * self.ranks.size * recipe.accumulate
        if optimizer is None:
            self.optimizer = build_optimizer(
                recipe.optimizer,
                self.module,
                lr=recipe.lr if recipe.lr is not None else default_lr(recipe.optimizer, rows),
                weight_decay=recipe.weight_decay,
                momentum=recipe.momentum,
            )
        else:
            self.optimizer = taken_optimizer(optimizer, self.module, recipe.lr, recipe.weight_decay)
        self.schedule = build_schedule(
            recipe.schedule,
            recipe.epochs,
            recipe.warmup_epochs,
            step_epochs=recipe.step_epochs,
            step_factor=recipe.step_factor,
        )
        self._updater = Updater(
            self.module,
            self.optimizer,
            unit=unit,
            ranks=self.ranks.size,
            single=self.ranks.size == 1 and recipe.accumulate == 1,
            scaler=self.precision.scaler(),
            clip_norm=recipe.clip_norm,
            average=None if recipe.ema_decay is None else Average(self.module, recipe.ema_decay),
        )

    def _wants_channels_last(self, model: nn.Module) -> bool:
        if self.recipe.channels_last is not None:
            return self.recipe.channels_last
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        return convolves and (self.precision.half or self.device.type == "cuda")

    # Ranks ------------------------------------------------------------------------------------------------

    def _agree(self) -> None:
        """Raises ValueError if the ranks do not have the same run."""
        mine = {
            "batch_size": self.train_loader.batch_size,
            "steps per epoch": self.steps_per_epoch,
            "classes": list(self.train_loader.classes),
            **{f"recipe.{name}": value for name, value in asdict(self.recipe).items()},
            **{f"loader.{name}": value for name, value in _leaves(self._token)},
        }
        said = self.ranks.gather(mine)
        for rank, theirs in enumerate(said):
            for name in {**said[0], **theirs}:
                if (first := said[0].get(name)) != (other := theirs.get(name)):
                    raise ValueError(
                        f"the ranks of this run differ in {name}: rank 0 has {first!r}, rank {rank} has {other!r}"
                    )

    def _check_shares(self, ids: list[list[int]]) -> None:
        """At the first step: detects ranks that read the same rows because their loaders do not know about the
        others."""
        if self.step == 0 and len(ids[0]) > 1:
            for rank, theirs in enumerate(ids[1:], 1):
                if theirs == ids[0]:
                    raise ValueError(
                        f"ranks 0 and {rank} read the same rows: give each Loader its share, "
                        "rank=torch.distributed.get_rank(), world_size=torch.distributed.get_world_size()"
                    )

    def _check_ends(self, heard: list[list[int]]) -> None:
        if len({each[0] for each in heard}) > 1:
            ended = [rank for rank, each in enumerate(heard) if each[0] == _ENDED]
            raise RuntimeError(
                f"the epoch ended after step {self.step} on rank {ended[0]} only: loaders of one run have one length"
            )

    # Output -----------------------------------------------------------------------------------------------

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _log(self, event: str, **fields: Any) -> None:
        if self._metrics is not None:
            self._metrics.write(event, self.step, **fields)

    def _epoch_line(self, record: dict[str, Any]) -> str:
        loss = record["train_loss"]
        text = f"epoch {record['epoch'] + 1}/{self.recipe.epochs}"
        text += "" if loss is None else f"  train loss {loss:.3f}"
        if self.val_loader is not None:
            text += f"  val loss {record['val_loss']:.3f}"
            text += f"  top-1 {record['val_top1']:.2%}  top-5 {record['val_top5']:.2%}"
        shown = {f"val_{each}" for each in Evaluation.__annotations__}
        for name, value in record.items():
            if name.startswith("val_") and name not in shown:
                text += f"  {name.removeprefix('val_')} {value:.4g}"
        return f"{text}  {self._epoch_pace.text()}  {record['seconds']:.1f} s"


@dataclass
class _Turn:
    """One batch of this rank, and the totals over all ranks."""

    batch: LabelledBatch | None
    mine: int  # rows here
    rows: int  # rows of all ranks
    ids: list[int]
    waited: float  # the longest wait of any rank, in seconds


@dataclass
class _Group:
    """The batches of one step so far."""

    snapshot: tuple[dict[str, Any], dict[str, torch.Tensor]] | None
    batches: int = 0
    rows: int = 0
    last: bool = False
    ids: list[int] = field(default_factory=list)
    losses: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0
    copied: float = 0.0

    def take(self, turn: _Turn, wanted: int) -> None:
        self.batches += 1
        self.rows += turn.rows
        self.last = self.batches == wanted
        self.ids += turn.ids
        self.waited += turn.waited


class _Interrupted(BaseException):
    """A signal came while waiting."""


class _Signals:
    """Signals are noted for the next step boundary; a wait may be interrupted by one.

    A second ctrl-C or SIGTERM has the default behaviour: it ends the process at once, whatever it is doing. A SIGUSR1,
    which Slurm sends some time before the limit, does not count as the first. `patient`: a launcher repeats the
    terminal's signal to its ranks, which does not count as a second one.
    """

    #: The same signal within this many seconds counts as one, as a launcher repeats it.
    REPEATED = 2.0

    def __init__(self, patient: bool) -> None:
        self.pending: int | None = None
        self._patient = patient
        self._waiting = False
        self._at = 0.0

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGUSR1 are noted while inside (only in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.signal(signum, self._came) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal that is pending or comes raises `_Interrupted`."""
        try:
            self._waiting = True
            if self.pending is not None:
                raise _Interrupted
            yield
        finally:
            self._waiting = False

    def _came(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.pending in _AT_ONCE and not (self._patient and now - self._at < self.REPEATED):
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.pending, self._at = signum, now
        if not self._patient and signum in _AT_ONCE:
            for each in _AT_ONCE:
                # Also if Python does not get to run a handler.
                signal.signal(each, signal.SIG_DFL)
        if self._waiting:
            self._waiting = False
            raise _Interrupted


class _CopyWait:
    """Seconds that a loader with its own device waited for copies to it, if it reports them."""

    def __init__(self, loader: Any) -> None:
        self._stats: Callable[[], Mapping[str, Any]] | None = getattr(loader, "stats", None)
        self._last = 0.0
        if self._stats is None or self._stats().get("copy_wait_s") is None:
            self._stats = None

    def since_last(self) -> float:
        """Since the last call."""
        if self._stats is None:
            return 0.0
        before, self._last = self._last, float(self._stats()["copy_wait_s"])
        return self._last - before


def _own_figures(model: nn.Module, evaluate: Evaluate) -> dict[str, float]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            found = evaluate(model)
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(found, Mapping):
        raise TypeError(
            f"evaluate= must return figures by name, like {{'recall': 0.9}}; it returned {type(found).__name__}"
        )
    return {str(name): float(value) for name, value in found.items()}


def _means(said: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    """Means over all ranks of their sums."""
    sums: dict[str, list[float]] = {}
    for each in said:
        for name, (total, rows) in each.items():
            kept = sums.setdefault(name, [0.0, 0.0])
            kept[0] += total
            kept[1] += rows
    return {name: total / rows for name, (total, rows) in sums.items() if rows}


def _leaves(token: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in token.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _steps_per_epoch(loader: BatchSource, recipe: Recipe) -> int:
    try:
        batches = len(loader)
    except TypeError:
        if recipe.steps_per_epoch is None:
            raise ValueError(
                "train_loader is a stream and has no length: give Recipe(steps_per_epoch=N), the steps of one epoch"
            ) from None
        return recipe.steps_per_epoch
    steps = -(-batches // recipe.accumulate)
    if recipe.steps_per_epoch is not None:
        raise ValueError(
            f"steps_per_epoch={recipe.steps_per_epoch} is for streams: this train_loader has {steps} steps per epoch"
        )
    return steps


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _worded(setting: object) -> str:
    return "default" if setting is None else str(setting)


def _short(error: Exception) -> str:
    """The first lines of a message; torch lists every missing key of a foreign state on lines of its own."""
    text = error.args[0] if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in str(text).splitlines()]
    return " ".join(lines[:3])[:400] + (" …" if len(lines) > 3 else "")


_READY, _ENDED, _FAILED = range(3)
#: A second one of these ends the process at once.
_AT_ONCE = (signal.SIGINT, signal.SIGTERM)
_SIGNALS = (*_AT_ONCE, signal.SIGUSR1)
