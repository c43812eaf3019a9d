"""A run's folder: only one training run at a time writes to it, and a new one never overwrites an old one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from .checkpoint import Checkpoints
from .metrics import read_metrics


class RunFolder:
    """The folder of a run, held by one process. The lock is released when the process ends, however it ends."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path, keep)
        self._lock: IO[str] | None = None

    def hold(self) -> None:
        """Locks the folder; raises ValueError if another training run has it."""
        if self._lock is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                lock.close()
                raise ValueError(
                    f"{self.path}: another training is writing into this folder ({holder}): stop it or name another "
                    "folder. Ranks of one training say so first: torch.distributed.init_process_group()"
                ) from None
            # A file system without locks: proceed without one.
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Releases it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def refuse_used(self) -> None:
        """Raises ValueError if it already holds a run."""
        used = self.metrics.exists() and any(line["step"] for line in read_metrics(self.metrics))
        if self.checkpoints.paths() or used:
            raise ValueError(
                f"{self.path} already holds a run: resume it (--resume, resume=True) or name another folder"
            )
        self.metrics.unlink(missing_ok=True)
