"""The run's progress: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from typing import TextIO


@dataclass
class Pace:
    """Images, time and waiting since creation or reset, and rates derived from them."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    copied: float = 0.0

    def add(self, images: int, seconds: float, waited: float, copied: float = 0.0) -> None:
        """Adds one step: its rows, its wall time, and the parts of that spent waiting for the batch and copying it."""
        self.images += images
        self.seconds += seconds
        self.waited += waited
        self.copied += copied

    @property
    def images_per_s(self) -> float:
        """Images per second of wall time; 0 before the first step."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """The share of wall time spent waiting for data, in [0, 1]."""
        return self.waited / self.seconds if self.seconds > 0 else 0.0

    @property
    def copy(self) -> float:
        """The share of wall time spent copying batches to the device, in [0, 1]."""
        return self.copied / self.seconds if self.seconds > 0 else 0.0

    @property
    def state(self) -> list[float]:
        """The arguments that recreate it: `Pace(*state)`."""
        return [self.images, self.seconds, self.waited, self.copied]

    def figures(self) -> dict[str, float]:
        """The values for metrics.jsonl."""
        return {
            "images_per_s": round(self.images_per_s, 1),
            "data_wait": round(self.data_wait, 4),
            "copy": round(self.copy, 4),
            "fed": round(max(0.0, 1 - self.data_wait - self.copy), 4),
        }

    def text(self) -> str:
        """`812 img/s  data wait 3%`."""
        return f"{self.images_per_s:,.0f} img/s  data wait {self.data_wait:.0%}"


class Progress:
    """Shows the steps of an epoch: a progress bar on a terminal, else an occasional plain line."""

    #: A plain line at most this often (seconds); a log file of a long run stays readable.
    PLAIN_EVERY = 10.0
    #: The bar is redrawn at most this often (seconds): drawing must never be the bottleneck.
    REDRAW_EVERY = 0.1

    def __init__(self, epochs: int, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self.epochs = epochs
        self.silent = silent
        self.stream = stream if stream is not None else sys.stderr
        self.on_terminal = self.stream.isatty()
        # The first plain line of a run also waits: a shorter run needs only its epoch lines.
        self._last = time.monotonic() if not self.on_terminal else 0.0
        self._drawn = False

    def step(self, epoch: int, done: int, total: int, loss: float | None, lr: float, pace: Pace) -> None:
        """Shows step `done` of `total` in `epoch` (0-based); `loss` is the last one read, or None."""
        now = time.monotonic()
        if self.silent:
            return
        if now - self._last < (self.REDRAW_EVERY if self.on_terminal else self.PLAIN_EVERY) and done < total:
            return
        if not self.on_terminal and done == total:
            return  # the epoch's own line follows
        self._last = now
        head = f"epoch {epoch + 1}/{self.epochs}"
        read = "" if loss is None else f"loss {loss:.3f}  "
        if not self.on_terminal:
            self.line(f"{head}  step {done}/{total}  {read}lr {lr:.2g}  {pace.text()}")
            return
        left = int((total - done) * pace.seconds / max(done, 1))
        ends = f"{pace.text()}  {left // 60}:{left % 60:02d} left"
        columns = shutil.get_terminal_size().columns
        # On a narrow terminal, the learning rate is dropped first, then the bar: speed and waiting matter most.
        for figures in (f"{done}/{total}  {read}lr {lr:.2g}  {ends}", f"{done}/{total}  {read}{ends}"):
            room = columns - len(head) - len(figures) - 5
            if room >= 8:
                break
        bar = f" {_bar(done / max(total, 1), min(room, 40))} " if room >= 8 else ""
        self.stream.write(f"\r{f'{head} {bar} {figures}'[: columns - 1]}\x1b[K")
        self.stream.flush()
        self._drawn = True

    def line(self, text: str) -> None:
        """Prints one full line, over the bar if there is one."""
        if not self.silent:
            self.clear()
            self.stream.write(text + "\n")
            self.stream.flush()

    def clear(self) -> None:
        """Clears the bar, so that the next output starts on its own line."""
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._drawn = False


def _bar(share: float, width: int) -> str:
    full = int(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)
