"""Boxes and keypoints follow their image, as torchvision v2 moves them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuelrail import ConfigError, DataError
from fuelrail import fields as F
from fuelrail import transforms as T
from fuelrail.numpy import Loader
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

Numbers = np.ndarray[Any, Any]


def write(path: Path, records: Sequence[Mapping[str, Any]], size: Callable[[int], tuple[int, int]]) -> str:
    """Shards of images with what belongs to each in a JSON member."""
    with tarfile.open(path, "w") as shard:
        for at, record in enumerate(records):
            w, h = size(at)
            pixels = np.random.default_rng(at).integers(0, 255, (h, w, 3), dtype=np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "PNG")
            for name, data in (("png", encoded.getvalue()), ("json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{at:04}.{name}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return str(path)


def size_of(at: int) -> tuple[int, int]:
    rng = np.random.default_rng(77 + at)
    return int(rng.integers(40, 140)), int(rng.integers(40, 140))


def boxes_of(at: int) -> list[list[float]]:
    """Some boxes in an image, in pixels: left, top, right, bottom."""
    rng = np.random.default_rng(999 + at)
    w, h = size_of(at)
    x, y = np.sort(rng.uniform(0, w, (int(rng.integers(0, 7)), 2))), None
    y = np.sort(rng.uniform(0, h, (len(x), 2)))
    return [[round(float(v), 2) for v in (a[0], b[0], a[1] + 2, b[1] + 2)] for a, b in zip(x, y, strict=True)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    records = []
    for at in range(40):
        boxes = boxes_of(at)
        points = [[[x0, y0, 2], [x1, y0, 1], [x0, y1, 0]] for x0, y0, x1, y1 in boxes]
        records.append({"boxes": boxes, "classes": list(range(len(boxes))), "points": points})
    return write(tmp_path_factory.mktemp("boxes") / "a.tar", records, size_of)


def delivered(
    source: str, transforms: list[Any], **boxes: Any
) -> list[tuple[int, Numbers, Numbers, Numbers]]:
    """Index, boxes, classes and points of every record."""
    fields: dict[str, F.Field] = {
        "image": F.Image(transforms),
        "crop": F.Geometry(),
        "boxes": F.Boxes("json:boxes", max_rows=16, **boxes),
        "classes": F.Numbers("json:classes", like="boxes", dtype="int64"),
        "points": F.Keypoints("json:points", like="boxes"),
    }
    if any(isinstance(step, T.RandomRotation) for step in transforms):
        del fields["crop"]
    rows = []
    with Loader(source, batch_size=8, fields=fields, label=None, shuffle=True, seed=5) as loader:
        for batch in loader:
            lists = [batch[name].list() for name in ("boxes", "classes", "points")]
            rows += [
                (int(index), *(np.array(values[at]) for values in lists))
                for at, index in enumerate(np.array(batch["index"]))
            ]
    return rows


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([T.Resize((50, 90))], [v2.Resize((50, 90))]),
        # Of an image that it has to pad by an odd number, torchvision moves pixels and boxes by one pixel apart.
        ([T.Resize(70), T.CenterCrop(64)], [v2.Resize(70), v2.CenterCrop(64)]),
        ([T.CenterCrop((30, 36)), T.Resize((60, 60))], [v2.CenterCrop((30, 36)), v2.Resize((60, 60))]),
        (
            [T.RandomHorizontalFlip(1), T.Pad([3, 5, 7, 9]), T.Resize((64, 64))],
            [v2.RandomHorizontalFlip(1), v2.Pad([3, 5, 7, 9]), v2.Resize((64, 64))],
        ),
        ([T.RandomVerticalFlip(1), T.Resize((64, 64))], [v2.RandomVerticalFlip(1), v2.Resize((64, 64))]),
        (
            [T.RandomRotation((20, 20)), T.Resize((64, 64))],
            [v2.RandomRotation((20, 20)), v2.Resize((64, 64))],
        ),
        (
            [T.RandomRotation((-70, -70), expand=True), T.Resize((64, 64))],
            [v2.RandomRotation((-70, -70), expand=True), v2.Resize((64, 64))],
        ),
        ([T.ClampBoundingBoxes(), T.Resize((64, 64))], [v2.ClampBoundingBoxes(), v2.Resize((64, 64))]),
    ],
    ids=["resize", "resize-crop", "crop-resize", "flip-pad", "vertical", "rotate", "expand", "clamp"],
)
def test_boxes_and_keypoints_are_torchvisions(shards: str, ours: list[Any], theirs: list[Any]) -> None:
    found = delivered(shards, ours)
    assert sorted(index for index, *_ in found) == list(range(40))
    for index, boxes, classes, points in found:
        w, h = size_of(index)
        stored = torch.tensor(boxes_of(index)).reshape(-1, 4)
        image = tv_tensors.Image(torch.zeros(3, h, w, dtype=torch.uint8))
        given = tv_tensors.BoundingBoxes(stored, format="XYXY", canvas_size=(h, w))  # type: ignore[call-overload]
        corners = tv_tensors.KeyPoints(stored[:, [0, 1, 2, 1]].reshape(-1, 2, 2), canvas_size=(h, w))  # type: ignore[call-arg]
        image, given, corners = v2.Compose(theirs)(image, given, corners)
        assert classes.tolist() == list(range(len(stored)))
        # A canvas that grows with the angle has whole pixels, and Pillow puts the image into its middle; torchvision's
        # boxes begin at its corner.
        slack = 1.3 if any(getattr(step, "expand", False) for step in theirs) else 0.51
        np.testing.assert_allclose(boxes.reshape(-1, 4), given.numpy().reshape(-1, 4), atol=slack)
        inside = (points[..., :2, 2:] > 0).reshape(-1, 2)
        moved = np.where(inside[..., None], corners.numpy().reshape(-1, 2, 2), 0)
        np.testing.assert_allclose(points[..., :2, :2].reshape(-1, 2, 2), moved, atol=slack)
        assert not points[..., 2, :].any(), "a point that is not there is 0, 0, 0"


def test_boxes_follow_the_crop_that_was_drawn(shards: str) -> None:
    fields = {
        "image": F.Image([T.RandomResizedCrop(64), T.RandomHorizontalFlip()]),
        "crop": F.Geometry(),
        "boxes": F.Boxes("json:boxes", max_rows=16),
    }
    flips = 0
    with Loader(shards, batch_size=40, fields=fields, label=None, shuffle=True, seed=3) as loader:
        (batch,) = loader
        crop = batch["crop"]
        for at, index in enumerate(np.array(batch["index"])):
            w, h = size_of(int(index))
            stored = torch.tensor(boxes_of(int(index))).reshape(-1, 4)
            given: Any = tv_tensors.BoundingBoxes(stored, format="XYXY", canvas_size=(h, w))  # type: ignore[call-overload]
            box = [int(np.array(getattr(crop, name))[at]) for name in ("top", "left", "height", "width")]
            given = V.resized_crop(given, *box, [64, 64])
            if np.array(crop.flip_x)[at]:
                given = V.horizontal_flip(given)
                flips += 1
            np.testing.assert_allclose(
                batch["boxes"].list()[at].reshape(-1, 4), given.numpy().reshape(-1, 4), atol=0.51
            )
    assert 5 < flips < 35


def test_what_is_removed_takes_its_class_and_keypoints_along_and_is_what_torchvision_removes(
    shards: str,
) -> None:
    left = removed = 0
    for index, boxes, classes, points in delivered(
        shards, [T.CenterCrop(30), T.SanitizeBoundingBoxes(min_size=4), T.Resize((64, 64))]
    ):
        w, h = size_of(index)
        stored = torch.tensor(boxes_of(index)).reshape(-1, 4)
        target = {
            "boxes": tv_tensors.BoundingBoxes(stored, format="XYXY", canvas_size=(h, w)),  # type: ignore[call-overload]
            "labels": torch.arange(len(stored)),
        }
        image = tv_tensors.Image(torch.zeros(3, h, w, dtype=torch.uint8))
        chain = v2.Compose([v2.CenterCrop(30), v2.SanitizeBoundingBoxes(min_size=4), v2.Resize((64, 64))])
        _, target = chain(image, target)
        assert classes.tolist() == target["labels"].tolist()
        np.testing.assert_allclose(boxes.reshape(-1, 4), target["boxes"].numpy(), atol=0.51)
        assert len(points) == len(classes)
        left, removed = left + len(classes), removed + len(stored) - len(classes)
    assert left > 10 and removed > 10


def test_an_iou_crop_keeps_a_box_and_draws_for_image_and_mask_alike(shards: str) -> None:
    chain = [T.RandomIoUCrop(), T.SanitizeBoundingBoxes(), T.RandomHorizontalFlip(), T.Letterbox(64)]
    kept = 0
    for index, boxes, classes, _ in delivered(shards, chain):
        if boxes_of(index):
            assert len(boxes) >= 1, "a crop holds the middle of a box"
        kept += len(classes)
        assert (boxes >= 0).all() and (boxes <= 64).all()
    assert kept > 40


def test_formats_are_converted_and_shares_are_of_the_result(tmp_path: Path) -> None:
    box = [10.0, 20.0, 50.0, 40.0]  # of 100 x 80
    stored = {
        "xyxy": box,
        "xywh": [10.0, 20.0, 40.0, 20.0],
        "cxcywh": [30.0, 30.0, 40.0, 20.0],
        "xyxyn": [0.1, 0.25, 0.5, 0.5],
        "xywhn": [0.1, 0.25, 0.4, 0.25],
        "cxcywhn": [0.3, 0.375, 0.4, 0.25],
    }
    source = write(tmp_path / "a.tar", [{name: [four] for name, four in stored.items()}], lambda _: (100, 80))
    chain = [T.RandomHorizontalFlip(1), T.Resize((40, 50))]  # half the size
    for name in stored:
        for to, expected in {
            "xyxy": [25.0, 10.0, 45.0, 20.0],
            "xywh": [25.0, 10.0, 20.0, 10.0],
            "cxcywh": [35.0, 15.0, 20.0, 10.0],
            "cxcywhn": [0.7, 0.375, 0.4, 0.25],
            "xyxyn": [0.5, 0.25, 0.9, 0.5],
        }.items():
            fields = {
                "image": F.Image(chain),
                "boxes": F.Boxes(f"json:{name}", format=name, to=to, max_rows=2),
            }
            with Loader(source, batch_size=1, fields=fields, label=None) as loader:
                (batch,) = loader
                np.testing.assert_allclose(batch["boxes"].list()[0], [expected], atol=1e-5)


def test_left_and_right_joints_are_exchanged_in_a_mirrored_image(tmp_path: Path) -> None:
    # nose, left eye, right eye: flat, as in COCO
    record = {"points": [[50, 10, 2, 60, 20, 1, 40, 20, 2]]}
    source = write(tmp_path / "a.tar", [record], lambda _: (100, 80))
    fields = {
        "image": F.Image([T.RandomHorizontalFlip(1), T.Resize((80, 100))]),
        "points": F.Keypoints("json:points", max_rows=1, flip_indices=[0, 2, 1]),
    }
    with Loader(source, batch_size=1, fields=fields, label=None) as loader:
        (batch,) = loader
        assert batch["points"].list()[0].tolist() == [[49, 10, 2, 59, 20, 2, 39, 20, 1]]


def test_ten_thousand_boxes_under_a_cap_of_a_hundred_are_a_bad_record_or_cut_after_the_transforms(
    tmp_path: Path,
) -> None:
    many = [[float(at % 100), 0.0, at % 100 + 1.0, 10.0] for at in range(10_000)]
    source = write(tmp_path / "a.tar", [{"boxes": many}], lambda _: (100, 80))

    def boxes(chain: list[Any], **how: Any) -> Numbers:
        fields = {"image": F.Image(chain), "boxes": F.Boxes("json:boxes", max_rows=100, **how)}
        with Loader(source, batch_size=1, fields=fields, label=None, on_error="fail") as loader:
            (batch,) = loader
            return np.array(batch["boxes"].list()[0])

    with pytest.raises(DataError, match=r"0000\.png: part \"json:boxes\": 10000 rows.*room for 100"):
        boxes([T.Resize((8, 8))])
    assert boxes([T.Resize((80, 100))], overflow="cut").tolist() == many[:100]
    # Of a crop one pixel wide, 100 are left.
    left = boxes([T.CenterCrop((80, 1)), T.SanitizeBoundingBoxes()])
    assert left.tolist() == [[0, 0, 1, 10]] * 100


@pytest.mark.parametrize(
    ("box", "how", "says"),
    [
        ([9, 0, 5, 8], {}, "right edge is left of its left one"),
        ([0, 9, 5, 8], {}, "lower edge is above"),
        ([10, 10, -3, 5], {"format": "xywh"}, "right edge is left"),
        ([10, 20, 50, 40], {"format": "cxcywhn"}, 'the format is "cxcywh"'),
        ([0.1, 0.2, 0.5, 0.4], {}, 'the format is "xyxyn"'),
    ],
)
def test_a_box_that_is_none_makes_a_bad_record_or_is_left_out(
    tmp_path: Path, box: list[float], how: dict[str, Any], says: str
) -> None:
    good = [0.1, 0.1, 0.2, 0.2] if how.get("format") == "cxcywhn" else [10, 10, 20, 20]
    record = {"boxes": [good, box], "classes": [7, 8]}
    source = write(tmp_path / "a.tar", [record], lambda _: (100, 80))
    for invalid in ("bad", "drop"):
        fields = {
            "image": F.Image([T.Resize((80, 100))]),
            "boxes": F.Boxes("json:boxes", max_rows=4, invalid=invalid, **how),
            "classes": F.Numbers("json:classes", like="boxes", dtype="int64"),
        }
        with Loader(source, batch_size=1, fields=fields, label=None, on_error="fail") as loader:
            if invalid == "drop":
                (batch,) = loader
                assert batch["classes"].list()[0].tolist() == [7]
                continue
            with pytest.raises(DataError, match=r"part \"json:boxes\": box 1 is .*") as refused:
                next(iter(loader))
            assert says in str(refused.value), refused.value


def test_rows_that_do_not_go_with_the_boxes_are_a_bad_record(tmp_path: Path) -> None:
    record = {"boxes": [[1, 1, 5, 5]], "classes": [1, 2]}
    source = write(tmp_path / "a.tar", [record], lambda _: (100, 80))
    fields = {
        "image": F.Image([T.Resize((8, 8))]),
        "boxes": F.Boxes("json:boxes", max_rows=4),
        "classes": F.Numbers("json:classes", like="boxes"),
    }
    with (
        Loader(source, batch_size=1, fields=fields, label=None, on_error="fail") as loader,
        pytest.raises(
            DataError, match=r'part "json:classes": it has 2 rows, and "boxes", which it follows, has 1'
        ),
    ):
        next(iter(loader))


IMAGE = F.Image([T.Resize((8, 8))])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"image": F.Image([T.RandomIoUCrop(), T.Resize((8, 8))])}, "RandomIoUCrop works on boxes"),
        (
            {"image": F.Image([T.AugMix(), T.Resize((8, 8))]), "b": F.Boxes("json:boxes", max_rows=3)},
            "transforms[0] AugMix mixes pictures",
        ),
        (
            {"image": IMAGE, "b": F.Boxes("json:boxes", like="img", max_rows=3)},
            'the image fields are: "image"',
        ),
        ({"image": F.Views(2, [T.Resize((8, 8))]), "b": F.Boxes("json:boxes", max_rows=3)}, "type Views"),
        (
            {"image": IMAGE, "n": F.Numbers("json:classes", like="boxes")},
            "does not name a field of type Boxes",
        ),
        (
            {
                "image": IMAGE,
                "b": F.Boxes("json:boxes", max_rows=3),
                "n": F.Numbers("json:classes", like="b", max_rows=3),
            },
            "those of the boxes",
        ),
        ({"image": IMAGE, "k": F.Keypoints("json:points")}, "max_rows is missing"),
        (
            {"image": IMAGE, "k": F.Keypoints("json:points", max_rows=9, flip_indices=[0, 0, 1])},
            "flip_indices",
        ),
        ({"image": IMAGE, "b": F.Boxes("json:points", max_rows=3)}, "part"),
        ({"image": IMAGE, "b": F.Boxes("json:boxes", max_rows=1 << 40)}, "max_rows"),
    ],
)
def test_wrong_use_of_boxes_is_refused_with_what_to_do(
    shards: str, fields: dict[str, F.Field], says: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        next(iter(Loader(shards, batch_size=4, fields=fields, label=None, on_error="fail")))
    assert says in str(refused.value), refused.value


def test_boxes_do_not_depend_on_threads_and_resume_exactly(shards: str) -> None:
    fields = {
        "image": F.Image(
            [T.RandomIoUCrop(), T.SanitizeBoundingBoxes(), T.RandomHorizontalFlip(), T.Letterbox(48)]
        ),
        "boxes": F.Boxes("json:boxes", max_rows=16),
        "classes": F.Numbers("json:classes", like="boxes"),
    }

    def rows(workers: int, skip: int = 0, state: Any = None) -> tuple[list[bytes], Any]:
        with Loader(
            shards, batch_size=8, fields=fields, label=None, shuffle=True, seed=9, num_workers=workers
        ) as loader:
            if state is not None:
                loader.load_state_dict(state)
            found, token = [], None
            for at, batch in enumerate(loader):
                found.append(
                    b"".join(np.array(batch[name].padded).tobytes() for name in ("boxes", "classes"))
                    + np.array(batch["image"]).tobytes()
                )
                if at + 1 == skip:
                    token = loader.state_dict()
            return found, token

    first, token = rows(1, skip=2)
    again, _ = rows(4)
    assert first == again
    rest, _ = rows(2, state=token)
    assert rest == first[2:]


def test_boxes_that_are_plain_numbers_beside_a_moved_image_are_said(
    shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = F.Numbers("json:boxes", max_rows=16)
    for chain, is_said in [([T.Resize((8, 8))], True), ([T.ColorJitter(0.1), T.CenterCrop(8)], True)]:
        caplog.clear()
        caplog.set_level("WARNING", "fuelrail")
        with Loader(shards, batch_size=8, fields={"image": F.Image(chain), "bbox": plain}, label=None):
            assert ("bbox stay as they are in the source" in caplog.text) == is_said
