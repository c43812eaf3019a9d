"""The same images in every kind of source, written by other people's libraries."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fuelrail import Mix, Source
from PIL import Image


def members(folder: Path) -> Iterator[tuple[str, int, str, bytes]]:
    """(key, label, class, bytes) of an image folder, in fuelrail's order."""
    classes = sorted(path.name for path in folder.iterdir())
    for label, name in enumerate(classes):
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (str(path.parent), path.name)):
            yield str(path.relative_to(folder)), label, name, path.read_bytes()


def beside(data: bytes, number: int) -> dict[str, bytes]:
    """A mask, a caption and a JSON member that go with an image."""
    mask = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("L").point(lambda level: level // 64).save(mask, "PNG")
    meta = {"caption": f"number {number}", "boxes": [[1, 2, 3.5, 4]] * (1 + number % 3)}
    return {
        "seg.png": mask.getvalue(),
        "txt": f"photograph {number}".encode(),
        "json": json.dumps(meta).encode(),
    }


def tar(
    folder: Path, into: Path, *, shards: int = 4, suffix: str = "", named: bool = False, parts: bool = False
) -> Source:
    """WebDataset shards with a .cls member (the class's number, or its name), by Python's tarfile; with `parts` also
    what `beside` makes."""
    records = list(members(folder))
    for shard in range(shards):
        mode: Any = "w:gz" if suffix == ".gz" else "w"
        path = into / f"train-{shard:03}.tar{suffix.removesuffix('.zst')}"
        with tarfile.open(path, mode) as archive:
            for number in range(shard * len(records) // shards, (shard + 1) * len(records) // shards):
                _, label, name, data = records[number]
                ending = "png" if data.startswith(b"\x89PNG") else "jpg"
                for member, content in (
                    (f"{number:05}.{ending}", data),
                    (f"{number:05}.cls", (name if named else str(label)).encode()),
                    *(
                        (f"{number:05}.{other}", part)
                        for other, part in (beside(data, number) if parts else {}).items()
                    ),
                ):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        if suffix == ".zst":
            import zstandard

            path.with_name(path.name + suffix).write_bytes(zstandard.compress(path.read_bytes()))
            path.unlink()
    return Source(f"{into}/train-{{000..{shards - 1:03}}}.tar{suffix}")


def rows(whole: Any, parts: int) -> int:
    """Records of a row group, a record batch or a chunk, when there are to be about this many of them."""
    return max(1, len(whole) // parts)


def chunked(whole: Any, row: tuple[int, ...] = ()) -> dict[str, Any]:
    """h5py's argument for chunks of a few records; a data set without records can have none."""
    return {"chunks": (rows(whole, 8), *row), "maxshape": (None, *row)}


def table(folder: Path) -> Any:
    """As an Arrow table in Hugging Face's layout: a struct of bytes and path, and a label."""
    import pyarrow as pa

    records = list(members(folder))
    images = [{"bytes": data, "path": key} for key, _, _, data in records]
    schema = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    boxes = [[float(number), 1.0, 2.0, 3.0] for number in range(len(records))]
    return pa.table(
        {
            "image": pa.array(images, schema),
            "label": pa.array([label for _, label, _, _ in records], pa.int64()),
            "box": pa.array(boxes, pa.list_(pa.float32(), 4)),
        }
    )


def parquet(folder: Path, into: Path) -> Source:
    """Three Parquet files with small row groups, by pyarrow."""
    import pyarrow.parquet as pq

    whole = table(folder)
    for part in range(3):
        begin, end = part * len(whole) // 3, (part + 1) * len(whole) // 3
        pq.write_table(
            whole.slice(begin, end - begin), into / f"part-{part}.parquet", row_group_size=rows(whole, 12)
        )
    return Source(f"{into}/part-{{0..2}}.parquet")


def arrow(folder: Path, into: Path) -> Source:
    """An Arrow IPC file, by pyarrow."""
    import pyarrow as pa

    whole = table(folder)
    with pa.OSFile(str(into / "data.arrow"), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=rows(whole, 9))
    return Source(into / "data.arrow")


def csv_beside(folder: Path, into: Path) -> Source:
    """A CSV file of paths and labels, beside the images."""
    link_or_copy(folder, into / "images")
    with (into / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((f"images/{key}", label) for key, label, _, _ in members(folder))
    return Source(into / "list.csv")


def jsonl(folder: Path, into: Path) -> Source:
    """A JSONL file of paths and class names; the images are elsewhere."""
    link_or_copy(folder, into / "images")
    with (into / "list.jsonl").open("w") as file:
        for key, _, name, _ in members(folder):
            file.write(json.dumps({"path": key, "label": name}) + "\n")
    return Source(into / "list.jsonl", root=into / "images")


def copied(folder: Path, into: Path) -> Source:
    """The folder itself."""
    link_or_copy(folder, into / "images")
    return Source(into / "images")


def link_or_copy(folder: Path, into: Path) -> None:
    """A copy whose files may be damaged without touching the originals; links where there are too many to copy."""
    many = sum(1 for _ in folder.rglob("*")) > 1000
    shutil.copytree(folder, into, copy_function=os.link if many else shutil.copy2)


def hdf5(folder: Path, into: Path) -> Source:
    """JPEG and PNG bytes of varying length and labels, by h5py."""
    import h5py

    records = list(members(folder))
    with h5py.File(into / "data.h5", "w") as file:
        images = file.create_dataset("images", (len(records),), h5py.vlen_dtype(np.uint8), **chunked(records))
        for number, (_, _, _, data) in enumerate(records):
            images[number] = np.frombuffer(data, np.uint8)
        file.create_dataset("labels", data=np.array([label for _, label, _, _ in records], np.int64))
    return Source(into / "data.h5", image="images", label="labels")


def pixels(folder: Path, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images (N, side, side, 3) uint8 and labels (N,), for the kinds that hold arrays."""
    images, labels = [], []
    for _, label, _, data in members(folder):
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side))
        images.append(np.asarray(picture))
        labels.append(label)
    return np.array(images, np.uint8).reshape(-1, side, side, 3), np.array(labels, np.int64)


def npz(folder: Path, into: Path) -> Source:
    """An npz archive of pixels and labels, by numpy."""
    images, labels = pixels(folder)
    np.savez(into / "data.npz", x=images, y=labels)
    return Source(into / "data.npz", image="x", label="y")


def npy(folder: Path, into: Path) -> Source:
    """Two npy files, by numpy."""
    images, labels = pixels(folder)
    np.save(into / "images.npy", images)
    np.save(into / "labels.npy", labels)
    return Source(into / "images.npy", label="labels.npy")


def hdf5_pixels(folder: Path, into: Path) -> Source:
    """Chunked, compressed pixels and labels, by h5py."""
    import h5py

    images, labels = pixels(folder)
    with h5py.File(into / "pixels.h5", "w") as file:
        file.create_dataset(
            "images", data=images, compression="gzip", shuffle=True, **chunked(images, images.shape[1:])
        )
        file.create_dataset("labels", data=labels)
    return Source(into / "pixels.h5", image="images", label="labels")


def documents(folder: Path) -> list[list[int]]:
    """Token ids of a document for each image: some of its bytes."""
    return [list(data[: 3 + 7 * at % 40]) for at, (_, _, _, data) in enumerate(members(folder))]


def tokens(folder: Path, into: Path, mode: str) -> Source:
    """Parquet with a list of ids a row, by pyarrow; padded, or packed into records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.table({"input_ids": pa.array(documents(folder), pa.list_(pa.int32()))})
    pq.write_table(ids, into / "text.parquet", row_group_size=rows(ids, 7))
    return Source(into / "text.parquet", tokens={"column": "input_ids", "length": 16, "mode": mode})


def raw_tokens(folder: Path, into: Path) -> Source:
    """One long line of uint16 ids, as nanoGPT writes it."""
    line = [token for document in documents(folder) for token in document]
    np.array(line, np.uint16).tofile(into / "train.bin")
    return Source(into / "train.bin", tokens={"length": 16})


def mix(folder: Path, into: Path) -> Mix:
    """Tar shards and a table of the same images as one source, each record once."""
    return Mix({"shards": tar(folder, made(into / "shards")), "rows": parquet(folder, made(into / "rows"))})


def weighted_mix(folder: Path, into: Path) -> Mix:
    """A folder and a list of files, drawn three to one."""
    parts = {"folder": copied(folder, made(into / "folder")), "list": jsonl(folder, made(into / "list"))}
    return Mix(parts, weights={"folder": 3, "list": 1})


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def split(folder: Path, into: Path) -> Source:
    """Seven tenths of tar shards, by a hash of each key."""
    return Source(tar(folder, into)._addresses, split="train[:70%]")


def where(folder: Path, into: Path) -> Source:
    """The rows of Parquet files that fulfil a condition."""
    return Source(parquet(folder, into)._addresses, where="label >= 1")


def synthetic(folder: Path, into: Path) -> Source:
    """Procedural images, as many as the folder has."""
    return Source(f"synthetic://?count={sum(1 for _ in members(folder))}&width=24&height=24&classes=3")


@dataclass(frozen=True)
class Kind:
    """One kind of source, and what a test has to know of it."""

    make: Callable[[Path, Path], Source | Mix]
    #: What its records hold: the folder's own "files" in their order, "pixels", "tokens", or "other" images.
    holds: str = "files"
    #: Further options of the loader; a function is given the number of records.
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def once(self) -> bool:
        """Whether an epoch is every record once."""
        return not self.options and self.make is not weighted_mix


KINDS: dict[str, Kind] = {
    "folder": Kind(copied),
    "tar": Kind(tar),
    "tar.gz": Kind(lambda folder, into: tar(folder, into, suffix=".gz")),
    "tar.zst": Kind(lambda folder, into: tar(folder, into, suffix=".zst")),
    "parquet": Kind(parquet),
    "arrow": Kind(arrow),
    "csv": Kind(csv_beside),
    "jsonl": Kind(jsonl),
    "hdf5": Kind(hdf5),
    "hdf5 pixels": Kind(hdf5_pixels, "pixels"),
    "npy": Kind(npy, "pixels"),
    "npz": Kind(npz, "pixels"),
    "raw tokens": Kind(raw_tokens, "tokens"),
    "padded tokens": Kind(lambda folder, into: tokens(folder, into, "pad"), "tokens"),
    "packed tokens": Kind(lambda folder, into: tokens(folder, into, "pack"), "tokens"),
    "mix": Kind(mix, "other"),
    "weighted mix": Kind(weighted_mix, "other"),
    "class-balanced": Kind(copied, "other", {"sampling": "class_balanced"}),
    "class shares": Kind(tar, "other", {"sampling": {"0": 1, "1": 2, "2": 5}}),
    "weights": Kind(parquet, "other", {"weights": lambda count: np.linspace(0, 1, count)}),
    "split": Kind(split, "other"),
    "where": Kind(where, "other"),
    "repeats": Kind(copied, "other", {"repeats": 2}),
    "synthetic": Kind(synthetic, "other"),
}
