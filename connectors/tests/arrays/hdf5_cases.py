"""HDF5 files written by h5py, with what fuelrail must read from them, as one JSON file for `connectors/tests/hdf5.rs`.

    python hdf5_cases.py hdf5_cases.json          a few small files: the ones committed
    python hdf5_cases.py --all all.json      every combination; run the test with FUELRAIL_HDF5_CASES=all.json

Needs h5py (made with 3.16, HDF5 2.0) and numpy. A case is a list of files, the configuration, and the records as
numpy and h5py see them: binary PNM, then the fields, little-endian.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CASES: list[dict[str, Any]] = []
SEED = 7


def noise(shape: tuple[int, ...], dtype: str = "u1") -> np.ndarray:
    """Numbers that compress a little and differ everywhere."""
    count = int(np.prod(shape))
    numbers = (np.arange(count, dtype=np.uint64) * 2654435761 >> 7) % 251
    return numbers.astype(dtype).reshape(shape)


def pnm(row: np.ndarray) -> bytes:
    """What fuelrail makes of one row of pixels in HWC."""
    channels = 1 if row.ndim == 2 else row.shape[2]
    size = f"{row.shape[1]} {row.shape[0]}"
    if channels == 4:
        height, width = row.shape[:2]
        kind = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
        return kind.encode() + row.tobytes()
    return f"{'P5' if channels == 1 else 'P6'}\n{size}\n255\n".encode() + row.tobytes()


def little(row: Any) -> bytes:
    array = np.asarray(row)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def case(
    name: str,
    writers: list[Callable[[h5py.File], None]],
    records: list[bytes],
    labels: list[int] | None = None,
    classes: list[str] | None = None,
    libver: Any = "earliest",
    config: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    files = []
    for number, write in enumerate(writers):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.h5"
            with h5py.File(path, "w", libver=libver, **options) as file:
                write(file)
            files.append({"name": f"{number}.h5", "hex": zlib.compress(path.read_bytes(), 9).hex()})
    CASES.append(
        {
            "name": name,
            "files": files,
            "config": config or {},
            "sizes": [len(record) for record in records],
            "records": zlib.compress(b"".join(records), 9).hex(),
            "labels": labels or [0] * len(records),
            "classes": classes or [],
        }
    )


def pixels(name: str, shape: tuple[int, ...], libver: Any = "earliest", **options: Any) -> None:
    data = noise(shape)
    case(
        name,
        [lambda f: f.create_dataset("x", data=data, **options)],
        [pnm(row) for row in data],
        libver=libver,
    )


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "shuffle gzip": {"compression": "gzip", "shuffle": True},
    "gzip shuffle fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "fletcher32": {"fletcher32": True},
    "shuffle lzf": {"compression": "lzf", "shuffle": True},
}


def train(libver: Any) -> None:
    """Images, labels and fields in a group, each with its own layout."""
    images, boxes = noise((9, 4, 5, 3)), noise((9, 2, 2), "f4") / 3
    flags, weight = noise((9,)) % 2 == 0, noise((9,), ">f8") / 7
    labels = noise((9,), ">i4") % 5 - 2

    def write(f: h5py.File) -> None:
        group = f.create_group("train")
        group.create_dataset("images", data=images, chunks=(2, 3, 5, 2), **FILTERS["gzip shuffle fletcher32"])
        group.create_dataset("labels", data=labels)
        group.create_dataset(
            "boxes", data=boxes, chunks=(4, 2, 1), maxshape=(None, 2, 2), **FILTERS["shuffle gzip"]
        )
        group.create_dataset("flags", data=flags)
        group.create_dataset("weight", data=weight, chunks=(3,), maxshape=(None,))
        group.create_dataset("names", data=["a"] * 9, dtype=h5py.string_dtype())
        group.create_dataset("other", data=noise((4, 3)))
        f.create_group("test").create_dataset("scores", data=noise((3, 3), "f4"))

    records = [
        pnm(images[i]) + little(boxes[i].astype("<f4")) + flags[i].tobytes() + little(weight[i].astype("<f8"))
        for i in range(9)
    ]
    case(f"train {libver}", [write], records, [int(n) for n in labels], libver=libver)


def jpegs(libver: Any, text: bool, chunks: Any = None) -> None:
    """Encoded bytes of any length, with texts as labels."""
    blobs = [noise((1 + i * i * 37 % 5000,)) for i in range(12)]
    names = [["tabby", "dog", "émeu"][i * 5 % 3] for i in range(12)]

    def write(f: h5py.File) -> None:
        images = f.create_dataset("images", (12,), h5py.vlen_dtype(np.uint8), chunks=chunks)
        for i, blob in enumerate(blobs):
            images[i] = blob
        dtype = h5py.string_dtype() if text else h5py.string_dtype(length=9)
        f.create_dataset("labels", data=[name.encode() for name in names], dtype=dtype)

    classes = sorted(set(names))
    labels = [classes.index(name) for name in names]
    case(
        f"jpegs {libver} {text} {chunks}",
        [write],
        [b.tobytes() for b in blobs],
        labels,
        classes,
        libver=libver,
    )


def record(image: bytes, parts: list[bytes | None], fields: bytes) -> bytes:
    """A record with named parts: these after the image, then the fields, then the length of each part."""
    lengths = [0xFFFFFFFF if part is None else len(part) for part in parts]
    return b"".join([image, *(part or b"" for part in parts), fields, np.array(lengths, "<u4").tobytes()])


def named(libver: Any, **options: Any) -> None:
    """Texts, JSON, masks, rows of numbers and bytes as named parts."""
    count = 9
    images, masks, deep = noise((count, 4, 5, 3)), noise((count, 4, 5)) % 3, noise((count, 4, 5), ">u2") * 9
    captions = [["", "käse", "a longer text " * 9][i % 3] for i in range(count)]
    rows = [noise((i % 4 * 4,), ">f4") / 3 for i in range(count)]
    lengths = [noise((i * i % 11,), "<i2") for i in range(count)]
    padded = noise((count, 3, 4), "<f4")

    def write(f: h5py.File) -> None:
        group = f.create_group("train")
        group.create_dataset("images", data=images, **options)
        group.create_dataset("mask", data=masks, **options)
        group.create_dataset("deep", data=deep, **options)
        group.create_dataset("truth", data=masks == 1)
        group.create_dataset("caption", data=captions, dtype=h5py.string_dtype())
        group.create_dataset("fixed", data=[text.encode()[:7] for text in captions], dtype="S7")
        group.create_dataset("meta", data=["[1]", "", "{}"] * 3, dtype=h5py.string_dtype())
        group.create_dataset("padded", data=padded, **options)
        for name, values, dtype in (("boxes", rows, ">f4"), ("ids", lengths, "<i2"), ("raw", lengths, "u1")):
            dataset = group.create_dataset(name, (count,), h5py.vlen_dtype(np.dtype(dtype)))
            for i, value in enumerate(values):
                dataset[i] = value.astype(dtype)
        group.create_dataset("score", data=noise((count,), ">f8"))

    def gray(row: np.ndarray, most: int = 255) -> bytes:
        return f"P5\n5 4\n{most}\n".encode() + row.tobytes()

    parts = [
        {"part": "train/mask", "kind": "image"},
        {"part": "train/deep", "kind": "image"},
        {"part": "/train/truth", "kind": "image"},
        {"part": "train/caption", "kind": "text"},
        {"part": "train/fixed", "kind": "text"},
        {"part": "train/meta", "kind": "json"},
        {"part": "train/padded", "kind": "ragged"},
        {"part": "train/boxes", "kind": "ragged", "row": [4]},
        {"part": "train/ids", "kind": "ragged"},
        {"part": "train/raw", "kind": "bytes"},
        {"part": "train/none", "kind": "text", "optional": True},
    ]
    records = []
    for i in range(count):
        of_parts = [
            gray(masks[i]),
            gray(deep[i].astype(">u2"), 65535),
            gray((masks[i] == 1).astype("u1")),
            captions[i].encode(),
            captions[i].encode()[:7],
            [b"[1]", None, b"{}"][i % 3],
            little(padded[i]),
            little(rows[i].astype("<f4")),
            little(lengths[i]),
            lengths[i].astype("u1").tobytes(),
            None,
        ]
        records.append(record(pnm(images[i]), of_parts, little(noise((count,), "<f8")[i])))
    deliver = [{"part": "", "kind": "image"}, *parts, {"part": "train/score", "kind": "numbers"}]
    config = {"image": "train/images", "deliver": deliver}
    case(f"named {libver} {sorted(options)}", [write], records, libver=libver, config=config)


def fields(dtype: str, libver: Any, **options: Any) -> None:
    data = (noise((11, 3), "i8") - (0 if "u" in dtype else 100)).astype(dtype)
    write = lambda f: f.create_dataset("a/b", data=data, **options)  # noqa: E731
    name = f"{dtype} {libver} {options}"
    case(name, [write], [little(row) for row in data], libver=libver, config={"fields": ["/a/b"]})


def low_level(name: str, prepare: Callable[[Any], None], libver: str) -> None:
    """A layout that only h5py's low-level interface makes."""
    data = noise((7, 6, 5))

    def write(f: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        prepare(properties)
        space = h5py.h5s.create_simple(data.shape)
        dataset = h5py.h5d.create(f.id, b"x", h5py.h5t.NATIVE_UINT8, space, properties)
        h5py.Dataset(dataset)[...] = data

    case(f"{name} {libver}", [write], [pnm(row) for row in data], libver=libver)


def compact(properties: Any) -> None:
    properties.set_layout(h5py.h5d.COMPACT)


def implicit(properties: Any) -> None:
    properties.set_chunk((2, 6, 4))
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)


