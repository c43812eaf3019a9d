"""Progress of opening a source: a progress line on a terminal, else an occasional line in the log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from typing import TextIO

logger = logging.getLogger("fuelrail")


def log(level: str, text: str) -> None:
    """Passes a line of the daemon's log to this process's."""
    logger.log(logging.getLevelNamesMapping().get(level.upper(), logging.WARNING), "%s", text)


class Opening:
    """Shows progress if opening takes long. Called by the native feed about ten times a second while there is
    progress."""

    #: Nothing is shown before this many seconds; most sources are open by then.
    PATIENCE = 1.0
    #: Seconds between lines in the log.
    LOG_EVERY = 10.0

    def __init__(self, stream: TextIO | None = None) -> None:
        # Without a console (pythonw, some notebooks' kernels) there is no stderr.
        self._stream: TextIO | None = stream if stream is not None else sys.stderr
        self._on_terminal = _is_terminal(self._stream)
        self._begun = self._logged = time.monotonic()
        self._drawn = 0

    def __call__(self, what: str, done: int, total: int | None, counted: str) -> None:
        """Shows that `done` of `total` things `counted` are done."""
        now = time.monotonic()
        if now - self._begun < self.PATIENCE:
            return
        text = _text(what, done, total, counted)
        if self._on_terminal:
            self._draw(text)
        elif now - self._logged >= self.LOG_EVERY:
            self._logged = now
            logger.info("%s", text)

    def log(self, level: str, text: str) -> None:
        """Prints a line of the daemon's log above the progress line. Also used after opening."""
        self.close()
        log(level, text)

    def close(self) -> None:
        """Clears the line."""
        if self._drawn:
            self._draw("")

    def _draw(self, text: str) -> None:
        assert self._stream is not None
        text = text[: max(1, shutil.get_terminal_size().columns - 1)]
        blank = " " * max(0, self._drawn - len(text))
        self._drawn = len(text)
        try:
            self._stream.write(f"\r{text}{blank}" if text else f"\r{blank}\r")
            self._stream.flush()
        except (OSError, ValueError):  # closed meanwhile; not a reason to stop opening
            self._on_terminal, self._drawn = False, 0


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether it is a terminal; a replacement for `sys.stderr` may lack `isatty`, or be closed."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False


def _text(what: str, done: int, total: int | None, counted: str) -> str:
    if counted == "bytes":
        amount = f"{done / 1e6:,.1f} MB" if total is None else f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
    else:
        amount = f"{done:,} {counted}" if total is None else f"{done:,} of {total:,} {counted}"
    share = f" ({done / total:.0%})" if total else ""
    return f"{what}: {amount}{share}"
