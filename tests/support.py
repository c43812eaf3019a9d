"""What the tests share: deadlines, digests of batches, scripts in processes of their own, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail.loader import binary
from fuelrail.numpy import Loader, transforms
from fuelrail.values import Crops, Ragged

T = transforms

#: The long forms (`make gate`).
GATE = bool(os.environ.get("FUELRAIL_GATE"))

#: Of tests that only the gate runs: several processes that each import torch and meet take long, and on a busy machine
#: gloo now and then aborts at its end.
long_form = pytest.mark.skipif(not GATE, reason="the long form: FUELRAIL_GATE=1")

#: Promised deadlines are asserted at five times their value: a watchdog, not a measurement.
SLACK = 5

#: A chain with every kind of randomness in it.
AUGMENT = [
    T.RandomResizedCrop(32),
    T.RandomHorizontalFlip(),
    T.RandomRotation(20, interpolation="bilinear"),
    T.ColorJitter(0.4, 0.4, 0.4, 0.1),
    T.RandomGrayscale(0.2),
    T.GaussianBlur(5, (0.1, 2.0)),
    T.GaussianNoise(0.0, 0.05),
    T.Normalize(*T.IMAGENET),
    T.RandomErasing(0.5, value="random"),
]

#: Flags of a training of seconds.
QUICK_TRAINING = [
    *("--model", "small_cnn", "--size", "16", "--num-workers", "2", "--precision", "fp32", "--track", "none"),
]

#: The cheapest chain with a fixed size: for tests of order and life cycle.
TINY = [T.Resize((8, 8))]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """A watchdog around something that must not hang."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, f"{what} took {took:.1f} s, the watchdog allows {seconds:g} s"


# Batches ---------------------------------------------------------------------------------------------------------------


def arrays(batch: Any) -> dict[str, np.ndarray]:
    """Everything a batch holds as arrays, rows first: of rows of differing length the padded ones and the lengths."""
    held: dict[str, np.ndarray] = {}
    for name, value in batch.items():
        if isinstance(value, Crops):
            held[name] = np.stack([np.asarray(column) for column in value], axis=1)
        elif isinstance(value, Ragged | list):
            ragged = batch.ragged(name)
            held[name], held[f"{name}.lengths"] = np.asarray(ragged.padded), np.asarray(ragged.lengths)
        else:
            held[name] = np.asarray(value)
    return {name: np.ascontiguousarray(array) for name, array in held.items()}


