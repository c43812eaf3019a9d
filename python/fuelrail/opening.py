"""How far opening a source has come: a line that moves on a terminal, else a line in the log now and then."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from typing import TextIO

logger = logging.getLogger("fuelrail")


def log(level: str, text: str) -> None:
    """A line of the daemon's log, in this process's."""
    logger.log(logging.getLevelNamesMapping().get(level.upper(), logging.WARNING), "%s", text)


class Opening:
    """Shows an opening that takes long. Called by the native feed about ten times a second while it gets on."""

    #: Nothing is shown before this many seconds: most sources are open by then.
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
        """A line of the daemon's log, above the one that moves. After the opening, too."""
        self.close()
        log(level, text)

    def close(self) -> None:
        """Takes the line off the terminal."""
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
        except (OSError, ValueError):  # closed meanwhile: no reason to end the opening
            self._on_terminal, self._drawn = False, 0


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether it is one; what programs put in place of `sys.stderr` may not know, or be closed."""
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
