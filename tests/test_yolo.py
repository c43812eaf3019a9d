"""Labels in YOLO's text form, beside the images or in a parallel folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, DataError, FuelrailError
from fuelrail import fields as F
from fuelrail import transforms as T
from fuelrail.numpy import Loader
from PIL import Image

LABELS = {
    "a": "0 0.5 0.5 0.2 0.4\n2 0.1 0.25 0.2 0.5\n",
    "b": "",
    "c": None,  # a background image has no file at all
    "d": "1 0.75 0.5 0.5 1.0",
}


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    for name, text in LABELS.items():
        Image.new("RGB", (100, 80), (9, 99, 9)).save(tmp_path / "images" / "train" / f"{name}.jpg")
        if text is not None:
            (tmp_path / "labels" / "train" / f"{name}.txt").write_text(text)
    return tmp_path


def fields(place: str, boxes: str = "boxes", **how: Any) -> dict[str, F.Field]:
    return {
        "image": F.Image([T.RandomHorizontalFlip(1), T.Letterbox(200)]),
        "boxes": F.Boxes(
            f"{place}:{boxes}", format="cxcywhn", to="xyxy", max_rows=8, **{"missing": "empty", **how}
        ),
        "classes": F.Numbers(f"{place}:classes", like="boxes", missing="empty", dtype="int32"),
    }


def rows(source: Any, wanted: dict[str, F.Field]) -> list[tuple[list[Any], list[int]]]:
    with Loader(source, batch_size=4, fields=wanted, on_error="fail") as loader:
        (batch,) = loader
        assert batch["classes"].padded.dtype == np.int32
        pairs = zip(batch["boxes"].list(), batch["classes"].list(), strict=True)
        return [(boxes.tolist(), classes.tolist()) for boxes, classes in pairs]


@pytest.mark.parametrize("place", ["parallel", "beside"])
def test_labels_are_boxes_and_classes_of_their_image(yolo: Path, place: str) -> None:
    images = yolo / "images" / "train"
    part = "../../labels/train/{path}.txt"
    if place == "beside":
        for path in (yolo / "labels" / "train").iterdir():
            path.rename(images / path.name)
        part = "txt"
    found = rows(str(images), fields(part))
    # Twice the size, mirrored, with 20 rows of gray above.
    assert found[0][1] == [0, 2]
    np.testing.assert_allclose(found[0][0], [[80, 68, 120, 132], [160, 20, 200, 100]], atol=1e-4)
    assert found[1] == found[2] == ([], [])
    assert found[3][1] == [1]
    np.testing.assert_allclose(found[3][0], [[0, 20, 100, 180]], atol=1e-4)


def test_outlines_become_the_boxes_around_them(yolo: Path) -> None:
    for path in (yolo / "labels" / "train").iterdir():
        path.write_text("1 0.1 0.25 0.3 0.25 0.3 0.5 0.1 0.5\n")
    found = rows(str(yolo / "images" / "train"), fields("../../labels/train/{path}.txt", "outlines"))
    np.testing.assert_allclose(found[0][0], [[140, 60, 180, 100]], atol=1e-4)


def test_poses_have_keypoints_behind_the_box(yolo: Path) -> None:
    for path in (yolo / "labels" / "train").iterdir():
        path.write_text("0 0.5 0.5 0.5 0.5 0.25 0.5 2 0.75 0.5 1 0 0 0\n")
    place = "../../labels/train/{path}.txt"
    wanted = fields(place, "pose") | {
        "points": F.Keypoints(f"{place}:keypoints", like="boxes", flip_indices=[1, 0, 2], missing="empty")
    }
    with Loader(str(yolo / "images" / "train"), batch_size=4, fields=wanted, on_error="fail") as loader:
        (batch,) = loader
        points = np.array(batch["points"].list()[0]).reshape(3, 3)
        # Scaled by two behind the flip, which is to 99 - x.
        np.testing.assert_allclose(points, [[48, 100, 1], [148, 100, 2], [0, 0, 0]], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "boxes", "says"),
    [
        ("0 0.5 0.5 0.2", "boxes", "line 1 has 4 numbers"),
        ("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 x 0.2", "boxes", 'line 2 has "x"'),
        ("0 0.5 0.5 0.2 0.2 0.1 0.1", "boxes", "txt:outlines"),
        ("0 50 40 20 20", "boxes", 'the format is "cxcywh"'),
        ("0.5 0.5 0.5 0.2 0.2", "boxes", "no class number"),
    ],
)
def test_a_line_that_is_no_label_makes_one_bad_record(yolo: Path, text: str, boxes: str, says: str) -> None:
    (yolo / "labels" / "train" / "a.txt").write_text(text)
    with pytest.raises(DataError) as refused:
        rows(str(yolo / "images" / "train"), fields("../../labels/train/{path}.txt", boxes))
    assert says in str(refused.value) and "a.jpg" in str(refused.value), refused.value


def test_words_that_are_none_and_labels_as_text_are_refused(yolo: Path) -> None:
    images = str(yolo / "images" / "train")
    for wanted, says in [
        ({"image": F.Image([T.Resize((8, 8))]), "b": F.Boxes("txt:bbox", max_rows=3)}, '"txt:boxes"'),
        ({"image": F.Image([T.Resize((8, 8))]), "b": F.Text("txt:boxes", max_bytes=9)}, "rows of numbers"),
    ]:
        with pytest.raises((ConfigError, FuelrailError)) as refused:
            Loader(images, batch_size=4, fields=wanted)
        assert says in str(refused.value), refused.value
