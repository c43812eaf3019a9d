"""COCO's annotations as a source: a record an image, its boxes and what belongs to them in lists."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, DataError, FuelrailError, SourceError
from fuelrail import fields as F
from fuelrail import transforms as T
from fuelrail.numpy import Loader
from PIL import Image
from support import fuelrail

CATEGORIES = [
    {"id": 18, "name": "dog", "supercategory": "animal"},
    {"id": 1, "name": "person", "supercategory": "person"},
]


def annotation(at: int, image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    outline = [[bbox[0], bbox[1], bbox[0] + 1, bbox[1], bbox[0], bbox[1] + 1]]
    return {
        "id": at,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": bbox[2] * bbox[3] / 2,
        "iscrowd": 0,
        "segmentation": outline,
        **more,
    }


def document() -> dict[str, Any]:
    """Three images; the second has nothing in it, and the annotations are not in the order of the images."""
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 397133, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 37777, "file_name": "b.png", "width": 60, "height": 60},
            {"id": 252219, "file_name": "c.png", "width": 40, "height": 90},
        ],
        "annotations": [
            annotation(7, 252219, 1, [1.5, 2.0, 10.0, 20.5]),
            annotation(3, 397133, 18, [10.0, 20.0, 40.0, 20.0]),
            annotation(9, 397133, 1, [50.0, 0.0, 0.0, 8.0], iscrowd=1),
        ],
        "categories": CATEGORIES,
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A data set in the folders that its archives make."""
    for image in document()["images"]:
        path = tmp_path / "val2017" / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (image["width"], image["height"]), (200, 10, 10)).save(path)
    return write(tmp_path, document())


def write(folder: Path, data: Any, name: str = "instances_val2017.json", **how: Any) -> Path:
    path = folder / "annotations" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data, **how))
    return path


FIELDS: dict[str, F.Field] = {
    "image": F.Image([T.Resize((40, 50))]),
    "boxes": F.Boxes("boxes", max_rows=4),
    "classes": F.Numbers("classes", like="boxes", dtype="int64"),
    "area": F.Numbers("area", like="boxes", dtype="float32"),
    "crowd": F.Numbers("iscrowd", like="boxes"),
    "id": F.Numbers("image_id"),
}


