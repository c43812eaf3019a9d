"""A run's measurements: one JSON object per line in RUN/metrics.jsonl.

    {"event": "run",    "step": 0, ...settings}
    {"event": "step",   "step": 40, "epoch": 1, "loss": 1.93, "lr": 0.05, "images_per_s": 812.0, "data_wait":
    0.02,
                        "ids": "5f0c…"}                                       every `log_every` steps
    {"event": "ids",    "step": 40, "ids": [17, 4, …]}                        every step, with `log_ids`
    {"event": "epoch",  "step": 48, "epoch": 1, "train_loss": …, "val_top1": …}
    {"event": "resume", "step": 32, "epoch": 0, "dropped_lines": 3}

`loss` is the mean over the rows since the previous line. `ids` of a step line is a chain: a hash over the
indices of every sample of every step so far, so a single equal line proves that two runs have read the same
samples in the same order. `data_wait` is the share of time spent waiting for the next batch, in [0, 1].

After a resume, the lines of steps that will be run again are dropped, so that the file reads like one uninterrupted
run.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class MetricsLog:
    """Appends records to a JSON-lines file; each line is written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, **fields: Any) -> None:
        """One line. Numbers that are not finite become null, as JSON cannot represent them."""
        record = {"event": event, "step": step, **fields, "time": round(time.time(), 3)}
        self._file.write(json.dumps(_finite(record)) + "\n")
        self._file.flush()

    def rewind(self, step: int, epoch: int | None = None) -> int:
        """Drops the lines of steps after `step`, of epochs that end from `epoch` on, and a torn last line; returns how
        many were dropped."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()

        def stays(line: str) -> bool:
            record = _parse(line)
            if record is None or record.get("step", 0) > step:
                return False
            return epoch is None or record.get("event") != "epoch" or record["epoch"] < epoch

        kept = [line for line in lines if stays(line)]
        if len(kept) != len(lines):
            from .checkpoint import write_atomically  # imports torch, which reading does not need

            self._file.close()
            write_atomically(
                self.path, lambda file: file.write("".join(f"{line}\n" for line in kept).encode())
            )
            self._file = self.path.open("a", encoding="utf-8")
        return len(lines) - len(kept)

    def close(self) -> None:
        """Closes the file; writing afterwards raises ValueError."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, oldest first; a torn line is skipped."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [record for line in lines if (record := _parse(line))]


class IdChain:
    """A hash over a sequence of sample indices, extended step by step; its state is its hexadecimal text."""

    def __init__(self, state: str = "") -> None:
        self.state = state

    def add(self, indices: Iterable[int]) -> None:
        """Extends the chain by one step's sample indices, in row order."""
        digest = hashlib.blake2b(bytes.fromhex(self.state), digest_size=16)
        for index in indices:
            digest.update(int(index).to_bytes(8, "little", signed=True))
        self.state = digest.hexdigest()


class Mean:
    """A mean weighted by rows, which waits for the accelerator only when it is read."""

    def __init__(self, total: float = 0.0, rows: int = 0) -> None:
        self._total: torch.Tensor | float = total
        self.rows = rows

    def add(self, value: torch.Tensor, rows: int) -> None:
        """Adds the mean `value` of `rows` rows."""
        self._total = self._total + value.detach().double() * rows
        self.rows += rows

    @property
    def total(self) -> float:
        """The sum so far; reading it waits for the accelerator."""
        return float(self._total)

    @property
    def state(self) -> tuple[float, int]:
        """Sum and rows, as plain numbers."""
        return self.total, self.rows

    @property
    def value(self) -> float:
        """The mean so far, or NaN if nothing was added."""
        return self.total / self.rows if self.rows else math.nan


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
