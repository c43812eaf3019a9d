"""A temporary folder for the tests alone: whatever a test leaves in it fails that test.

The folder is deleted after a run that passed, with what pytest's own `tmp_path` keeps; after one that failed it stays,
and is named.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: What ends behind a test (a daemon that notices its client's end) has this long to tidy up.
PATIENCE = 10.0

ROOM = pytest.StashKey[Path]()
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder."""
    # Short: sockets lie below it, also those of a worker (-n), whose folder is in this one, and Python's own
    # (pymp-…/listener-…). Beyond 107 bytes they cannot be bound, and a DataLoader waits for ever.
    room = Path(tempfile.mkdtemp(prefix="fr-"))
    config.stash[ROOM] = room
    (room / "tmp").mkdir()
    # This process, whatever it starts, and the tempfile module, which may have looked already.
    os.environ["TMPDIR"] = tempfile.tempdir = str(room / "tmp")
    # What torch compiles is a cache of its own, and no test's.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(room / "torch")
    if config.option.basetemp is None:
        config.option.basetemp = str(room / "pytest")


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    def names() -> set[str]:
        return {each.name for each in (request.config.stash[ROOM] / "tmp").iterdir()}

    before = names()
    yield
    deadline = time.monotonic() + PATIENCE
    while (left := sorted(names() - before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"the test left {', '.join(left)} in the temporary folder"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Notes whether all is well."""
    session.config.stash[FAILED] = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Deletes the folder."""
    room = config.stash[ROOM]
    if config.stash.get(FAILED, False):
        print(f"\nthe temporary files of this run are kept in {room}")
    else:
        shutil.rmtree(room, ignore_errors=True)
