"""The same images in every kind of source, written by other people's libraries."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuelrail import Source
from PIL import Image


def members(folder: Path) -> Iterator[tuple[str, int, str, bytes]]:
    """(key, label, class, bytes) of an image folder, in fuelrail's order."""
    classes = sorted(path.name for path in folder.iterdir())
    for label, name in enumerate(classes):
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (str(path.parent), path.name)):
            yield str(path.relative_to(folder)), label, name, path.read_bytes()


def tar(folder: Path, into: Path, *, shards: int = 4, suffix: str = "") -> Source:
    """WebDataset shards with a .cls member, by Python's tarfile."""
    records = list(members(folder))
    for shard in range(shards):
        mode: Any = "w:gz" if suffix == ".gz" else "w"
        with tarfile.open(into / f"train-{shard:03}.tar{suffix}", mode) as archive:
            for number in range(shard * len(records) // shards, (shard + 1) * len(records) // shards):
                _, label, _, data = records[number]
                ending = "png" if data.startswith(b"\x89PNG") else "jpg"
                for name, content in (
                    (f"{number:05}.{ending}", data),
                    (f"{number:05}.cls", str(label).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return Source(f"{into}/train-{{000..{shards - 1:03}}}.tar{suffix}")


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
        pq.write_table(whole.slice(begin, end - begin), into / f"part-{part}.parquet", row_group_size=5)
    return Source(into / "*.parquet")


def arrow(folder: Path, into: Path) -> Source:
    """An Arrow IPC file, by pyarrow."""
    import pyarrow as pa

    whole = table(folder)
    with pa.OSFile(str(into / "data.arrow"), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=7)
    return Source(into / "data.arrow")


def manifest(folder: Path, into: Path) -> Source:
    """A CSV file of paths and labels."""
    with (into / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((key, label) for key, label, _, _ in members(folder))
    return Source(into / "list.csv", root=folder)


def jsonl(folder: Path, into: Path) -> Source:
    """A JSONL file of paths and class names, beside the images."""
    copied = into / "images"
    shutil.copytree(folder, copied)
    with (into / "list.jsonl").open("w") as file:
        for key, _, name, _ in members(folder):
            file.write(json.dumps({"path": f"images/{key}", "label": name}) + "\n")
    return Source(into / "list.jsonl")


def hdf5(folder: Path, into: Path) -> Source:
    """JPEG and PNG bytes of varying length and labels, by h5py."""
    import h5py

    records = list(members(folder))
    with h5py.File(into / "data.h5", "w") as file:
        images = file.create_dataset("images", (len(records),), h5py.vlen_dtype(np.uint8), chunks=(8,))
        for number, (_, _, _, data) in enumerate(records):
            images[number] = np.frombuffer(data, np.uint8)
        file.create_dataset("labels", data=np.array([label for _, label, _, _ in records]))
    return Source(into / "data.h5", image="images", label="labels")


#: Every kind that holds the folder's own files.
FILES: dict[str, Callable[[Path, Path], Source]] = {
    "tar": tar,
    "tar.gz": lambda folder, into: tar(folder, into, suffix=".gz"),
    "parquet": parquet,
    "arrow": arrow,
    "csv": manifest,
    "jsonl": jsonl,
    "hdf5": hdf5,
}


def pixels(folder: Path, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images (N, side, side, 3) uint8 and labels (N,), for the kinds that hold arrays."""
    images, labels = [], []
    for _, label, _, data in members(folder):
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side))
        images.append(np.asarray(picture))
        labels.append(label)
    return np.stack(images), np.array(labels)


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
            "images", data=images, chunks=(8, *images.shape[1:]), compression="gzip", shuffle=True
        )
        file.create_dataset("labels", data=labels)
    return Source(into / "pixels.h5", image="images", label="labels")


#: Every kind that holds decoded pixels.
ARRAYS: dict[str, Callable[[Path, Path], Source]] = {"npz": npz, "npy": npy, "hdf5 pixels": hdf5_pixels}

ALL = FILES | ARRAYS