def others() -> None:
    halves = [noise((5, 4, 4)), noise((3, 4, 4))]
    write = [lambda f, half=half: f.create_dataset("x", data=half, chunks=(2, 4, 4)) for half in halves]
    case("two files", write, [pnm(row) for half in halves for row in half])

    data = noise((6, 4, 4))
    case(
        "user block",
        [lambda f: f.create_dataset("x", data=data)],
        [pnm(row) for row in data],
        userblock_size=1024,
    )

    partial = np.full((8, 4, 4), 7, "u1")
    partial[2:4] = data[:2]

    def sparse(f: h5py.File) -> None:
        f.create_dataset("x", (8, 4, 4), "u1", chunks=(2, 4, 4), fillvalue=7)[2:4] = data[:2]

    case("never written chunks", [sparse], [pnm(row) for row in partial])

    def shrunk(f: h5py.File) -> None:
        dataset = f.create_dataset(
            "x", data=data, chunks=(2, 3, 3), maxshape=(None, 4, 4), compression="gzip"
        )
        dataset.resize((3, 4, 4))

    for libver in ("earliest", "latest"):
        case(f"shrunk {libver}", [shrunk], [pnm(row) for row in data[:3]], libver=libver)

    def many(f: h5py.File) -> None:
        for i in range(40):
            f.create_dataset(f"group{i % 3}/deep/array{i}", data=np.arange(4.0))
        f.create_dataset("group1/deep/x", data=data)

    for libver in ("earliest", "latest"):
        options = {"fields": []}
        case(f"many {libver}", [many], [pnm(row) for row in data], libver=libver, config=options)
        case(
            f"many ordered {libver}",
            [many],
            [pnm(row) for row in data],
            libver=libver,
            config=options,
            track_order=True,
        )

    planes = noise((6, 3, 4, 5))
    hwc = planes.transpose(0, 2, 3, 1)
    case(
        "planes",
        [lambda f: f.create_dataset("x", data=planes)],
        [pnm(np.ascontiguousarray(row)) for row in hwc],
    )

    opaque = np.array([bytes([i + 1]) * 20 for i in range(5)], dtype="V20")
    case("opaque", [lambda f: f.create_dataset("x", data=opaque)], [row.tobytes() for row in opaque])

    arrays = np.zeros(6, dtype=np.dtype((">i2", (2, 3))))

    def array_type(f: h5py.File) -> None:
        dataset = f.create_dataset("x", (6,), np.dtype((">i2", (2, 3))), chunks=(4,), compression="gzip")
        dataset[...] = noise((6, 2, 3), ">i2")

    expected = [little(row.astype("<i2")) for row in noise((6, 2, 3), "<i2")]
    case("array type", [array_type], expected, config={"fields": ["x"]})
    assert arrays.shape == (6, 2, 3)


