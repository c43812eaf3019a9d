"""Tar shards beside the tools that others read them with: Python's tarfile and the webdataset package."""

from __future__ import annotations

import io
import json
import os
import random
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import DataError, Source
from fuelrail import transforms as T
from fuelrail.numpy import Loader
from support import fuelrail, wait_until


def listing(source: str | Path, cache: Path, *options: str) -> list[dict[str, Any]]:
    """What fuelrail reads: a row a record."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    result = fuelrail("inspect", "--list", source, *[f"-o{option}" for option in options], env=environment)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def pack(path: Path, members: list[tuple[str, bytes]], **options: Any) -> Path:
    """A tar file of members."""
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(rng: random.Random, count: int) -> list[tuple[str, bytes]]:
    """Records as webdataset's writers lay them out, and members that are nobody's between them."""
    members: list[tuple[str, bytes]] = [("__meta__/info.json", b"{}"), ("README", b"not a record")]
    for number in range(count):
        folder = rng.choice(["", "a/", "a.b/", "deep/er/" + "x" * 90 + "/"])
        key = f"{folder}{number:05}{rng.choice(['', '-é', ' blank'])}"
        parts = [
            ("cls", str(rng.randrange(10)).encode()),
            ("json", json.dumps({"box": [number, 1, 2, 3]}).encode()),
            (
                rng.choice(["jpg", "JPG", "jpeg", "png"]),
                rng.randbytes(rng.choice([0, 1, 511, 512, 513, 9000])),
            ),
            ("seg.png", rng.randbytes(20)),
        ]
        rng.shuffle(parts)
        members += [(f"{key}.{ending}", data) for ending, data in parts]
    return members


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.zst"])
def test_records_are_those_that_webdataset_finds(
    form: int, ending: str, tmp_path: Path, rng: random.Random
) -> None:
    try:
        from webdataset.tariterators import group_by_keys, tar_file_iterator
    except ImportError:
        pytest.skip("the package webdataset is not installed")
    for shard in range(3):
        path = pack(tmp_path / f"plain-{shard}", samples(rng, 40), format=form)
        if ending == "tar.gz":
            import gzip

            (tmp_path / f"train-{shard}.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        elif ending == "tar.zst":
            zstandard = pytest.importorskip("zstandard", reason="the package zstandard is not installed")
            compressor = zstandard.ZstdCompressor()
            (tmp_path / f"train-{shard}.tar.zst").write_bytes(compressor.compress(path.read_bytes()))
        else:
            (tmp_path / f"train-{shard}.tar").write_bytes(path.read_bytes())
    expected = []
    for shard in range(3):
        with (tmp_path / f"plain-{shard}").open("rb") as file:
            members = ({"__url__": "", **member} for member in tar_file_iterator(file))
            for sample in group_by_keys(members):
                image = next((name for name in ("jpg", "jpeg", "png") if name in sample), None)
                if image:
                    data = sample[image]
                    expected.append((sample["__key__"], int(sample["cls"]), len(data), zlib.crc32(data)))
    found = listing(f"{tmp_path}/train-{{0..2}}.{ending}", tmp_path / "cache")
    rows = []
    for row in found:
        shard, _, name = row["key"].partition(f".{ending}/")
        folder, slash, base = name.rpartition("/")
        rows.append((folder + slash + base.split(".")[0], row["label"], row["bytes"], row["crc32"]))
    assert len(expected) == 120
    assert rows == expected


def test_fields_come_behind_the_image(tmp_path: Path, rng: random.Random) -> None:
    members = samples(rng, 20)
    shard = pack(tmp_path / "a.tar", members)
    plain = listing(shard, tmp_path / "cache")
    with_box = listing(shard, tmp_path / "cache", 'fields=["json:box"]')
    assert [row["bytes"] + 32 for row in plain] == [row["bytes"] for row in with_box]
    images = {name: data for name, data in members if name.lower().endswith((".jpg", ".jpeg", ".png"))}
    for row in with_box:
        name = row["key"].removeprefix("a.tar/")
        number = int(name.rpartition("/")[2][:5])
        box = b"".join(value.to_bytes(8, "little") for value in (number, 1, 2, 3))
        assert row["crc32"] == zlib.crc32(images[name] + box)


def test_nothing_is_written_under_the_name_of_a_member(tmp_path: Path) -> None:
    # "Zip slip": names that would leave the folder if anything were unpacked under them.
    names = ["../../evil.jpg", "/tmp/evil.jpg", "a/../../evil2.jpg"]
    shard = pack(tmp_path / "shards.tar", [(name, b"image") for name in names], format=tarfile.GNU_FORMAT)
    compressed = tmp_path / "shards.tar.gz"
    import gzip

    compressed.write_bytes(gzip.compress(shard.read_bytes()))
    for path in (shard, compressed):
        keys = [row["key"] for row in listing(path, tmp_path / "cache")]
        # tarfile leaves names as they are, too, and so do keys; they are names of records and of no file.
        assert keys == [f"{path.name}/{name}" for name in names]
    found = [path for path in tmp_path.rglob("*") if "evil" in path.name]
    assert not found


def test_a_shard_that_is_none_is_named_with_the_byte(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.tar", [("a.jpg", b"x" * 2000), ("b.jpg", b"y" * 2000)]).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:3000])
    link = tmp_path / "link.tar"
    with tarfile.open(link, "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type = tarfile.SYMTYPE
        info.linkname = "/etc/passwd"
        archive.addfile(info)
    for path, expected in [(cut, "byte 2560"), (link, "symbolic link")]:
        result = fuelrail("inspect", path, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert result.returncode == 1
        assert path.name in result.stderr
        assert expected in result.stderr


def npy(values: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, np.int32))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"emb.npy": None}, 'it has no member ending in "emb.npy", so no field "emb"'),
        ({"emb.npy": npy([1, 2, 3])}, 'field "emb" (member ".emb.npy"): it is i32 of shape [3]'),
        ({"json": b'{"box": null}'}, 'field "box" ("box" in member ".json"): it holds null'),
        ({"json": b'{"other": 1}'}, 'it has no "box" in a json member'),
        ({"JSON": b'{"box": [1, 2]}'}, 'it has two members with the ending "json"'),
    ],
)
@pytest.mark.parametrize("at", [0, 5])
def test_a_record_without_its_field_is_one_bad_record(
    bad: dict[str, bytes | None], reason: str, at: int, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    members: list[tuple[str, bytes]] = []
    for row in range(8):
        picture = io.BytesIO()
        image.new("RGB", (8, 8), (row, row, row)).save(picture, "PNG")
        parts: dict[str, bytes | None] = {
            "cls": str(row).encode(),
            "emb.npy": npy([row, 1]),
            "json": json.dumps({"box": [row, 2]}).encode(),
            "png": picture.getvalue(),
        }
        parts |= bad if row == at else {}
        members += [(f"{row}.{ending}", data) for ending, data in parts.items() if data is not None]
    shard = pack(tmp_path / "a.tar", members)

    def load(**options: Any) -> Loader:
        source = Source(shard, fields=["emb.npy", "json:box"], cache_dir=tmp_path / "cache")
        return Loader(source, batch_size=8, transforms=[T.Resize((8, 8))], error_budget=8, **options)

    good = [row for row in range(8) if row != at]
    with load(on_error="drop") as loader:
        batch = next(iter(loader))
        assert (loader.num_samples, batch.dropped) == (8, 1)
        assert batch["index"].tolist() == batch["label"].tolist() == good
        assert batch["image"][:, 0, 0, 0].tolist() == good
        assert batch["emb"].tolist() == [[row, 1] for row in good]
        assert batch["box"].tolist() == [[row, 2] for row in good]
    with load(on_error="substitute", quarantine=tmp_path / "bad.jsonl") as loader:
        batch = next(iter(loader))
        assert batch["substituted"].tolist() == [row == at for row in range(8)]
        assert [batch["index"][row] for row in good] == good
    (noted,) = (json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (noted["index"], noted["key"]) == (at, f"a.tar/{at}.png")
    assert reason in noted["reason"]
    with load(on_error="fail") as loader, pytest.raises(DataError, match=re.escape(f"a.tar/{at}.png")):
        next(iter(loader))


def test_keys_without_an_image_are_counted_each_time_a_shard_is_opened(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", [("1.jpg", b"x"), ("2.txt", b"x"), ("3.heic", b"x")])

    def warned() -> None:
        result = fuelrail(
            "inspect", "--list", shard, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        )
        assert result.stderr.count("2 keys in the shards have no image") == 1, result.stderr
        assert 'like "2.txt"' in result.stderr

    # A shard that was written just now is not remembered: it may change again without its times showing it.
    def is_kept() -> bool:
        warned()
        return bool(list((tmp_path / "cache").rglob("*.index*")))

    wait_until(is_kept, 60, "an index that is kept")
    warned()
