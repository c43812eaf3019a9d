"""A run's settings and results, read from its metrics.jsonl; and the versions that a run records there.

Does not import torch, so `fuelrail runs` responds at once.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .metrics import read_metrics

#: How many levels below a folder to search for runs.
DEPTH = 4


@dataclass(frozen=True)
class History:
    """One run folder. `settings` is flat: the recipe's and the training's arguments."""

    path: Path
    settings: dict[str, Any]
    versions: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    started: float | None
    last: float | None
    resumes: int
    ended: bool

    @classmethod
    def read(cls, folder: Path) -> History:
        """Raises ValueError if there is no run."""
        metrics = folder / "metrics.jsonl"
        if not metrics.is_file():
            raise ValueError(f"{folder}: there is no run here: it has no metrics.jsonl")
        lines = read_metrics(metrics)
        run: dict[str, Any] = next((line for line in reversed(lines) if line["event"] == "run"), {})
        told = {name: value for name, value in run.items() if name not in ("event", "step", "time")}
        recipe, versions = told.pop("recipe", {}), told.pop("versions", {})
        times = [line["time"] for line in lines if "time" in line]
        # If a finished run was resumed, its end record is not the last state.
        last = lines[-1]["event"] if lines else ""
        return cls(
            folder,
            {**recipe, **told},
            versions,
            [line for line in lines if line["event"] == "step"],
            [line for line in lines if line["event"] == "epoch"],
            times[0] if times else None,
            times[-1] if times else None,
            sum(line["event"] == "resume" and line["step"] > 0 for line in lines),
            last == "end",
        )

    @property
    def best(self) -> tuple[str, float, int] | None:
        """The metric that selected best.pt, its best value and that epoch (from 1); None without evaluation."""
        wanted = str(self.settings.get("best_by", "top1"))
        name, sign = wanted.removeprefix("-"), -1 if wanted.startswith("-") else 1
        found = [
            (line[f"val_{name}"], line["epoch"] + 1)
            for line in self.epochs
            if line.get(f"val_{name}") is not None
        ]
        if not found:
            return None
        value, epoch = max(found, key=lambda each: sign * each[0])
        return name, value, epoch

    def mean(self, name: str) -> float | None:
        """A metric's mean over the run, with epochs weighted by time; over the steps if no epoch has ended."""
        lines = [line for line in self.epochs if line.get(name) is not None]
        weights = [line.get("seconds") or 1.0 for line in lines]
        if not lines:
            lines = [line for line in self.steps if line.get(name) is not None]
            weights = [1.0] * len(lines)
        if not lines:
            return None
        total = sum(line[name] * weight for line, weight in zip(lines, weights, strict=True))
        return float(total / sum(weights))

    @property
    def seconds(self) -> float | None:
        """Time in finished epochs."""
        return sum(line.get("seconds") or 0.0 for line in self.epochs) if self.epochs else None

    @property
    def state(self) -> str:
        """The run's state, in words."""
        done, wanted = len(self.epochs), self.settings.get("epochs")
        told = f"{done}/{wanted} epochs" if wanted is not None else f"{done} epochs"
        return told if self.ended else f"{told}, not ended"


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders in a folder, or the folder itself if it is one; sorted by name."""
    if (folder / "metrics.jsonl").is_file():
        yield folder
        return
    for here, below, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        below[:] = sorted(each for each in below if not each.startswith(".")) if depth < DEPTH else []
        if "metrics.jsonl" in files:
            below.clear()
            yield Path(here)


def versions(token: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The versions used by a run: the data's fingerprint, the code's commit, the packages, the machine."""
    identity = token.get("identity")
    data = identity.get("dataset") if isinstance(identity, Mapping) else None
    return {
        "data": data,
        "code": _commit(),
        "fuelrail": _version("fuelrail"),
        "torch": _version("torch"),
        "python": platform.python_version(),
        "device": device,
        "machine": platform.node(),
    }


def _commit() -> str | None:
    """The commit of the running script, else of the current folder; "-dirty" if files differ from it."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    place = Path(script).resolve().parent if script else Path.cwd()
    if place.is_relative_to(Path(sys.prefix)) or place.is_relative_to(Path(__file__).parents[1]):
        place = Path.cwd()
    command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
