"""The examples of the documents run: their Python on small data, their commands as far as names and flags go."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import formats
import numpy as np
import photographs
import pytest
import stores
from fuelrail import ConfigError, LoaderTimeout, Mix, Source, SourceError
from PIL import Image

torch = pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")
pytest.importorskip("onnxruntime")
pa = pytest.importorskip("pyarrow")

import fuelrail.torch  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from fuelrail import transforms as T  # noqa: E402
from fuelrail.options import OF_DEVICES  # noqa: E402

ROOT = Path(__file__).parents[1]

#: Batches of a loop that are enough.
ENOUGH = 3

#: Nothing answers at these addresses; all else is on this machine.
ELSEWHERE = ("https:", "az:", "kafka:")

#: What then comes of a loader, when none of its arguments is wrong.
UNREACHED = re.compile("Connection refused|lookup address|No Kafka broker answers", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """One fenced piece of a document."""

    document: Path
    line: int
    text: str


def blocks(language: str) -> list[Any]:
    """All blocks of a language, as parameters that name document and line."""
    found = []
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = document.read_text()
        for fence in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            block = Block(document, text.count("\n", 0, fence.start(1)) + 1, fence[1])
            found.append(pytest.param(block, id=f"{document.name}:{block.line}"))
    return found


# What the examples find -----------------------------------------------------------------------------------------------


def folders(place: Path) -> None:
    """An image folder, the same as a list of files, and tar shards."""
    few = photographs.folder(place / "data" / "train", 12, seed=1, least=24, most=40)
    many = photographs.folder(place / "photos", 128, seed=2, least=24, most=40)
    formats.link_or_copy(few, place / "images")
    rows = [f"{key},{name}\n" for key, _, name, _ in formats.members(few)]
    (place / "list.csv").write_text("path,label\n" + "".join(rows))
    captions = [
        f"photos/{key},{name},{at / 128},{['en', 'de'][at % 2]}\n"
        for at, (key, _, name, _) in enumerate(formats.members(many))
    ]
    (place / "captions.csv").write_text("path,label,score,lang\n" + "".join(captions))
    annotation = {"boxes": [[0, 0, 8, 8]]}
    pairs = [
        {"path": key, "caption": f"a {name}", "annotation": annotation}
        for key, _, name, _ in formats.members(few)
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    formats.tar(many, formats.made(place / "shards"), shards=128, parts=True)
    formats.tar(few, formats.made(place / "web"), shards=2, named=True)


def pairs(place: Path) -> None:
    """Images with captions and boxes beside them, and masks in a parallel folder."""
    images = photographs.folder(place / "images", 16, seed=3, least=24, most=40).rglob("*")
    for image in [image for image in images if image.is_file()]:
        image.with_suffix(".txt").write_text(f"a picture of {image.parent.name}")
        image.with_suffix(".json").write_text('{"boxes": [[1, 2, 3, 4]]}')
        mask = place / "masks" / image.relative_to(place / "images").with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(image) as picture:
            picture.convert("L").save(mask)


def tables(place: Path) -> None:
    """Parquet files of images, labels and boxes, and two of tokens."""
    whole = formats.table(place / "photos")
    for part in range(128):
        pq.write_table(whole.slice(part, 1), place / "data" / f"train-{part:03}.parquet")
    ids = pa.array([list(range(number)) for number in range(900, 910)], pa.list_(pa.int32()))
    pq.write_table(pa.table({"ids": ids}), place / "text.parquet")
    pq.write_table(pa.table({"input_ids": ids}), place / "docs.parquet")


def arrays(place: Path) -> None:
    """Pixels, labels and numbers in HDF5 and numpy files, and a line of tokens."""
    images, labels = formats.pixels(place / "photos")
    np.savez(place / "train.npz", x=images, y=labels)
    np.save(place / "images.npy", images)
    captions = np.array([f"picture {row}" for row in range(len(images))])
    boxes = np.ones((len(images), 3, 4), np.float32)
    np.savez(place / "pairs.npz", x=images, caption=captions, mask=images[..., 0], boxes=boxes)
    for folder in (place, place / "shards"):
        np.save(folder / "labels.npy", labels)
    for part in range(32):
        np.save(place / "shards" / f"images-{part:03}.npy", images[4 * part : 4 * part + 4])
    with h5py.File(place / "data.h5", "w") as file:
        for name, values in {"images": images, "y": labels, "labels": labels}.items():
            file[f"train/{name}"] = values
    with h5py.File(place / "pairs.h5", "w") as file:
        file["train/images"] = images
        file["train/caption"] = captions.tolist()
        flat = file.create_dataset("train/boxes", (len(images),), h5py.vlen_dtype(np.float32))
        for row in range(len(images)):
            flat[row] = np.ones(4 * (row % 3), np.float32)
    with h5py.File(place / "features.h5", "w") as file:
        file["train/features"] = np.zeros((len(labels), 7), np.float32)
    np.arange(5000, dtype=np.uint16).tofile(place / "train.bin")


def annotated(place: Path) -> None:
    """COCO's annotations and YOLO's labels of a few images."""
    folder, labels = place / "yolo" / "images" / "train", place / "yolo" / "labels" / "train"
    data: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    for path in (folder, labels, place / "coco" / "train2017", place / "coco" / "annotations"):
        path.mkdir(parents=True)
    for number in range(20):
        name = f"{number:04}.jpg"
        image = Image.new("RGB", (60, 40), (number, 90, 90))
        image.save(folder / name)
        image.save(place / "coco" / "train2017" / name)
        (labels / f"{number:04}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
        data["images"].append({"id": number, "file_name": name, "width": 60, "height": 40})
        data["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [9, 9, 30, 20]}
        )
    (place / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(data))


def training(place: Path) -> None:
    """Images to measure on, and a run that has ended and was exported."""
    photographs.folder(place / "data" / "val", 12, seed=4, least=24, most=40)
    given = ["--data", "data/train", "--out", "runs/first", "--model", "small_cnn", "--size", "32"]
    command = [sys.executable, "-m", "fuelrail", "train", *given, "--epochs", "1", "--log-every", "1"]
    subprocess.run(
        [*command, "--val", "data/val", "--track", "none"], cwd=place, check=True, capture_output=True
    )
    export = [sys.executable, "-m", "fuelrail", "export", "runs/first"]
    subprocess.run(export, cwd=place, check=True, capture_output=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    place = tmp_path_factory.mktemp("documents")
    folders(place)
    pairs(place / "pairs")
    tables(place)
    arrays(place)
    annotated(place)
    training(place)
    return place


@pytest.fixture(scope="module")
def servers(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two object stores with a bucket each. Gives the environment in which they are found."""
    with ExitStack() as running:
        s3, google = (
            running.enter_context(stores.running(name, tmp_path_factory.mktemp(name)))
            for name in ("s3", "gs")
        )
        for shard in sorted((place / "shards").glob("*.tar")):
            s3.put(f"imagenet/{shard.name}", shard.read_bytes())
        s3.upload(place / "web", "")
        google.put("tables/train-000.parquet", (place / "data" / "train-000.parquet").read_bytes())
        azure = {
            "AZURE_STORAGE_ACCOUNT_NAME": stores.Azure.ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": stores.Azure.KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:9/{stores.Azure.ACCOUNT}",
        }
        yield {**s3.environment, **google.environment, **azure}


