"""Sources in buckets, against servers on this machine that speak as Amazon (moto), Google and Azure do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import photographs
import pytest
from fuelrail.numpy import transforms as T
from stores import SECRET, STORES, Azure, Server, running
from support import Loader, row_digests

#: Opens a source in a process whose environment has the credentials, as a training script does, and says what it held.
READ = """
import json, sys
from fuelrail.errors import FuelrailError
from fuelrail.numpy import Loader, transforms as T
from support import row_digests
try:
    with Loader(sys.argv[1], transforms=[T.Resize((16, 16))], batch_size=8, drop_last=False) as loader:
        print(json.dumps({"rows": row_digests(loader), "classes": loader.classes}))
except FuelrailError as error:
    print(json.dumps({"error": str(error)}))
"""


def read(store: Server, source: str) -> dict[str, object]:
    """What a process with the store's credentials finds in a source."""
    environment = {**os.environ, **store.environment, "XDG_CACHE_HOME": str(store.folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", READ, source],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr and Azure.KEY not in done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A store of the kind that the test names, S3 unless it names one."""
    with running(getattr(request, "param", "s3"), tmp_path / "store") as store:
        yield store


every_store = pytest.mark.parametrize("store", STORES, indirect=True)


def test_credentials_that_are_set_after_the_first_loader_was_made_are_used(
    store: Server, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: the daemon of the first loader was born without them."""
    store.upload(images, "data/")
    options = {"transforms": [T.Resize((16, 16))], "batch_size": 8, "drop_last": False}
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.folder / "cache"))
    with Loader(images, **options) as first:
        rows = iter(first)
        begun = [next(rows)]
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        with Loader(f"{store.address}data/", **options) as second:
            assert row_digests(second) == row_digests([*begun, *rows])


@every_store
def test_an_image_folder_in_a_bucket_is_the_one_on_disk_and_is_fetched_once(
    store: Server, images: Path
) -> None:
    store.upload(images, "data/train/")
    local = read(store, str(images))
    assert read(store, f"{store.address}data/train/") == local
    assert len(local["rows"]) == 61
    fetched = store.bodies()
    assert fetched == 61
    assert read(store, f"{store.address}data/train/") == local
    # The second run lists the folder (a GET of the bucket itself) and takes every image from the cache.
    assert store.bodies() == fetched


@every_store
def test_shards_in_a_bucket_are_those_on_disk_and_are_fetched_once(store: Server, tmp_path: Path) -> None:
    pictures = photographs.folder(tmp_path / "pictures", 23, seed=3)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(4):
        with tarfile.open(shards / f"train-{number}.tar", "w") as tar:
            for at, picture in enumerate(sorted(pictures.rglob("*.*"))[number::4]):
                name = f"{number}-{at:04}"
                tar.add(picture, f"{name}{picture.suffix}")
                (tmp_path / "label").write_text(str(at % 3))
                tar.add(tmp_path / "label", f"{name}.cls")
    store.upload(shards, "shards/")
    local = read(store, f"{shards}/train-{{0..3}}.tar")
    assert len(local["rows"]) == 23
    assert read(store, f"{store.address}shards/train-{{0..3}}.tar") == local
    fetched = store.bodies()
    for source in (f"{store.address}shards/train-*.tar", f"{store.address}shards/train-{{0..3}}.tar"):
        assert read(store, source) == local
    assert store.bodies() == fetched


def test_what_is_missing_or_forbidden_is_named_and_secrets_are_not(store: Server, images: Path) -> None:
    store.upload(images, "data/")
    error = read(store, "s3://bucket/shards/train-{0..3}.tar")["error"]
    assert "s3://bucket/shards/train-0.tar" in error
    error = read(store, "s3://elsewhere/data/")["error"]
    assert "s3://elsewhere/data" in error
    # From here on the server checks signatures, and knows no such key.
    store.request("POST", "moto-api/reset-auth", b"0")
    error = read(store, "s3://bucket/data/")["error"]
    assert "403" in error and "AWS_ACCESS_KEY_ID" in error and "s3://bucket/data" in error
