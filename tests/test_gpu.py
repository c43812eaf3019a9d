"""Copies to a GPU on a machine without one: a driver's stand-in, whose copies happen late, shows what is too early.

The driver is `tests/cuda/libcuda.c`; the reader is a process of its own, `tests/cuda/reader.py`. What needs a real GPU
is in `test_gpu_real.py`.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError
from fuelrail import fields as F
from fuelrail.numpy import Loader
from support import T, at_most

READER = Path(__file__).parent / "cuda" / "reader.py"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the driver's stand-in."""
    folder = tmp_path_factory.mktemp("driver")
    source = READER.with_name("libcuda.c")
    subprocess.run(
        [
            "cc",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            folder / "libcuda.so.1",
            source,
            "-lpthread",
        ],
        check=True,
    )
    return folder


def run(driver: Path, pictures: Path, *arguments: str, **settings: str) -> tuple[dict[str, Any], str]:
    """What the reader reports, and what it said."""
    with at_most(100, "the reader"):
        done = subprocess.run(
            [sys.executable, READER, pictures, *arguments],
            env={**os.environ, "LD_LIBRARY_PATH": str(driver), **settings},
            capture_output=True,
            text=True,
            timeout=120,
        )
    report = json.loads(done.stdout) if done.returncode == 0 else {"returncode": done.returncode}
    assert done.returncode in (0, 1), done.stderr
    return report, done.stderr


def order(pictures: Path) -> list[int]:
    """The records of the first three epochs, by the way without a GPU."""
    seen: list[int] = []
    with Loader(pictures, transforms=[T.CenterCrop(32)], batch_size=4, shuffle=True, seed=5) as loader:
        for _ in range(3):
            for batch in loader:
                seen += batch["index"].tolist()
    return seen


def test_no_slot_of_ten_thousand_is_written_while_a_copy_reads_it(driver: Path, pictures: Path) -> None:
    report, said = run(driver, pictures, "10000", FAKE_CUDA_DELAY_US="100")
    assert (report["batches"], report["wrong"], report["pinned"]) == (10_000, 0, True), said
    assert report["copied"] == 0, "each batch came straight from its slot"
    assert report["seen"][:183] == order(pictures), "in the order of a loader without a GPU"


def test_without_the_wait_for_copies_this_test_would_see_wrong_rows(driver: Path, pictures: Path) -> None:
    report, said = run(driver, pictures, "300", FAKE_CUDA_NO_WAIT="1")
    assert report["wrong"] > 0, said


def test_an_iteration_may_end_with_copies_on_their_way(driver: Path, pictures: Path) -> None:
    report, said = run(driver, pictures, "400", "restart", FAKE_CUDA_DELAY_US="500")
    assert (report["batches"], report["wrong"]) == (400, 0), said
    assert report["seen"][:183] == order(pictures), (
        "a state that is saved and loaded repeats nothing and leaves out nothing"
    )


def test_text_comes_with_its_rows(driver: Path, pictures: Path) -> None:
    report, said = run(driver, pictures, "100", "text")
    assert (report["batches"], report["wrong"]) == (100, 0), said


def test_memory_that_cannot_be_page_locked_is_said_once_and_read_all_the_same(
    driver: Path, pictures: Path
) -> None:
    report, said = run(driver, pictures, "100", FAKE_CUDA_NO_PIN="1")
    assert (report["wrong"], report["pinned"]) == (0, False)
    assert said.count("cannot be page-locked") == 1 and "CUDA_ERROR_NOT_SUPPORTED" in said
    report, said = run(driver, pictures, "100", "off")
    assert (report["wrong"], report["pinned"]) == (0, False) and "page-locked" not in said


def test_pinning_that_is_required_is_refused_where_it_cannot_be(driver: Path, pictures: Path) -> None:
    _, said = run(driver, pictures, "100", "require", FAKE_CUDA_NO_PIN="1")
    last = said.strip().splitlines()[-1]
    assert 'pin="require"' in last and "operation not supported" in last and 'pin="auto" goes on' in last


def test_a_copy_that_fails_is_an_error_and_no_crash(driver: Path, pictures: Path) -> None:
    report, said = run(driver, pictures, "100", FAKE_CUDA_FAIL="21")
    assert report == {"returncode": 1}, said
    assert "a copy to the GPU: the driver says CUDA_ERROR_ILLEGAL_ADDRESS" in said.strip().splitlines()[-1]


def test_batches_that_were_copied_are_handed_out_before_the_daemons_death_is_told(
    driver: Path, pictures: Path
) -> None:
    report, said = run(driver, pictures, "30", "kill")
    assert report["wrong"] == 0 and report["after_death"] in (1, 2, 3), said
    assert report["error"] == "DaemonDied"