# What the examples call -----------------------------------------------------------------------------------------------


class Few(fuelrail.torch.Loader):
    """A loader whose epochs are short."""

    looked_at = False

    def __iter__(self) -> Iterator[Any]:
        self.looked_at = True
        return itertools.islice(super().__iter__(), ENOUGH)


class Loaders:
    """`Loader` as an example calls it, with what it leaves out."""

    def __init__(self) -> None:
        self.opened: list[Few] = []

    def __call__(self, source: Any, **options: Any) -> Any:
        addresses = source._addresses if isinstance(source, Source) else [source]
        if str(addresses[0]).startswith(ELSEWHERE):
            return self._unreached(source, options)
        if options.get("device") == "cuda" and not torch.cuda.is_available():
            options = {name: value for name, value in options.items() if name not in OF_DEVICES}
        try:
            loader = Few(source, **options)
        except ConfigError as error:
            # Most examples leave the transforms to the reader.
            if "transforms" in options or "no fixed output size" not in str(error):
                raise
            loader = Few(source, **options, transforms=[T.Resize((16, 16))])
        self.opened.append(loader)
        return loader

    def _unreached(self, source: Any, options: dict[str, Any]) -> Any:
        """Gets as far as the network. Gives what has a loader's methods, and no others."""
        if not isinstance(options.get("fields"), dict):
            options = {"transforms": [T.Resize((16, 16))], **options}
        with pytest.raises((SourceError, LoaderTimeout)) as raised:
            Few(source, **options, timeout=1)
        assert isinstance(raised.value, LoaderTimeout) or UNREACHED.search(str(raised.value))
        loader = mock.create_autospec(Few, instance=True)
        loader.__iter__.return_value = iter([(torch.zeros(2, 3, 16, 16), torch.zeros(2))])
        loader.state_dict.return_value = {}
        return loader

    def close(self) -> None:
        for loader in self.opened:
            loader.close()


@pytest.mark.parametrize("block", blocks("python"))
def test_an_example_in_python_runs(
    block: Block, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if re.search(r'"(s3|gs|az)://', block.text):
        for name, value in request.getfixturevalue("servers").items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    monkeypatch.chdir(place)
    loaders = Loaders()
    monkeypatch.setattr(fuelrail.torch, "Loader", loaders)
    names = {
        "Loader": loaders,
        "Mix": Mix,
        "RandomResizedCrop": T.RandomResizedCrop,
        "Source": Source,
        "T": T,
        "due": lambda: True,
        "model": torch.nn.Linear(1, 1),
        "os": os,
        "save": lambda what: None,
        "state": {"stream": {"state": {"partitions": [{"images": [[0, 0, 5], [3, 0, 9]]}]}}},
        "time_for_a_checkpoint": True,
        "torch": torch,
        "train_step": lambda images, labels: None,
    }
    # Dots stand for what the reader adds.
    text = re.sub(r", (?:transforms=\[\.\.\.\]|\.\.\.(?=\)))", "", block.text)
    code = compile("\n" * (block.line - 1) + text, block.document, "exec")
    try:
        exec(code, names)
        for loader in loaders.opened:
            assert loader.looked_at or next(iter(loader))
    finally:
        loaders.close()


# Commands -------------------------------------------------------------------------------------------------------------


@cache
def manual(*command: str) -> str:
    """What a command says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", "fuelrail", *command, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("sh"))
def test_a_command_in_a_document_has_the_flags_it_is_given(block: Block) -> None:
    for line in block.text.splitlines():
        if not line.startswith("fuelrail "):
            continue
        _, command, *words = shlex.split(line, comments=True)
        assert re.search(rf"^  {command} ", manual(), re.MULTILINE), line
        for word in words:
            if flag := re.match(r"--?[a-z][a-z-]*", word):
                assert re.search(rf"(?<![\w-]){flag[0]}(?![\w-])", manual(command)), line
