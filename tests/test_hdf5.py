"""HDF5 as h5py writes it, through the daemon. Layouts and filters in all combinations: connectors/tests/hdf5.rs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail.numpy import Loader, transforms
from PIL import Image

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def noise(shape: tuple[int, ...], dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(int(np.prod(shape))).integers(0, 256, shape).astype(dtype)


def rows(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """All records, by their number: a shuffled epoch must have each once, whatever the chunks."""
    crop = [transforms.CenterCrop((8, 6))]
    loader = Loader(str(path), batch_size=7, dtype="uint8", transforms=crop, **options)
    batches = [{name: np.array(batch[name]) for name in list(batch.keys())} for batch in loader]
    loader.close()
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(whole["index"])
    np.testing.assert_array_equal(whole["index"][order], np.arange(len(order)))
    return {name: values[order] for name, values in whole.items()}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_images_labels_and_fields_of_a_group(tmp_path: Path, libver: str, shuffle: bool) -> None:
    print(f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}")
    images, labels, boxes = noise((50, 8, 6, 3)), noise((50,), ">i2"), noise((50, 4), "f4") / 3
    with h5py.File(tmp_path / "data.h5", "w", libver=libver) as file:
        group = file.create_group("train")
        group.create_dataset("images", data=images, chunks=(8, 4, 6, 3), compression="gzip", shuffle=True)
        group.create_dataset("labels", data=labels)
        group.create_dataset("boxes", data=boxes, chunks=(16, 4), compression="lzf", fletcher32=True)
        file.create_dataset("test/images", data=images[:5])
    got = rows(tmp_path / "data.h5", image="train/images", label="train/labels", shuffle=shuffle)
    np.testing.assert_array_equal(got["image"], images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(got["label"], labels)
    np.testing.assert_array_equal(got["boxes"], boxes)


def test_encoded_images_of_any_length_with_names_of_classes(tmp_path: Path) -> None:
    images = noise((20, 8, 6, 3))
    names = ["tabby", "dog", "emu"]
    with h5py.File(tmp_path / "data.h5", "w") as file:
        encoded = file.create_dataset("images", (20,), h5py.vlen_dtype(np.uint8))
        for i, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            encoded[i] = np.frombuffer(png.getvalue(), np.uint8)
        file.create_dataset("labels", data=[names[i % 3] for i in range(20)], dtype=h5py.string_dtype())
    got = rows(tmp_path / "data.h5")
    np.testing.assert_array_equal(got["image"], images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(got["label"], [sorted(names).index(names[i % 3]) for i in range(20)])


def test_a_damaged_chunk_costs_its_own_records_only(tmp_path: Path) -> None:
    images = noise((20, 8, 6))
    with h5py.File(tmp_path / "data.h5", "w") as file:
        dataset = file.create_dataset("x", data=images, chunks=(4, 8, 6), compression="gzip", fletcher32=True)
        where = dataset.id.get_chunk_info(2)
    bytes_ = bytearray((tmp_path / "data.h5").read_bytes())
    bytes_[where.byte_offset + 20] ^= 0xFF
    (tmp_path / "data.h5").write_bytes(bytes_)
    crop = [transforms.CenterCrop((8, 6))]
    loader = Loader(
        str(tmp_path / "data.h5"), batch_size=5, transforms=crop, on_error="substitute", error_budget=16
    )
    marked = np.concatenate([np.array(batch["substituted"]) for batch in loader])
    loader.close()
    np.testing.assert_array_equal(np.flatnonzero(marked), range(8, 12))
