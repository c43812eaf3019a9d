"""Fields out of image folders, arrays, HDF5 files and mixtures of them: the same values from each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import Mix, SourceError
from fuelrail import fields as F
from fuelrail.numpy import Loader
from support import T
from test_fields import caption, encoded, mask_of, meta, picture

h5py = pytest.importorskip("h5py", reason="h5py is not installed: it writes HDF5 files")

COUNT = 40


def fields(**parts: str) -> dict[str, Any]:
    return {
        "image": F.Image([T.Resize((40, 56))]),
        "mask": F.Mask(parts["mask"]),
        "caption": F.Text(parts["caption"], max_bytes=64),
        "boxes": F.Numbers(parts["boxes"], max_rows=5, row=(4,)),
        "number": F.Numbers(parts["number"]),
    }


def folder(place: Path) -> tuple[Any, dict[str, Any]]:
    """Captions and JSON beside the images, masks in a parallel folder."""
    for number in range(COUNT):
        stem = Path("cat" if number % 2 else "dog", f"{number:02}")
        for root in ("images", "masks"):
            (place / root / stem.parent).mkdir(parents=True, exist_ok=True)
        (place / "images" / f"{stem}.png").write_bytes(encoded(picture(number)))
        (place / "images" / f"{stem}.txt").write_text(caption(number))
        (place / "images" / f"{stem}.json").write_text(json.dumps({**meta(number), "number": number}))
        (place / "masks" / f"{stem}_mask.png").write_bytes(encoded(mask_of(number)))
    parts = {
        "mask": "../masks/{path}_mask.png",
        "caption": "txt",
        "boxes": "json:boxes",
        "number": "json:number",
    }
    return place / "images", fields(**parts)


def padded(number: int) -> np.ndarray:
    """As many boxes in each record, for arrays."""
    return np.full((2, 4), number, np.float32)


def npz(place: Path) -> tuple[Any, dict[str, Any]]:
    """Everything in arrays."""
    numbers = range(COUNT)
    np.savez(
        place / "all.npz",
        images=np.array([picture(number) for number in numbers]),
        mask=np.array([mask_of(number) for number in numbers]),
        caption=np.array([caption(number) for number in numbers]),
        boxes=np.array([padded(number) for number in numbers]),
        number=np.arange(COUNT),
    )
    return place / "all.npz", fields(mask="mask", caption="caption", boxes="boxes", number="number")


def hdf5(place: Path) -> tuple[Any, dict[str, Any]]:
    """Strings of any length, and boxes as flat numbers of any length."""
    with h5py.File(place / "all.h5", "w") as file:
        file["images"] = [picture(number) for number in range(COUNT)]
        file["mask"] = [mask_of(number) for number in range(COUNT)]
        file["caption"] = [caption(number) for number in range(COUNT)]
        file["number"] = np.arange(COUNT)
        boxes = file.create_dataset("boxes", (COUNT,), h5py.vlen_dtype(np.float32))
        for number in range(COUNT):
            boxes[number] = np.array(meta(number)["boxes"], np.float32).ravel()
    return place / "all.h5", fields(mask="mask", caption="caption", boxes="boxes", number="number")


def mix(place: Path) -> tuple[Any, dict[str, Any]]:
    """The folder twice."""
    images, wanted = folder(place)
    return Mix({"a": images, "b": images}), wanted


@pytest.mark.parametrize("write", [folder, npz, hdf5, mix])
def test_every_source_delivers_the_same_fields_and_continues_exactly(write: Any, tmp_path: Path) -> None:
    source, wanted = write(tmp_path)
    options = {"fields": wanted, "batch_size": 7, "shuffle": True, "seed": 3}
    seen: list[int] = []
    with Loader(source, **options) as loader:
        for at, batch in enumerate(loader):
            if at == 2:
                state = loader.state_dict()
            numbers = [int(number) for number in batch["number"]]
            seen += numbers
            assert batch["caption"] == [caption(number) for number in numbers]
            boxes = [padded(number).tolist() if write is npz else meta(number)["boxes"] for number in numbers]
            assert [rows.tolist() for rows in batch["boxes"].list()] == boxes
            for row, number in enumerate(numbers):
                assert np.array_equal(batch["image"][row], picture(number).transpose(2, 0, 1))
                assert np.array_equal(batch["mask"][row], mask_of(number))
    assert sorted(seen) == sorted(list(range(COUNT)) * (2 if write is mix else 1))
    with Loader(source, **options, num_workers=1) as loader:
        loader.load_state_dict(state)
        assert [int(number) for batch in loader for number in batch["number"]] == seen[21:]


def test_what_an_image_lacks_is_empty_or_bad_and_what_all_lack_is_refused(tmp_path: Path) -> None:
    images, wanted = folder(tmp_path)
    (images / "dog" / "00.txt").unlink()
    only = {"caption": F.Text("txt", max_bytes=64, missing="empty"), "number": wanted["number"]}
    with Loader(images, fields={"image": wanted["image"], **only}, batch_size=COUNT) as loader:
        batch = next(iter(loader))
        assert [
            caption for caption, number in zip(batch["caption"], batch["number"], strict=True) if number == 0
        ] == [""]
    for part, message in [
        ("tx", r"no image of .*ends in \.tx; other files there end in \.json \.txt"),
        ("json:numbr", 'did you mean "number"'),
        ("../maks/{path}.txt", "did you mean .*masks"),
    ]:
        with pytest.raises(SourceError, match=message):
            Loader(images, fields={"image": wanted["image"], "x": F.Text(part, max_bytes=64)}, batch_size=2)