def digest(batch: Any) -> str:
    """Hash of everything a batch holds."""
    state = hashlib.blake2b(digest_size=16)
    for name, array in arrays(batch).items():
        state.update(f"{name} {array.dtype} {array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def digests(batches: Iterable[Any]) -> list[str]:
    """Hashes of batches, which are let go one by one."""
    return [digest(batch) for batch in batches]


def row_digests(batches: Iterable[Any]) -> dict[int, str]:
    """Position to hash of everything else in the row: independent of how rows are cut into batches."""
    rows = {}
    for batch in batches:
        held = [array for name, array in arrays(batch).items() if name != "position"]
        for row, position in enumerate(batch["position"].tolist()):
            state = hashlib.blake2b(digest_size=16)
            for array in held:
                state.update(np.ascontiguousarray(array[row]).tobytes())
            assert position not in rows, f"position {position} came twice"
            rows[position] = state.hexdigest()
    return rows


def indices(batches: Iterable[Any]) -> list[int]:
    """Record numbers in the order of delivery."""
    return [index for batch in batches for index in batch["index"].tolist()]


def seeds() -> random.Random:
    """The random choices of a test; its seed is printed, and FUELRAIL_SEED replays it."""
    seed = int(os.environ.get("FUELRAIL_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"FUELRAIL_SEED={seed}")
    return random.Random(seed)


# Processes -------------------------------------------------------------------------------------------------------------


def state_of(pid: int) -> str | None:
    """State letter of a process; None when it is gone, or only waits to be reaped."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if letter in "ZX" else letter


def descriptors(pid: int | str = "self") -> int:
    """Open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Footprint:
    """What processes started with its environment leave behind: each is marked, whatever becomes of its parent."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.runtime = folder / f"runtime-{self.mark[:8]}"
        self.temporary = folder / f"tmp-{self.mark[:8]}"
        self.runtime.mkdir(mode=0o700)
        self.temporary.mkdir()
        self._shm = self._shared_memory()

    @property
    def environment(self) -> dict[str, str]:
        """For the processes to watch."""
        own = {
            "FUELRAIL_TEST_MARK": self.mark,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.temporary),
        }
        return os.environ | own | {"PYTHONUNBUFFERED": "1"}

    def processes(self) -> dict[int, str]:
        """Living marked processes: pid to command line."""
        found = {}
        needle = f"FUELRAIL_TEST_MARK={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if needle in (entry / "environ").read_bytes() and state_of(int(entry.name)):
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    )
            except OSError:
                continue
        return found

    @staticmethod
    def _shared_memory() -> set[str]:
        # Other programs may come and go meanwhile; those of torch and of semaphores have names of their own.
        shm = Path("/dev/shm")
        names = {entry.name for entry in shm.iterdir()} if shm.is_dir() else set()
        return {name for name in names if not name.startswith(("torch_", "sem.", "psm_", "pymp-"))}

    def is_clean(self, seconds: float = SLACK) -> None:
        """Asserts that soon no process is left, and no file in shared memory, the runtime or temporary folder."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left, f"processes are left after {seconds:g} s: {left}"
        assert self._shared_memory() <= self._shm
        assert not list(self.runtime.iterdir())
        assert not list(self.temporary.iterdir())


class Script:
    """A Python script in a process (and session) of its own, which talks in lines of JSON."""

    def __init__(
        self,
        code: str,
        *arguments: Any,
        footprint: Footprint | None = None,
        session: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        environment = footprint.environment if footprint else os.environ | {"PYTHONUNBUFFERED": "1"}
        environment = environment | {name: str(value) for name, value in (variables or {}).items()}
        # One write for a line: a forked child may speak at the same time.
        prologue = "import json, os, sys\ndef say(value): os.write(1, (json.dumps(value) + '\\n').encode())\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", prologue + textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parent,
            start_new_session=session,
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        self._errors.extend(self._process.stderr or ())

    def hears(self, seconds: float = 60) -> Any:
        """The next thing it says."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(
                f"the script said nothing for {seconds:g} s; stderr: {self.stderr}"
            ) from None
        assert line is not None, f"the script ended (status {self.ends()}); stderr: {self.stderr}"
        return json.loads(line)

    def rest(self) -> list[Any]:
        """All it said until its end, complete lines only."""
        said = []
        while (line := self._lines.get(timeout=60)) is not None:
            if line.endswith("\n"):
                said.append(json.loads(line))
        return said

    def ends(self, seconds: float = 60) -> int:
        """Its exit status, awaited."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the script runs on after {seconds:g} s; stderr: {self.stderr}") from None
        # The error stream stays open where a forked child or a daemon holds it.
        self._readers[1].join(2)
        return status

    def signal(self, number: int, group: bool = False) -> None:
        """Sends a signal to it, or to its whole process group as a terminal does."""
        (os.killpg if group else os.kill)(self.pid, number)

    @property
    def stderr(self) -> str:
        """What it wrote to the error stream so far."""
        return "".join(self._errors)

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def fuelrail(*arguments: Any, seconds: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the binary to its end."""
    return subprocess.run(
        [str(binary()), *map(str, arguments)], capture_output=True, text=True, timeout=seconds, **options
    )


def mpirun(mpi: str) -> list[str]:
    """The launcher of an MPI that `make setup` has installed, for any number of ranks, also for root."""
    venv, apart = Path(sys.executable).parent, Path(__file__).parents[1] / "build" / "mpich" / "bin"
    options = {
        "openmpi": [venv / "mpirun", "--oversubscribe", "--allow-run-as-root"],
        "mpich": [apart / "mpiexec"],
    }
    launcher, *rest = map(str, options[mpi])
    if not os.access(launcher, os.X_OK):
        pytest.skip(f"needs {launcher}: run make setup")
    return [launcher, *rest]


class Daemon:
    """`fuelrail serve` in the background."""

    def __init__(self, *arguments: Any, socket: Path, footprint: Footprint | None = None) -> None:
        self.socket = socket
        self._process = subprocess.Popen(
            [str(binary()), "serve", *map(str, arguments), "--socket", str(socket)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=footprint.environment if footprint else None,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._log: list[str] = []
        self._reader = threading.Thread(
            target=lambda: self._log.extend(self._process.stderr or ()), daemon=True
        )
        self._reader.start()
        self.url = f"unix://{socket}"

    def listens(self) -> Daemon:
        """Waits until it does."""
        wait_until(
            lambda: "listening on" in self.log or self._process.poll() is not None, 20, "the daemon listens"
        )
        assert self._process.poll() is None, self.log
        return self

    @property
    def log(self) -> str:
        """What it logged so far."""
        return "".join(self._log)

    def stops(self, number: int | None = signal.SIGTERM, seconds: float = 2 * SLACK) -> int:
        """Sends a signal (None: sends none) and gives the exit status."""
        if number is not None:
            self._process.send_signal(number)
        status = self._process.wait(seconds)
        self._reader.join(5)
        return status

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


__all__ = [
    "AUGMENT",
    "Daemon",
    "Footprint",
    "GATE",
    "long_form",
    "Loader",
    "SLACK",
    "Script",
    "T",
    "TINY",
    "at_most",
    "descriptors",
    "digest",
    "digests",
    "fuelrail",
    "indices",
    "mpirun",
    "row_digests",
    "seeds",
    "state_of",
    "wait_until",
]
