"""Fixtures of the whole-system tests, and a deadline for each of them."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from kafka.broker import Broker, missing
from PIL import Image
from support import GATE, Footprint, seeds


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores ctrl-C, and that is inherited: tests of it need the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "deadline(seconds): the test fails when it takes longer (default 120)")


@pytest.fixture(autouse=True)
def _deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that hangs fails with a traceback of where it hung instead of stopping the suite."""
    marker = request.node.get_closest_marker("deadline")
    seconds = (marker.args[0] if marker else 120) * (10 if GATE else 1)

    def late(*_: object) -> None:
        raise AssertionError(f"the test did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    # Should even that not help, because the process is stuck outside Python.
    faulthandler.dump_traceback_later(seconds + 30, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A test may turn the log down; the next one hears everything again."""
    yield
    logging.getLogger("fuelrail").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 61 photograph-like images: a prime number, so that nothing divides it."""
    return photographs.folder(tmp_path_factory.mktemp("images"), 61, seed=1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The optional test data."""
    path = Path(os.environ.get("FUELRAIL_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; FUELRAIL_TEST_DATA names another place")
    return path


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One Kafka broker for all tests that do nothing worse to it than to fill it."""
    with kafka_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker to be killed, and started again."""
    with kafka_broker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Three brokers."""
    with kafka_broker(tmp_path_factory.mktemp("cluster"), nodes=3) as broker:
        yield broker


def kafka_broker(folder: Path, **options: Any) -> Broker:
    """A broker, not yet started; skips the test where there can be none, but not in CI."""
    lacks = missing()
    if lacks and os.environ.get("CI"):
        pytest.fail(lacks)
    if lacks:
        pytest.skip(lacks)
    return Broker(folder, **options)


@pytest.fixture
def footprint(tmp_path: Path) -> Footprint:
    """To see what processes leave behind."""
    return Footprint(tmp_path)


@pytest.fixture
def rng() -> random.Random:
    """Random choices; the seed is printed with a failure."""
    return seeds()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """61 small pictures of noise in two classes, with a text beside each: no two have a row in common."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(11)
    for at in range(61):
        file = folder / "ab"[at % 2] / f"{at:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        file.with_suffix(".txt").write_text(f"number {at}")
    return folder
