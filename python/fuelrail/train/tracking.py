"""Metrics for experiment trackers: TensorBoard, MLflow and Weights & Biases, if they are installed.

Nothing leaves the machine unless configured: TensorBoard and W&B (offline) write to the run folder, MLflow to
MLFLOW_TRACKING_URI or the run folder. A tracker that fails is reported once and dropped; training continues.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """A tracker that receives metrics."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """The metrics of a step."""
        ...

    def close(self) -> None:
        """Closes it."""
        ...


class Trackers:
    """All trackers of a run."""

    def __init__(self, names: str | Iterable[str], run: Path | None, settings: Mapping[str, Any]) -> None:
        self._open: dict[str, Tracker] = {}
        if run is None:
            return
        for name in _chosen(names):
            self._try(name, lambda name=name: self._open.update({name: _KINDS[name][1](run, settings)}))  # type: ignore[misc]

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Sends the finite numbers among `figures` to all of them."""
        numbers = {
            name: float(value)
            for name, value in figures.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.write(step, numbers))  # type: ignore[misc]

    def close(self) -> None:
        """Closes all of them."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._open.pop(name, None)
            why = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"fuelrail train: {name} is left out: {why}; metrics.jsonl has everything", file=sys.stderr)


def _chosen(names: str | Iterable[str]) -> list[str]:
    """The selected trackers. Raises ValueError for one that is unknown or, if named, not installed."""
    if names == "auto":
        return [name for name, (module, _) in _KINDS.items() if find_spec(module) is not None]
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in _KINDS:
            raise ValueError(f"trackers: {name!r} is not known; there are {', '.join(_KINDS)}, and auto")
        if find_spec(_KINDS[name][0]) is None:
            raise ValueError(f"trackers: {name} is not installed (pip install {name})")
    return chosen


class _TensorBoard:
    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        # By name, so that types can be checked without these packages installed.
        self._writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("settings", _listed(settings))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # Its own default for a folder; newer versions ask for consent to use it.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run / "mlruns").absolute().as_uri()
        self._client: Any = import_module("mlflow").MlflowClient(tracking_uri=uri)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fuelrail")
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        self._run = self._client.create_run(place, run_name=run.name).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._run, name, value)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _WandB:
    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        if os.environ.get("WANDB_MODE", "offline") == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = import_module("wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fuelrail"),
            name=run.name,
            dir=str(run),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(settings),
            settings=wandb.Settings(silent=True),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


def _listed(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in settings.items())


_KINDS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": ("tensorboard", _TensorBoard),
    "mlflow": ("mlflow", _MLflow),
    "wandb": ("wandb", _WandB),
}
#: All names, for the command line.
NAMES = tuple(_KINDS)