def rows(source: Any, fields: dict[str, F.Field] = FIELDS, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with Loader(source, batch_size=2, fields=fields, **{"on_error": "fail", **options}) as loader:
        for batch in loader:
            for at in range(len(batch["index"])):
                row = {"name": int(np.array(batch["index"])[at])}
                for name in fields:
                    value = batch[name]
                    row[name] = np.array(value.list()[at] if hasattr(value, "list") else value[at])
                found.append(row)
    return found


def test_a_record_is_an_image_with_its_annotations_and_the_images_are_found(coco: Path) -> None:
    first, second, third = rows(str(coco))
    assert [int(row["id"]) for row in (first, second, third)] == [397133, 37777, 252219]
    # Half the size; left, top, right, bottom.
    np.testing.assert_allclose(first["boxes"], [[5, 10, 25, 20], [25, 0, 25, 4]])
    assert first["classes"].tolist() == [1, 0], "numbered by the ids of the categories"
    assert first["area"].tolist() == [400, 0] and first["crowd"].tolist() == [0, 1]
    assert second["boxes"].shape == (0, 4) and third["classes"].tolist() == [0]
    np.testing.assert_allclose(third["boxes"], [[1.5 * 50 / 40, 2 * 40 / 90, 11.5 * 50 / 40, 22.5 * 40 / 90]])


def test_categories_are_the_classes_and_what_was_recognised_is_said(
    coco: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fuelrail")
    with Loader(str(coco), batch_size=2, fields=FIELDS) as loader:
        assert loader.classes == ["person", "dog"] and len(loader) == 2
    assert "COCO: 3 images, 3 annotations, 2 categories" in caplog.text
    assert "1 images have no annotations" in caplog.text


@pytest.mark.parametrize("layout", ["beside", "images", "root"])
def test_images_are_found_in_the_usual_places_or_where_root_says(
    coco: Path, tmp_path: Path, layout: str
) -> None:
    options: dict[str, Any] = {}
    source: Any = str(coco)
    if layout == "beside":
        for image in (tmp_path / "val2017").iterdir():
            image.rename(coco.parent / image.name)
    elif layout == "images":
        (tmp_path / "images").mkdir()
        (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    else:
        (tmp_path / "val2017").rename(tmp_path / "elsewhere")
        options["root"] = str(tmp_path / "elsewhere")
    assert len(rows(source, **options)) == 3


def test_a_file_may_be_indented_end_with_images_or_have_a_byte_order_mark(coco: Path, tmp_path: Path) -> None:
    expected = [row["boxes"].tolist() for row in rows(str(coco))]
    data = document()
    turned = {key: data[key] for key in ("annotations", "categories", "images")}
    turned["annotations"][0]["filler"] = "x" * (1 << 20)
    for text in (json.dumps(data, indent=2), "\ufeff" + json.dumps(data), json.dumps(turned)):
        path = write(tmp_path, text)
        assert [row["boxes"].tolist() for row in rows(str(path), root=str(tmp_path / "val2017"))] == expected


def test_keypoints_go_with_their_boxes(coco: Path, tmp_path: Path) -> None:
    data = document()
    data["annotations"][0]["keypoints"] = [10, 30, 2, 20, 31, 1, 0, 0, 0]
    path = write(tmp_path, data, "person_keypoints_val2017.json")
    fields = {
        "image": F.Image([T.RandomHorizontalFlip(1), T.Resize((90, 40))]),
        "boxes": F.Boxes("boxes", max_rows=4),
        "points": F.Keypoints("keypoints", like="boxes", flip_indices=[0, 2, 1]),
    }
    found = rows(str(path), fields)
    assert found[0]["points"].shape == (2, 9) and not found[0]["points"].any(), "those without have none"
    assert found[2]["points"].tolist() == [[29, 30, 2, 0, 0, 0, 19, 31, 1]]


def test_commands_know_boxes(coco: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    wanted: list[dict[str, Any]] = [
        {"type": "Image", "name": "image", "transforms": [{"type": "Letterbox", "size": 64}]},
        {"type": "Boxes", "name": "boxes", "part": "boxes", "max_rows": 4},
    ]
    done = fuelrail("preview", coco, "--fields", json.dumps(wanted), "--count", "3", "--out", sheet)
    assert done.returncode == 0, done.stderr
    pixels = np.array(Image.open(sheet).convert("RGB"))
    assert (pixels == (255, 0, 255)).all(-1).sum() > 60, "the edges of three boxes"
    del wanted[1]["max_rows"]
    done = fuelrail("inspect", coco, "--fields", json.dumps(wanted))
    assert done.returncode == 0 and "boxes" in done.stdout, done.stderr


def test_captions_are_lists_of_texts(coco: Path, tmp_path: Path) -> None:
    data = document()
    data["annotations"] = [
        {"id": 1, "image_id": 397133, "caption": "A dog."},
        {"id": 2, "image_id": 397133, "caption": "Ein Hund, größer."},
    ]
    del data["categories"]
    path = write(tmp_path, data, "captions_val2017.json")
    fields = {"image": F.Image([T.Resize((8, 8))]), "captions": F.Json("captions", max_bytes=400)}
    with Loader(str(path), batch_size=3, fields=fields) as loader:
        (batch,) = loader
        assert batch["captions"] == [["A dog.", "Ein Hund, größer."], [], []]


def changed(change: Any) -> dict[str, Any]:
    data = copy.deepcopy(document())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["images"][1].update(id=397133), "two images have the id 397133"),
        (lambda d: d["annotations"][1].update(id=7), "two annotations have the id 7"),
        (
            lambda d: d["annotations"][1].update(image_id=5),
            "annotation 3: image_id 5 is none of the 3 images",
        ),
        (
            lambda d: d["annotations"][1].update(category_id=99),
            "annotation 3: category_id 99 is none of the 2",
        ),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), "annotation 3: bbox has 3 numbers"),
        (lambda d: d["annotations"][0].update(keypoints=[1, 2]), "2 numbers of keypoints"),
        (lambda d: d["images"][0].pop("file_name"), "file_name"),
        (lambda d: d.update(images=[], annotations=[]), "no images"),
        (lambda d: d.update(images={"1": {}}), "cannot be read"),
    ],
)
def test_annotations_that_contradict_themselves_are_refused_by_name(
    coco: Path, tmp_path: Path, change: Any, says: str
) -> None:
    path = write(tmp_path, changed(change))
    with pytest.raises(SourceError) as refused:
        rows(str(path), root=str(tmp_path / "val2017"))
    assert says in str(refused.value) and "instances_val2017.json" in str(refused.value), refused.value


def test_a_missing_image_and_a_box_that_is_none_are_one_bad_record_each(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "val2017" / "b.png").unlink()
    path = write(tmp_path, changed(lambda d: d["annotations"][0].update(bbox=[1.0, 1.0, float("nan"), 2.0])))
    left = rows(str(path), on_error="drop", error_budget=2)
    assert [int(row["id"]) for row in left] == [397133]
    with pytest.raises(DataError, match=r"b\.png.*does not exist|box 0 is"):
        rows(str(path))


def test_a_part_that_is_not_there_lists_those_that_are(coco: Path) -> None:
    with pytest.raises((ConfigError, FuelrailError)) as refused:
        rows(str(coco), {"image": F.Image([T.Resize((8, 8))]), "boxes": F.Boxes("bbox", max_rows=4)})
    for name in ("boxes", "classes", "area", "iscrowd"):
        assert name in str(refused.value), refused.value
