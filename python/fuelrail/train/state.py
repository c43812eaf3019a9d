"""A trainer's state in a checkpoint: saving, restoring, and errors for mismatches.

Nothing in it depends on the clock: the checkpoint of a run that was killed and resumed is byte for byte that of an
uninterrupted one. Durations are in metrics.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from .metrics import IdChain, Mean
from .recipe import HOUSEKEEPING

if TYPE_CHECKING:
    from .trainer import Trainer


def capture(trainer: Trainer, *, alone: bool) -> dict[str, Any]:
    """The state at the last step boundary. Called on all ranks, unless the others are gone (`alone`)."""
    window, epoch = trainer._window, trainer._epoch_loss
    sums = [window.total, window.rows, epoch.total, epoch.rows]
    if not alone:
        sums = trainer.ranks.sum(sums)
    random, buffers = trainer._boundary_state()
    model = trainer.module.state_dict()
    model.update({name: value for name, value in buffers.items() if name in model})
    found: dict[str, Any] = _plain(
        {
            "model": model,
            **trainer._updater.state(),
            "schedule": asdict(trainer.schedule),
            "random": [random] if alone else trainer.ranks.gather(random),
            "loader": trainer._token,
            "step": trainer.step,
            "epoch": trainer.epoch,
            "done": trainer._done,
            "steps_per_epoch": trainer.steps_per_epoch,
            "ids": trainer._ids.state,
            "sums": {
                "window": (sums[0], int(sums[1])),
                "epoch": (sums[2], int(sums[3])),
                "last_loss": trainer._last_loss,
            },
            "best": trainer.best,
            "recipe": asdict(trainer.recipe),
            "describe": trainer.describe,
            "classes": list(trainer.train_loader.classes),
        }
    )
    return found


def restore(trainer: Trainer, state: dict[str, Any]) -> dict[str, list[Any]]:
    """Restores a state; returns the settings that differ from the saved run's, with old and new values.

    Raises ValueError, KeyError, RuntimeError or TypeError if it belongs to another run.
    """
    before, now = state["describe"].get("model"), trainer.describe.get("model")
    if before and now and before != now:
        raise ValueError(f"it was trained as {before}, this run says {now}")
    classes = list(trainer.train_loader.classes)
    if state["classes"] != classes:
        raise ValueError(f"its classes differ: {_other_classes(state['classes'], classes)}")
    if differs := difference(state["model"], trainer.module.state_dict()):
        raise ValueError(f"it is of another model: {differs}")
    trainer.module.load_state_dict(state["model"])
    _restore_updater(trainer, state)
    trainer.train_loader.load_state_dict(state["loader"])
    trainer._token = state["loader"]
    trainer.step, trainer.epoch = state["step"], state["epoch"]
    if not trainer.train_loader.endless and trainer.train_loader.epoch != trainer.epoch:
        raise ValueError(
            f"its loader token is for epoch {trainer.train_loader.epoch}, its counters for {trainer.epoch}"
        )
    trainer._done = state["done"]
    if state["steps_per_epoch"] != trainer.steps_per_epoch:
        trainer._done *= trainer.steps_per_epoch / state["steps_per_epoch"]
    trainer._ids = IdChain(state["ids"])
    sums = state["sums"]
    if trainer.ranks.rank == 0:
        # These are totals over all ranks.
        trainer._window, trainer._epoch_loss = Mean(*sums["window"]), Mean(*sums["epoch"])
    trainer._last_loss = sums["last_loss"]
    trainer.best = state["best"]
    # Restored when training starts: whatever the user does until then must not disturb the sequence.
    if trainer.ranks.rank < len(state["random"]):
        trainer._random = state["random"][trainer.ranks.rank]
    recipe = asdict(trainer.recipe)
    return {
        name: [state["recipe"].get(name), value]
        for name, value in recipe.items()
        if name not in HOUSEKEEPING and state["recipe"].get(name) != value
    }


def _restore_updater(trainer: Trainer, state: dict[str, Any]) -> None:
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in trainer.optimizer.param_groups
    ]
    trainer.optimizer.load_state_dict(state["optimizer"])
    for group, setting in zip(trainer.optimizer.param_groups, settings, strict=True):
        # Moments come from the checkpoint; rates and decay from this run's settings.
        group.update(setting)
    updater = trainer._updater
    if updater.scaler is not None and state["scaler"]:
        updater.scaler.load_state_dict(state["scaler"])
    if updater.average is not None:
        # A run that starts averaging now starts from the current weights.
        updater.average.load(state["ema"] or state["model"])


def difference(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> str:
    """How the weights of two models differ in names and shapes, in a sentence; empty when they fit."""
    parts = [
        f"{name} is {_shape(theirs[name])} there and {_shape(ours[name])} here"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    for what, names in (
        ("not in it", [name for name in ours if name not in theirs]),
        ("only in it", [name for name in theirs if name not in ours]),
    ):
        if names:
            parts.append(f"{what}: {_some(names)}")
    return "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more" if len(parts) > 4 else "")


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _other_classes(before: list[str], now: list[str]) -> str:
    missing, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    parts = [f"missing now: {', '.join(missing[:5])}"] if missing else []
    parts += [f"new: {', '.join(new[:5])}"] if new else []
    return "; ".join(parts) or "the same names in another order"


def _plain(value: Any) -> Any:
    """The same data without shared objects: pickle writes those once, and which objects are shared differs after a
    resume."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple([_plain(item) for item in value])
    return sys.intern(str(value)) if isinstance(value, str) else value