def small() -> None:
    train("earliest")
    train("latest")
    jpegs("earliest", text=True)
    jpegs("latest", text=False, chunks=(5,))
    pixels(
        "extensible lzf",
        (9, 5, 3),
        "latest",
        chunks=(2, 2, 3),
        maxshape=(None, 5, 3),
        **FILTERS["shuffle lzf"],
    )
    pixels("b-tree 2", (9, 5, 3), "latest", chunks=(2, 2, 3), maxshape=(None, None, 3), **FILTERS["gzip"])
    low_level("compact", compact, "earliest")
    low_level("implicit", implicit, "latest")
    named("earliest")
    named("latest", chunks=True, compression="gzip")
    others()


def every() -> None:
    small()
    shapes = [(9, 6, 5), (9, 6, 5, 3), (10, 3, 2, 4), (9, 2, 5, 1)]
    for libver, shape, filters in itertools.product(("earliest", "v108", "v110", "latest"), shapes, FILTERS):
        for rows, unlimited in itertools.product((1, 2, 4, 20), (0, 1, 2)):
            if rows > shape[0] and not unlimited:
                continue
            chunks = (rows, max(1, shape[1] // 2), *shape[2:-1], max(1, shape[-1] - 1))
            chunks = (rows, *shape[1:]) if rows == 4 else chunks
            maxshape = tuple(None if axis < unlimited else n for axis, n in enumerate(shape))
            options = {"chunks": chunks, "maxshape": maxshape, **FILTERS[filters]}
            pixels(f"{libver} {shape} {filters} {rows} {unlimited}", shape, libver, **options)
    dtypes = [
        f"{order}{kind}" for order in "<>" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8")
    ]
    for dtype, libver in itertools.product(["i1", "u1", *dtypes], ("earliest", "latest")):
        fields(dtype, libver)
        fields(dtype, libver, chunks=(4, 2), compression="gzip", shuffle=True)
    for libver, options in itertools.product(
        ("earliest", "latest"), ({}, {"chunks": True, "compression": "gzip"})
    ):
        named(libver, **options)
    for libver, text, chunks in itertools.product(
        ("earliest", "latest"), (True, False), (None, (1,), (5,), True)
    ):
        jpegs(libver, text, chunks)
    for libver in ("earliest", "v110", "latest"):
        train(libver)
        low_level("compact", compact, libver)
        low_level("implicit", implicit, libver)
    for count in (1, 63, 64, 65, 1500, 6000):
        options = {"chunks": (1, 2, 2), "compression": "gzip"}
        for libver, unlimited in itertools.product(("earliest", "latest"), (0, 1, 2)):
            maxshape = tuple(None if axis < unlimited else n for axis, n in enumerate((count, 2, 2)))
            pixels(
                f"{count} chunks {libver} {unlimited}", (count, 2, 2), libver, maxshape=maxshape, **options
            )
            pixels(
                f"{count} plain {libver} {unlimited}",
                (count, 2, 2),
                libver,
                maxshape=maxshape,
                chunks=(1, 2, 2),
            )


if __name__ == "__main__":
    small() if "--all" not in sys.argv else every()
    lines = ",\n".join(json.dumps(case) for case in CASES)
    Path(sys.argv[-1]).write_text(f"[\n{lines}\n]\n")
    print(
        f"{len(CASES)} cases by h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}, numpy {np.__version__}"
    )
