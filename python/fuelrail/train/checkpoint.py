"""Checkpoints that are complete or absent, and a folder of bounded size.

    RUN/checkpoints/step-00001200.pt     the newest K
    RUN/best.pt                          a hard link to the best one (a copy where links are not possible)

Writing: a temporary file in the same folder, fsync, rename over the final name, fsync of the folder. A crash
at any moment leaves the old file or the new one. Reading uses `weights_only=True`: a checkpoint cannot run
code.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = 2


class Checkpoints:
    """The checkpoints of one run folder; keeps the newest `keep` and the best."""

    def __init__(self, run: Path, keep: int = 3) -> None:
        self.folder = run / "checkpoints"
        self.best = run / "best.pt"
        self.keep = keep

    def save(self, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        """Writes `state` as the checkpoint of `step`, atomically; drops the oldest beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
        if best:
            _link_atomically(path, self.best)
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """The step checkpoints, newest first, without temporary files."""
        if not self.folder.is_dir():
            return []
        found = [
            (int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))
        ]
        return [path for _, path in sorted(found, reverse=True)]

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None if there are no checkpoints.

        An unreadable one is reported on stderr and skipped. Raises ValueError if checkpoints exist but none is
        readable: starting from scratch would silently discard the run.
        """
        self._sweep()
        refused: list[str] = []
        for path in self.paths():
            try:
                return path, load(path)
            except Exception as error:
                reason = f"{path}: {_first_line(error)}"
                print(
                    f"fuelrail: cannot read a checkpoint, trying the one before it: {reason}", file=sys.stderr
                )
                refused.append(reason)
        if refused:
            raise ValueError(f"no checkpoint in {self.folder} can be read ({'; '.join(refused)})")
        return None

    def _sweep(self) -> None:
        """Removes temporary files of writers that died; called only if no other writer of this run is alive."""
        if self.folder.is_dir():
            for path in self.folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """One checkpoint, tensors on the CPU. Raises ValueError when its format is not this version's."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"not a checkpoint of format {FORMAT} (found {found!r})")
    return state


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write(file)` and puts the result in place of `path`, durable when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as plain data and tensors."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, position, has_gauss, gauss = numpy.random.get_state()
        # As a tensor: a NumPy array in the file would need unpickling that weights_only=True refuses.
        states["numpy"] = (name, torch.tensor(keys.tolist()), int(position), int(has_gauss), float(gauss))
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts back what `random_states` returned. GPU states are restored only on the same number of GPUs."""
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        import numpy

        name, keys, position, has_gauss, gauss = states["numpy"]
        numpy.random.set_state((name, numpy.array(keys.tolist(), dtype="uint32"), position, has_gauss, gauss))
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


def _link_atomically(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    temporary.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems have no fsync for folders; the rename was still atomic.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


_NAME = re.compile(r"step-(\d+)\.pt")
