"""npy and npz as numpy writes them, through the daemon: the same pixels, labels and fields as numpy reads."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail.errors import FuelrailError
from fuelrail.numpy import Loader, transforms

DTYPES = [f"{order}{kind}" for order in "<>" for kind in ("i2", "i4", "i8", "f2", "f4", "f8")] + [
    "i1",
    "u1",
    "?",
]


def noise(shape: tuple[int, ...], dtype: str = "u1") -> np.ndarray:
    numbers = np.random.default_rng(int(np.prod(shape))).integers(0, 256, shape)
    return numbers.astype(dtype)


def rows(source: Path | str, cache: Path, size: tuple[int, int], **options: Any) -> dict[str, np.ndarray]:
    """All records of a source, in order, by field. A crop to the size there is leaves pixels as they are."""
    options["transforms"] = [transforms.CenterCrop(size)]
    loader = Loader(str(source), batch_size=7, cache_dir=str(cache), **options)
    batches = [{name: np.array(batch[name]) for name in list(batch.keys())} for batch in loader]
    loader.close()
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_what_numpy_gives(tmp_path: Path, save: Any) -> None:
    arrays: dict[str, np.ndarray] = {
        "x": noise((23, 6, 5, 3)),
        "y": noise((23,), ">i4"),
        "names": np.array(["text"] * 23),
        "table": noise((4, 2), "f8"),
    }
    fields = {f"field_{i}": noise((23, *[2, 3][: i % 3]), dtype) for i, dtype in enumerate(DTYPES)}
    save(tmp_path / "data.npz", **arrays, **fields)
    got = rows(tmp_path / "data.npz", tmp_path / "cache", (6, 5), dtype="uint8")
    np.testing.assert_array_equal(got["image"], arrays["x"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(got["label"], arrays["y"])
    for name, field in fields.items():
        assert got[name].dtype == field.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(got[name], field)


def test_pixels_of_every_layout_are_the_pixels(tmp_path: Path) -> None:
    pixels = noise((9, 6, 5, 3))
    for name, array, options in (
        ("hwc", pixels, {}),
        ("chw", pixels.transpose(0, 3, 1, 2), {}),
        ("said", noise((9, 3, 4, 3)).transpose(0, 3, 1, 2), {"source_options": {"layout": "chw"}}),
    ):
        np.save(tmp_path / f"{name}.npy", np.ascontiguousarray(array))
        expected = array if name != "hwc" else array.transpose(0, 3, 1, 2)
        got = rows(tmp_path / f"{name}.npy", tmp_path / "cache", expected.shape[2:], dtype="uint8", **options)
        np.testing.assert_array_equal(got["image"], expected)


def test_shards_and_their_labels_go_together(tmp_path: Path) -> None:
    images, labels = noise((30, 4, 4, 3)), noise((30,), "i8")
    for shard, part in enumerate(np.array_split(np.arange(30), 4)):
        np.save(tmp_path / f"images-{shard:02}.npy", images[part])
    np.save(tmp_path / "labels.npy", labels)
    pattern = tmp_path / "images-{00..03}.npy"
    got = rows(pattern, tmp_path / "cache", (4, 4), label="labels.npy", dtype="uint8")
    np.testing.assert_array_equal(got["image"], images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(got["label"], labels)


def test_tokens_are_cut_as_asked(tmp_path: Path) -> None:
    tokens = noise((1003,), "u2") * 200
    tokens.tofile(tmp_path / "train.bin")
    np.save(tmp_path / "train.npy", tokens)
    for name, (length, stride) in itertools.product(
        ("train.bin", "train.npy"), ((10, None), (11, 10), (1003, 1))
    ):
        options = {"length": length} | ({} if stride is None else {"stride": stride})
        source = {"type": "array", "files": [str(tmp_path / name)], "tokens": options}
        loader = Loader(source, batch_size=7)
        got = np.concatenate([np.array(batch["tokens"]) for batch in loader])
        loader.close()
        starts = range(0, len(tokens) - length + 1, stride or length)
        np.testing.assert_array_equal(got, np.stack([tokens[i : i + length] for i in starts]).astype("i8"))


def test_what_numpy_would_unpickle_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(noise((4, 3, 2), "f4")))
    for name, expected in (("objects.npy", "objects"), ("fortran.npy", "ascontiguousarray")):
        with pytest.raises(FuelrailError, match=expected):
            Loader(str(tmp_path / name), fields=[name.removesuffix(".npy")])


def test_numbers_alone_are_had_from_files_that_hold_images_too(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, points=np.arange(8.0).reshape(4, 2), labels=np.arange(4))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"], file["points"], file["labels"] = pixels, np.arange(8.0).reshape(4, 2), np.arange(4)
    for path in (tmp_path / "x.npz", tmp_path / "x.h5"):
        with Loader(path, image="", fields=["points"], batch_size=4) as loader:
            batch = next(iter(loader))
        assert "image" not in batch
        assert np.asarray(batch["points"]).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    # All arrays are fields where nobody says which; datasets of a file may be anything.
    with Loader(tmp_path / "x.npz", image="", batch_size=4) as loader:
        assert sorted(loader.shapes) == ["images", "points"]
    with pytest.raises(FuelrailError, match=r"no image.*fields"):
        Loader(tmp_path / "x.h5", image="")