def test_without_a_driver_the_error_says_so(pictures: Path) -> None:
    with Loader(pictures, transforms=[T.CenterCrop(32)]) as loader:
        with pytest.raises(ValueError, match="pin"):
            loader._feed.uploader(0, "perhaps")
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            with pytest.raises(RuntimeError, match="no NVIDIA driver here"):
                loader._feed.uploader(0, "auto")


def test_options_of_the_gpu_are_refused_without_one(pictures: Path) -> None:
    torch = pytest.importorskip("torch")
    from fuelrail.torch import Loader as OfTorch

    with pytest.raises(ConfigError, match=r'pin="require" needs a GPU.*device="cuda"'):
        OfTorch(pictures, transforms=[T.CenterCrop(32)], pin="require")
    with pytest.raises(ConfigError, match="device_buffers= is for a GPU"):
        OfTorch(pictures, transforms=[T.CenterCrop(32)], device_buffers=2)
    with pytest.raises(ConfigError, match="pin="):
        OfTorch(pictures, transforms=[T.CenterCrop(32)], pin="yes")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device=.cuda. cannot be used"):
            OfTorch(pictures, transforms=[T.CenterCrop(32)], device="cuda")


# Bytes travel, floats are made where the batch is ----------------------------------------------------------------

NORMALIZE = T.Normalize(*T.IMAGENET)
ERASE = T.RandomErasing(0.8, value=(0.5, -1.0, 2.0))

CHAINS = {
    "normalize": [T.RandomResizedCrop(24), NORMALIZE],
    "erase": [T.RandomCrop(24), NORMALIZE, ERASE, T.RandomErasing(0.5)],
    "gray": [T.CenterCrop(24), T.Grayscale(), T.Normalize((0.5,), (0.5,))],
    "random values": [T.RandomCrop(24), NORMALIZE, T.RandomErasing(0.8, value="random")],
    "levels": [T.RandomCrop(24), T.RandomErasing(0.8, value=9)],
}


class OfNumpy(Loader):
    def _finishes(self) -> bool:
        return True


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("dtype", ["float32", "float16", None])
def test_floats_made_from_bytes_are_those_of_the_daemon(
    pictures: Path, chain: list[Any], layout: str, dtype: str | None
) -> None:
    options: dict[str, Any] = {
        "transforms": chain,
        "batch_size": 8,
        "shuffle": True,
        "layout": layout,
        "dtype": dtype,
    }
    with Loader(pictures, **options) as whole, OfNumpy(pictures, **options) as parts:
        assert parts.shapes == whole.shapes
        for one, other in zip(whole, parts, strict=True):
            assert one.keys() == other.keys()
            assert one["image"].dtype == other["image"].dtype
            # Where there is one channel, it may be any number of bytes long.
            steps = [axis for axis in range(4) if one["image"].shape[axis] > 1]
            assert [one["image"].strides[axis] for axis in steps] == [
                other["image"].strides[axis] for axis in steps
            ]
            assert np.array_equal(one["image"], other["image"]), "bit for bit"
        assert parts.state_dict() == whole.state_dict(), "one run may go on where the other was"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_torchs_floats_are_the_daemons_within_rounding(pictures: Path, layout: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from fuelrail.torch import Loader as OfTorch

    class Parts(OfTorch):
        def _finishes(self) -> bool:
            return True

    for chain in CHAINS.values():
        named = {"image": F.Image(chain), "views": F.Views(3, chain)}
        options: dict[str, Any] = {"fields": named, "batch_size": 8, "layout": layout, "dtype": dtype}
        with OfTorch(pictures, **options) as whole, Parts(pictures, **options) as parts:
            for one, other in zip(whole, parts, strict=True):
                for name in named:
                    assert one[name].dtype == other[name].dtype and one[name].stride() == other[name].stride()
                    # One step of the type, where the product and the sum were fused.
                    bound = 1e-6 if dtype == "float32" else 4 * torch.finfo(one[name].dtype).eps
                    assert (one[name].double() - other[name].double()).abs().max() <= bound


def test_pinned_copies_are_torchs_and_elsewhere_refused(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    from fuelrail.torch import Loader as OfTorch

    with OfTorch(pictures, transforms=[T.CenterCrop(32)], pin_memory=True) as loader:
        batch = next(iter(loader))
        if torch.cuda.is_available():
            assert batch["image"].is_pinned() and batch["label"].is_pinned()
        else:
            assert "pin_memory=True does nothing here" in caplog.text
    with pytest.raises(ConfigError, match="pin_memory=True is for torch"):
        Loader(pictures, transforms=[T.CenterCrop(32)], pin_memory=True)
