"""Batches as jax.Arrays: the same bytes as numpy's, on one device, on several, and on several processes' devices."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError
from fuelrail import fields as F
from fuelrail.numpy import Loader as OfNumpy
from support import T, at_most

jax = pytest.importorskip("jax")
from fuelrail.jax import Loader  # noqa: E402

CHAIN = [T.RandomResizedCrop(16), T.Normalize(*T.IMAGENET)]


def options(**further: Any) -> dict[str, Any]:
    return {"transforms": CHAIN, "batch_size": 8, "shuffle": True, "seed": 2, **further}


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_batches_are_numpys(images: Path, dtype: str) -> None:
    chain = CHAIN if dtype != "uint8" else CHAIN[:1]
    same = options(dtype=dtype, transforms=chain)
    with Loader(images, **same) as ours, OfNumpy(images, **same) as plain:
        for one, other in zip(ours, plain, strict=True):
            image, label = one
            assert isinstance(image, jax.Array) and isinstance(label, jax.Array)
            assert str(image.dtype) == dtype and np.array_equal(image, other["image"])
            assert label.dtype == np.int32 and np.array_equal(label, other["label"])
            assert np.array_equal(one["index"], other["index"]) and one["index"].dtype == np.int64


def test_bfloat16_arrives(images: Path) -> None:
    with Loader(images, **options(dtype="bfloat16")) as ours, OfNumpy(images, **options()) as plain:
        for one, other in zip(ours, plain, strict=True):
            assert str(one["image"].dtype) == "bfloat16"
            assert np.allclose(one["image"].astype(np.float32), other["image"], rtol=2**-8)


def test_nhwc_is_the_shape_too(images: Path) -> None:
    with Loader(images, **options(layout="nhwc")) as ours, OfNumpy(images, **options()) as plain:
        one, other = next(iter(ours)), next(iter(plain))
        assert one["image"].shape == (8, 16, 16, 3)
        assert np.array_equal(one["image"], np.moveaxis(other["image"], 1, -1))


def test_batches_that_are_kept_stay_what_they_were(images: Path) -> None:
    with Loader(images, **options(prefetch_factor=1)) as ours, OfNumpy(images, **options()) as plain:
        kept = [batch for _ in range(3) for batch in ours]
        expected = [batch["image"].copy() for _ in range(3) for batch in plain]
        assert all(np.array_equal(one["image"], other) for one, other in zip(kept, expected, strict=True))


def test_fields_and_state_are_as_elsewhere(images: Path) -> None:
    with Loader(
        images, **options(transforms=(), fields={"image": F.Image(CHAIN), "views": F.Views(2, CHAIN)})
    ) as ours:
        batches = iter(ours)
        assert next(batches)["views"].shape == (8, 2, 3, 16, 16)
        state = ours.state_dict()
        rest = [each["index"].tolist() for each in batches]
        ours.load_state_dict(state)
        assert [each["index"].tolist() for each in ours] == rest


def test_a_device_is_named_or_refused(images: Path) -> None:
    with Loader(images, **options(device=jax.devices()[0])) as ours:
        assert next(iter(ours))["image"].devices() == {jax.devices()[0]}
    with Loader(images, **options(device="cpu")) as ours:
        assert next(iter(ours))["image"].devices() == {jax.devices("cpu")[0]}
    for wrong in ("tpu", "cpu:7", 3):
        with pytest.raises(ConfigError, match="device="):
            Loader(images, **options(device=wrong))
    with pytest.raises(ConfigError, match='pin="require" needs a GPU'):
        Loader(images, **options(pin="require"))


SEVERAL = """
import sys, numpy as np, jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fuelrail.jax import Loader, transforms as T
from fuelrail import ConfigError
mesh = Mesh(np.array(jax.devices()), ("data",))
options = dict(transforms=[T.Resize((8, 8))], batch_size=8, device=NamedSharding(mesh, P("data")))
with Loader(sys.argv[1], drop_last=True, **options) as loader:
    for batch in loader:
        assert len(batch["image"].sharding.device_set) == 4
        assert {shard.data.shape[0] for shard in batch["image"].addressable_shards} == {2}
        assert len(batch["label"].sharding.device_set) == 4
with Loader(sys.argv[1], **options) as loader:
    try:
        list(loader)
    except ConfigError as error:
        print(error)
"""


def test_a_sharding_lays_rows_over_devices(images: Path) -> None:
    done = script(SEVERAL, images, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert "a batch of 5 rows cannot be laid out" in done and "drop_last=True" in done


PROCESSES = """
import os, sys, numpy as np, jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
rank = int(sys.argv[2])
jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=rank)
from fuelrail.jax import Loader, transforms as T
mesh = Mesh(np.array(jax.devices()), ("data",))
seen = []
with Loader(sys.argv[1], transforms=[T.Resize((8, 8))], batch_size=4, shuffle=True, drop_last=True, rank=rank,
            world_size=2, device=NamedSharding(mesh, P("data"))) as loader:
    for batch in loader:
        assert batch["image"].shape == (8, 3, 8, 8) and len(batch["index"]) == 4
        assert not batch["image"].is_fully_addressable
        seen += batch["index"].tolist()
print("seen", *seen)
"""


def test_processes_make_one_array_of_their_rows(images: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start(PROCESSES, images, str(rank), address) for rank in range(2)]
    with at_most(100, "two processes"):
        said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    seen = [set(out.split("seen")[1].split()) for out, _ in said]
    assert len(seen[0]) == len(seen[1]) == 28 and not seen[0] & seen[1]


def start(text: str, *arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def script(text: str, *arguments: str | Path, **settings: str) -> str:
    with at_most(100, "the script"):
        process = start(text, *arguments, **settings)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
