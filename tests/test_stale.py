"""A Loader sees its source as it is when it is made, also while an older one of the same source lives."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import Mix, Source
from fuelrail.errors import FuelrailError, TokenError
from fuelrail.numpy import Loader
from PIL import Image
from support import TINY

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(shade: int, side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def folder(root: Path, version: int) -> Any:
    """One picture more."""
    for at in range(3 + version):
        path = root / "set" / f"class{at % 2}" / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(at))
    return root / "set"


def replaced(root: Path, version: int) -> Any:
    """One picture of another size in bytes."""
    folder(root, 0)
    (root / "set" / "class0" / "0.png").write_bytes(png(0, 8 + 8 * version))
    return root / "set"


def renamed(root: Path, version: int) -> Any:
    """A class folder of another name, which changes labels."""
    folder(root, 0)
    if version:
        (root / "set" / "class0").rename(root / "set" / "zebra")
    return root / "set"


def table(root: Path, version: int) -> Any:
    """A label corrected in place: the file keeps its length."""
    folder(root, 1)
    rows = [f"set/class{at % 2}/{at}.png,{1 if at == 2 else version}" for at in range(4)]
    (root / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return root / "list.csv"


def table_of_replaced(root: Path, version: int) -> Any:
    """The table stays, a picture of it changes."""
    address = table(root, 0)
    (root / "set" / "class0" / "0.png").write_bytes(png(0, 8 + 8 * version))
    return address


def shard(path: Path, labels: list[int], *, keep_time: bool = False) -> None:
    times = path.stat() if keep_time and path.exists() else None
    with tarfile.open(path, "w") as out:
        for at, label in enumerate(labels):
            for ending, data in (("png", png(at)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{at:03}.{ending}")
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    if times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def tar(root: Path, version: int) -> Any:
    """A label corrected: the shard keeps its length."""
    shard(root / "x-0.tar", [0, version, 1])
    return root / "x-*.tar"


def tar_in_place(root: Path, version: int) -> Any:
    """The same, and the file gets its old time back, as rsync does."""
    shard(root / "x-0.tar", [0, version, 1], keep_time=True)
    return root / "x-*.tar"


def one_tar_more(root: Path, version: int) -> Any:
    for at in range(1 + version):
        shard(root / f"x-{at}.tar", [0, at, 1])
    return root / "x-*.tar"


def parquet(root: Path, version: int) -> Any:
    images = [{"bytes": png(at)} for at in range(4)]
    pq.write_table(pa.table({"image": images, "label": [0, version, 1, 1]}), root / "x.parquet")
    return root / "x.parquet"


def npz(root: Path, version: int) -> Any:
    x = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez_compressed(root / "x.npz", x=x, y=np.array([0, version, 1, 1]))
    return root / "x.npz"


def npy(root: Path, version: int) -> Any:
    """Labels that come to lie beside the images."""
    np.save(root / "x.npy", np.zeros((4, 8, 8, 3), np.uint8))
    if version:
        np.save(root / "labels.npy", np.array([0, 1, 1, 0]))
    return root / "x.npy"


def mixture(root: Path, version: int) -> Any:
    (root / "other").mkdir(exist_ok=True)
    for at in range(2):
        part = root / "other" / f"class{at}"
        part.mkdir(exist_ok=True)
        (part / "0.png").write_bytes(png(9))
    return Mix({"a": str(folder(root, version)), "b": str(root / "other")})


def subset(root: Path, version: int) -> Any:
    (root / "x").mkdir(exist_ok=True)
    shard(root / "x" / "0.tar", [0, version] * 10)
    return Source(root / "x" / "0.tar", split="train[:50%]", cache_dir=root / "cache")


KINDS: list[Callable[[Path, int], Any]] = [
    folder,
    replaced,
    renamed,
    table,
    table_of_replaced,
    tar,
    tar_in_place,
    one_tar_more,
    parquet,
    npz,
    npy,
    mixture,
    subset,
]


def settle(root: Path) -> None:
    """Files that were written long ago, as far as their times say; their last change of any kind cannot be set back."""
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))


def labels_of(batch: Any) -> list[int | None]:
    return batch["label"].tolist() if "label" in batch.keys() else [None] * batch.rows  # noqa: SIM118


def contents(loader: Any) -> tuple[Any, ...]:
    rows = [row for batch in loader for row in zip(batch["index"].tolist(), labels_of(batch), strict=True)]
    return (loader.classes, rows)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("age", ["new", "old"])
def test_a_new_loader_sees_the_files_as_they_are(kind: Any, age: str, tmp_path: Path) -> None:
    def make() -> Any:
        return Loader(
            source, transforms=TINY, batch_size=2, cache_dir=None if wrapped else tmp_path / "cache"
        )

    source = kind(tmp_path, 0)
    wrapped = isinstance(source, Source | Mix)
    if age == "old":
        settle(tmp_path)
    with make() as old:
        before, state = contents(old), old.state_dict()
        with make() as again:
            assert contents(again) == before
            again.load_state_dict(state)
        kind(tmp_path, 1)
        with make() as new:
            after = contents(new)
            with pytest.raises(TokenError):
                new.load_state_dict(state)
    with make() as alone:
        assert contents(alone) == after
    if kind not in (replaced, table_of_replaced):
        assert before != after


def test_a_file_that_changes_between_two_ranks_is_no_silent_difference(tmp_path: Path) -> None:
    address = table(tmp_path, 0)

    def rank(number: int) -> Any:
        return Loader(address, transforms=TINY, rank=number, world_size=2)

    with rank(0):
        table(tmp_path, 1)
        with pytest.raises(FuelrailError, match=r"rank 1 sees different data .* Restart all ranks"):
            rank(1)
        # Both again, as after a restart.
        with rank(0) as first, rank(1) as second:
            assert contents(first)[0] == contents(second)[0]


def test_ranks_share_what_they_opened_together(tmp_path: Path) -> None:
    address = folder(tmp_path, 1)
    with (
        Loader(address, transforms=TINY, rank=0, world_size=2) as first,
        Loader(address, transforms=TINY, rank=1, world_size=2) as second,
    ):
        assert first.daemon_pid == second.daemon_pid
        assert first.num_samples == second.num_samples == 4
