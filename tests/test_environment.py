"""What is around a run: memory limits of the system, a terminal or a file that the log goes to."""

from __future__ import annotations

import os
import pty
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuelrail.loader import binary
from support import TINY, Loader, Script, wait_until

ESCAPE = b"\x1b"


def test_a_batch_larger_than_the_epoch_takes_no_more_memory_than_the_epoch_needs() -> None:
    with Loader("synthetic://?count=64&width=32&height=32", batch_size=10**6, transforms=TINY) as loader:
        (batch,) = list(loader)
        assert batch.rows == 64
        assert len(loader) == 1
        row = 3 * 8 * 8 + 8 + 8 + 8 + 1
        assert loader.stats()["budget"]["ring"] < 100 * row * 4 + (1 << 16)


# Control groups --------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group that may use 400 MB, whose own child group has no limit: as Slurm makes them."""
    v1 = Path("/sys/fs/cgroup/memory")
    v2 = Path("/sys/fs/cgroup")
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    unified = {controllers: path for _, controllers, path in lines}
    try:
        if "memory" in unified and v1.is_dir():
            job, limit = (
                v1 / unified["memory"].lstrip("/") / f"fuelrail-{uuid.uuid4().hex}",
                "memory.limit_in_bytes",
            )
        elif (v2 / "cgroup.controllers").exists():
            # No group that has processes may have children with controllers: beside ours, not below it.
            job, limit = v2 / f"fuelrail-{uuid.uuid4().hex}", "memory.max"
        else:
            pytest.skip("no control groups with memory limits are mounted here")
        (job / "step").mkdir(parents=True)
        (job / limit).write_text("400000000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield job
    for group in (job / "step", job):
        wait_until(lambda group=group: not (group / "cgroup.procs").read_text(), 10, "the group is empty")
        group.rmdir()


def test_the_memory_limit_of_a_parent_group_is_seen(limited: Path) -> None:
    script = f"""
        import pathlib
        pathlib.Path({str(limited / "step" / "cgroup.procs")!r}).write_text(str(os.getpid()))
        from fuelrail.numpy import Loader, transforms as T
        source = "synthetic://?count=64&width=32&height=32"
        try:
            Loader(source, transforms=[T.Resize((8, 8))], num_workers=4)
        except Exception as error:
            say(f"{{type(error).__name__}}: {{error}}")
        with Loader(source, transforms=[T.Resize((8, 8))], num_workers=1, max_sample_bytes=1 << 20) as loader:
            say(sum(batch.rows for batch in loader))
    """
    with Script(script) as process:
        refused = process.hears()
        assert refused.startswith("EnvironmentFailure") and "num_workers" in refused
        assert f'the memory limit of the control group "{limited}"' in refused
        assert process.hears() == 64
        assert process.ends() == 0


# Colours ---------------------------------------------------------------------------------------------------------------


def serve(tmp_path: Path, stderr: int, **environment: str) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    socket = tmp_path / "socket"
    process = subprocess.Popen(
        [str(binary()), "serve", "--root", str(tmp_path), "--socket", str(socket)],
        stderr=stderr,
        env=variables | {"TERM": "xterm"} | environment,
    )
    wait_until(socket.exists, 20, "the daemon listens")
    return process


def on_a_terminal(tmp_path: Path, **environment: str) -> bytes:
    ours, theirs = pty.openpty()
    process = serve(tmp_path, theirs, **environment)
    text = os.read(ours, 1 << 16)
    process.terminate()
    process.wait(20)
    os.close(ours)
    os.close(theirs)
    return text


def test_a_log_in_a_file_has_no_colours(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = serve(tmp_path, file.fileno())
        wait_until(log.read_bytes, 20, "a line in the log")
        process.terminate()
        process.wait(20)
    assert ESCAPE not in log.read_bytes()


def test_a_log_on_a_terminal_has_colours_unless_they_are_refused(tmp_path: Path) -> None:
    assert ESCAPE in on_a_terminal(tmp_path)
    assert ESCAPE not in on_a_terminal(tmp_path, NO_COLOR="1")
    assert ESCAPE not in on_a_terminal(tmp_path, TERM="dumb")
