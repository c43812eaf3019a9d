"""Sources in buckets, against a real S3 server on this machine (moto)."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import photographs
import pytest
from support import wait_until

if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
    pytest.skip("moto[server] is not installed", allow_module_level=True)

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

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


class Store:
    """A server with one bucket."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.cache = folder / "cache"
        self._log = folder / "requests.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        wait_until(self._answers, 60, "the S3 server answers")
        self.request("PUT", "bucket")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            self.request("GET", "moto-api/")
        except urllib.error.URLError:
            return False
        return True

    def request(self, method: str, path: str, body: bytes | None = None) -> None:
        """An unsigned request, as the one who fills the bucket makes it."""
        # Without a type urllib would call the body a form, which the server would then parse.
        kind = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=kind, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def upload(self, folder: Path, prefix: str) -> None:
        """All files below a folder."""
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            self.request("PUT", f"bucket/{prefix}{file.relative_to(folder)}", file.read_bytes())

    def bodies(self) -> int:
        """Objects fetched so far."""
        lines = self._log.read_text().splitlines()
        return sum('"GET /bucket/' in line for line in lines)

    def read(self, source: str) -> dict[str, object]:
        """What a process with credentials finds in a source."""
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(self.cache),
        }
        done = subprocess.run(
            [sys.executable, "-c", READ, source],
            env=environment,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.process.kill()
    store.process.wait()


def test_an_image_folder_in_a_bucket_is_the_one_on_disk_and_is_fetched_once(
    store: Store, images: Path
) -> None:
    store.upload(images, "data/train/")
    local = store.read(str(images))
    assert store.read("s3://bucket/data/train/") == local
    assert len(local["rows"]) == 61
    fetched = store.bodies()
    assert fetched == 61
    assert store.read("s3://bucket/data/train/") == local
    # The second run lists the folder (a GET of the bucket itself) and takes every image from the cache.
    assert store.bodies() == fetched


def test_shards_in_a_bucket_are_those_on_disk_and_are_fetched_once(store: Store, tmp_path: Path) -> None:
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
    local = store.read(f"{shards}/train-{{0..3}}.tar")
    assert len(local["rows"]) == 23
    assert store.read("s3://bucket/shards/train-{0..3}.tar") == local
    fetched = store.bodies()
    for source in ("s3://bucket/shards/train-*.tar", "s3://bucket/shards/train-{0..3}.tar"):
        assert store.read(source) == local
    assert store.bodies() == fetched


def test_what_is_missing_or_forbidden_is_named_and_secrets_are_not(store: Store, images: Path) -> None:
    store.upload(images, "data/")
    error = store.read("s3://bucket/shards/train-{0..3}.tar")["error"]
    assert "s3://bucket/shards/train-0.tar" in error
    error = store.read("s3://elsewhere/data/")["error"]
    assert "s3://elsewhere/data" in error
    # From here on the server checks signatures, and knows no such key.
    store.request("POST", "moto-api/reset-auth", b"0")
    error = store.read("s3://bucket/data/")["error"]
    assert "403" in error and "AWS_ACCESS_KEY_ID" in error and "s3://bucket/data" in error
