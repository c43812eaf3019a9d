"""What a batch holds, field by field: text, JSON, numbers, masks, views and crops, as exact as images are."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, Source, SourceError, TokenError
from fuelrail import fields as F
from fuelrail.loader import binary
from fuelrail.numpy import Loader
from fuelrail.values import Crops, Ragged
from PIL import Image
from support import TINY, T, digests, indices, row_digests

COUNT = 60
CROP = [T.RandomResizedCrop(16), T.RandomHorizontalFlip()]

#: Every kind of field, of the shards below.
ALL = {
    "image": F.Image([*CROP, T.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    "mask": F.Mask("seg.png"),
    "global": F.Views(2, [T.RandomResizedCrop(12, scale=(0.4, 1))]),
    "local": F.Views(3, [T.RandomResizedCrop(6, scale=(0.05, 0.4))]),
    "caption": F.Text("txt", max_bytes=64),
    "raw": F.Bytes("txt", max_bytes=64),
    "meta": F.Json("json", max_bytes=512),
    "boxes": F.Numbers("json:boxes", max_rows=5),
    "score": F.Numbers("json:score"),
    "crop": F.Geometry(),
}


def picture(number: int) -> np.ndarray:
    """Smooth, so that JPEG keeps it nearly; wider than high."""
    y, x = np.mgrid[0:40, 0:56]
    return np.stack([(x * 4 + number * 7) % 256, y * 6, 255 - x * 4], axis=2).astype(np.uint8)


def mask_of(number: int) -> np.ndarray:
    """Class numbers, 0 to 4."""
    return (picture(number)[..., 0] // 52).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def caption(number: int) -> str:
    return f"thing {number} " + "é" * (number % 9)


def meta(number: int) -> dict[str, Any]:
    boxes = [[number, at, 3.5, 4] for at in range(number % 5)]
    return {"boxes": boxes, "score": number / 4, "cls": number % 3, "tags": {"a b": [1, None, "x"]}}


def members(number: int) -> dict[str, bytes]:
    return {
        "png": encoded(picture(number)),
        "seg.png": encoded(mask_of(number)),
        "txt": caption(number).encode(),
        "json": json.dumps(meta(number)).encode(),
    }


def shard(path: Path, records: Mapping[str, Mapping[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for key, parts in records.items():
            for ending, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four shards of records with all kinds of parts."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(4):
        own = range(number, COUNT, 4)
        shard(folder / f"{number}.tar", {f"{one:04}": members(one) for one in own})
    return str(folder / "{0..3}.tar")


def number_of(key: str) -> int:
    return int(key.split("/")[-1].split(".")[0])


def one_shard(
    tmp_path: Path, changes: Mapping[int, Mapping[str, bytes | None]], like: int | None = None
) -> str:
    """A shard in which some records have other members, or lack them."""
    records = {}
    for number in range(40):
        parts: dict[str, bytes | None] = {**members(like or number), **changes.get(number, {})}
        records[f"{number:04}"] = {
            ending: content for ending, content in parts.items() if content is not None
        }
    return shard(tmp_path / "one.tar", records)


# What is delivered --------------------------------------------------------------------------------------------------


def test_every_part_is_delivered_as_it_is_stored_and_with_its_own_record(shards: str) -> None:
    fields = {**ALL, "image": F.Image([T.Resize((40, 56))]), "crop": F.Geometry()}
    with Loader(shards, fields=fields, batch_size=7, shuffle=True) as loader:
        seen = []
        for batch in loader:
            assert list(batch.keys())[: len(ALL)] == list(ALL)
            numbers = [number_of(key) for key in loader.keys(batch)]
            seen += numbers
            assert batch["caption"] == [caption(number) for number in numbers]
            assert batch["raw"] == [caption(number).encode() for number in numbers]
            assert batch["meta"] == [meta(number) for number in numbers]
            assert batch["score"].tolist() == [number / 4 for number in numbers]
            boxes = batch["boxes"]
            assert isinstance(boxes, Ragged) and boxes.padded.shape == (len(numbers), 5, 4)
            assert [rows.tolist() for rows in boxes.list()] == [meta(number)["boxes"] for number in numbers]
            for row, number in enumerate(numbers):
                assert np.array_equal(batch["image"][row], picture(number).transpose(2, 0, 1))
                assert np.array_equal(batch["mask"][row], mask_of(number))
                assert not boxes.padded[row, boxes.lengths[row] :].any()
            assert batch["label"].tolist() == [number % 3 for number in numbers]
        assert sorted(seen) == list(range(COUNT))


def test_the_bytes_of_text_are_there_for_those_who_tokenise_themselves(shards: str) -> None:
    with Loader(shards, fields={"caption": F.Text("txt", max_bytes=64)}, batch_size=8) as loader:
        batch = next(iter(loader))
        ragged = batch.ragged("caption")
        texts = [bytes(row).decode() for row in ragged.list()]
        assert texts == batch["caption"] and ragged.padded.shape == (8, 64)
        assert ragged.lengths.tolist() == [len(text.encode()) for text in texts]
        with pytest.raises(KeyError, match="one shape in all records"):
            batch.ragged("label")


def test_a_batch_is_used_as_before_whatever_it_holds(shards: str) -> None:
    with Loader(shards, fields=ALL, batch_size=4) as loader:
        batch = next(iter(loader))
        images, labels = batch
        assert images is batch["image"] and labels is batch["label"] and batch[0] is images
        assert dict(batch).keys() == batch.as_dict().keys() == set(batch.keys())
        assert batch.get("caption") == batch["caption"] and batch.get("nothing", 5) == 5
        assert "caption" in repr(batch) and [*batch.values()][4] == batch["caption"]
        assert loader.shapes["boxes"] == (5, 4) and "caption" in loader.shapes
        with pytest.raises(KeyError, match="has no field 'text'; it has image, mask"):
            batch["text"]


def test_the_short_form_is_the_long_form_of_an_image(shards: str) -> None:
    chain = [*CROP, T.Normalize(*T.IMAGENET)]
    options: dict[str, Any] = {"batch_size": 7, "shuffle": True, "seed": 3}
    with (
        Loader(shards, transforms=chain, **options) as short,
        Loader(shards, fields={"image": F.Image(chain)}, **options) as long,
    ):
        assert digests(short) == digests(long)


# Exactness ----------------------------------------------------------------------------------------------------------


def test_the_same_bytes_for_any_number_of_threads(shards: str) -> None:
    options: dict[str, Any] = {"fields": ALL, "batch_size": 7, "shuffle": True, "seed": 1}
    with Loader(shards, num_workers=1, **options) as one, Loader(shards, num_workers=8, **options) as eight:
        assert digests(one) == digests(eight)


def test_a_token_of_every_step_restores_the_rest_at_any_world_size(shards: str) -> None:
    options: dict[str, Any] = {"fields": ALL, "shuffle": True, "seed": 1}
    with Loader(shards, batch_size=12, **options) as loader:
        whole = row_digests(loader)
        assert sorted(whole) == list(range(COUNT))
    with Loader(shards, batch_size=12, **options) as loader:
        for step, _ in enumerate(loader, start=1):
            state = loader.state_dict()
            for world in (1, 2, 3, 4):
                rest: dict[int, str] = {}
                for rank in range(world):
                    with Loader(shards, batch_size=5, rank=rank, world_size=world, **options) as part:
                        part.load_state_dict(state)
                        own = row_digests(part)
                        assert not own.keys() & rest.keys()
                        rest |= own
                assert rest == {at: row for at, row in whole.items() if at >= step * 12}


def test_a_token_belongs_to_its_fields(shards: str) -> None:
    with Loader(shards, fields={"caption": F.Text("txt", max_bytes=64)}) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with Loader(shards, fields={"caption": F.Text("txt", max_bytes=65)}) as loader:
        with pytest.raises(TokenError, match="pixels"):
            loader.load_state_dict(state)
        loader.load_state_dict(state, allow=["pixels"])
        assert indices(loader)[0] == 1


# Bad records --------------------------------------------------------------------------------------------------------


def refused(source: str, caplog: pytest.LogCaptureFixture, fields: dict[str, F.Field], **options: Any) -> str:
    """What is said of the one bad record of a source, which is the only one that is not delivered."""
    with Loader(source, fields=fields, on_error="drop", batch_size=8, **options) as loader:
        keys = [key for batch in loader for key in loader.keys(batch)]
        assert len(keys) == 39 and sum(batch.dropped for batch in loader) == 1
    said = [record.getMessage() for record in caplog.records if "bad record" in record.getMessage()]
    caplog.clear()
    assert said and "0007" in said[0], said
    return said[0]


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        (
            {"txt": b"x" * (1 << 20)},
            F.Text("txt", max_bytes=512),
            'part "txt": 1048576 bytes, and the field has room for 512',
        ),
        ({"txt": b"ab\xff"}, F.Text("txt", max_bytes=512), 'part "txt": it is not UTF-8 (byte 2)'),
        ({"txt": None}, F.Text("txt", max_bytes=512), 'part "txt": the record does not have it'),
        ({"json": b"[" * 9000 + b"]" * 9000}, F.Json("json", max_bytes=1 << 16), "nested 9000 deep"),
        ({"json": b'{"a": 1'}, F.Json("json", max_bytes=512), 'part "json": it is not JSON'),
        (
            {"json": b'{"boxes": "none"}'},
            F.Numbers("json:boxes", max_rows=5),
            "it is a text; a list is expected",
        ),
        ({"json": b'{"boxes": [[1, 2]]}'}, F.Numbers("json:boxes", max_rows=5), "it has a list of 2 where 4"),
        (
            {"json": b'{"boxes": [[1, 2, 3, null]]}'},
            F.Numbers("json:boxes", max_rows=5),
            "it has a null in it",
        ),
        ({"json": b'{"boxes": null}'}, F.Numbers("json:boxes", max_rows=5), "the record does not have it"),
        (
            {"json": b'{"boxes": [[16777217, 0, 0, 0]]}'},
            F.Numbers("json:boxes", max_rows=5),
            "f32 does not hold exactly",
        ),
        ({}, F.Numbers("json:boxes", max_rows=3), "4 rows, and the field has room for 3 (max_rows)"),
    ],
)
def test_a_value_that_cannot_be_delivered_is_one_bad_record_by_the_name_of_its_part(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, bytes | None],
    field: F.Field,
    why: str,
) -> None:
    if not changes:
        few = {"json": b'{"boxes": [[1, 2, 3, 4]]}'}
        source = one_shard(tmp_path, {**dict.fromkeys(range(40), few), 7: {}}, like=9)
    else:
        source = one_shard(tmp_path, {7: changes})
    said = refused(source, caplog, {"field": field}, label=None)
    assert why in said, said


def test_a_damaged_mask_makes_its_whole_record_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = {"image": F.Image(CROP), "mask": F.Mask("seg.png")}
    source = one_shard(tmp_path, {7: {"seg.png": encoded(mask_of(7))[:60]}})
    assert 'part "seg.png": ' in refused(source, caplog, fields, label=None)
    source = one_shard(tmp_path, {7: {"seg.png": encoded(mask_of(7)[1:])}})
    said = refused(source, caplog, fields, label=None)
    assert 'part "seg.png": ' in said and "56 x 39" in said and "56 x 40" in said, said
    source = one_shard(tmp_path, {7: {"seg.png": encoded(picture(7))}})
    assert 'part "seg.png": ' in refused(source, caplog, fields, label=None)
    source = one_shard(tmp_path, {7: {"seg.png": None}})
    assert 'part "seg.png": the record does not have it' in refused(source, caplog, fields, label=None)


def test_what_is_missing_or_too_long_can_be_taken_as_empty_or_cut(tmp_path: Path) -> None:
    source = one_shard(tmp_path, {7: {"txt": None, "json": b"{}", "seg.png": None}})
    fields = {
        "caption": F.Text("txt", max_bytes=9, overflow="cut", missing="empty"),
        "meta": F.Json("json:tags", max_bytes=64, missing="empty"),
        "boxes": F.Numbers("json:boxes", max_rows=2, overflow="cut", missing="empty"),
        "image": F.Image([T.Resize((40, 56))], part="png"),
        "mask": F.Mask("seg.png", missing="empty"),
    }
    with Loader(source, fields=fields, batch_size=40, label=None) as loader:
        batch = next(iter(loader))
        assert not batch["substituted"].any()
        # "thing 8 " and then whole letters of two bytes each.
        assert [batch["caption"][at] for at in (6, 7, 8)] == ["thing 6 ", "", "thing 8 "]
        assert batch["meta"][7] is None and batch["meta"][8] == {"a b": [1, None, "x"]}
        assert batch["boxes"].lengths[[6, 7, 8, 9]].tolist() == [1, 0, 2, 2]
        assert (batch["mask"][7] == 255).all() and np.array_equal(batch["mask"][8], mask_of(8))


def test_a_part_that_no_record_has_is_refused_with_what_there_is(shards: str) -> None:
    with pytest.raises(SourceError, match=r'part "text".*has a member ending in \.text.*\.txt'):
        Loader(shards, fields={"caption": F.Text("text", max_bytes=64)})
    with pytest.raises(SourceError, match="nobody knows the shape"):
        Loader(shards, fields={"x": F.Numbers("json:tags", max_rows=5)})
    empty = {
        "caption": F.Text("text", max_bytes=64, missing="empty"),
        "rows": F.Numbers("rows.npy", max_rows=3, missing="empty"),
        "key": F.Numbers("json:nowhere", max_rows=3, row=(2,), missing="empty"),
    }
    with Loader(shards, fields=empty) as loader:
        batch = next(iter(loader))
        assert batch["caption"] == [""] and len(batch["rows"][0]) == len(batch["key"][0]) == 0


def test_what_records_hold_is_said_once(shards: str) -> None:
    for fields in ({"image": F.Image(TINY)}, {"caption": F.Text("txt", max_bytes=64)}):
        with pytest.raises((ConfigError, SourceError), match="both given: leave fields out"):
            Loader(Source(shards, fields=["json:score"]), fields=fields)


# Refused at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "fields is an empty list"),
        ({"label": F.Text("txt", max_bytes=5)}, "field of this name already"),
        ({"mask": F.Mask("seg.png")}, "which does not exist; the image fields are: none"),
        (
            {"image": F.Image(TINY), "mask": F.Mask("seg.png", like="picture")},
            'the image fields are: "image"',
        ),
        ({"mask": F.Mask("seg.png"), "image": F.Image(TINY)}, "move it before"),
        ({"image": F.Image()}, "no fixed output size"),
        ({"image": F.Image(TINY), "crop": F.Geometry("txt")}, "which does not exist"),
        ({"x": F.Numbers("json:score", missing="empty")}, "set max_rows"),
        ({"x": F.Numbers("json:score", dtype="int64")}, "which dtype = i64 cannot hold"),
        ({"x": F.Json("json", max_bytes=5, overflow="cut")}, "cut JSON is not valid"),
        ({"x": F.Text("json:", max_bytes=5)}, "no place in JSON"),
        ({"x": F.Numbers("txt", max_rows=5)}, "such a file holds no numbers"),
        ({"x": F.Views(65, TINY)}, "n = 65 is not between 1 and 64"),
        ({"x": F.Text("txt", max_bytes=1 << 30)}, "max_bytes = 1073741824 is not between"),
        ({"x": F.Text("json:captoin", max_bytes=5)}, 'has "captoin" in its JSON; the first has the keys'),
    ],
)
def test_fields_that_cannot_be_meant_are_refused_by_name(
    shards: str, fields: dict[str, F.Field], why: str
) -> None:
    with pytest.raises((ConfigError, SourceError)) as error:
        Loader(shards, fields=fields)
    assert why in str(error.value), error.value


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: F.Text("txt", max_bytes=0), "fields.Text: max_bytes= takes a whole number from 1"),
        (lambda: F.Text("", max_bytes=5), "fields.Text: part= takes text"),
        (lambda: F.Text("txt", max_bytes=5, overflow="truncate"), "overflow= takes one of 'bad', 'cut'"),
        (lambda: F.Text("txt", max_bytes=5, missing="none"), "missing= takes one of 'bad', 'empty'"),
        (lambda: F.Views(0, TINY), "fields.Views: n= takes a whole number from 1"),
        (lambda: F.Mask("a", dtype="int64"), "uint8 or uint16"),
        (lambda: F.Numbers("a", dtype="complex64"), "a type of numbers"),
        (lambda: F.Image([lambda image: image]), "the daemon runs no Python"),
        (lambda: Loader("x.tar", fields={"a": F.Text}), r"write fields.Text\(...\)"),
        (lambda: Loader("x.tar", fields={"a": "txt"}), "is not a field"),
        (lambda: Source("x.tar", fields={"image": F.Image(TINY)}), "give it to the Loader"),
        (lambda: Loader("x.tar", fields={"a": F.Text("txt", max_bytes=5)}, transforms=TINY), "both given"),
    ],
)
def test_arguments_of_fields_are_refused_where_they_are_written(make: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()


def test_too_much_room_for_text_is_refused_with_the_figure(shards: str) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        Loader(shards, fields={"image": F.Image(TINY), "t": F.Text("txt", max_bytes=1 << 22)}, batch_size=256)


# Pictures -----------------------------------------------------------------------------------------------------------


def test_a_mask_and_a_geometry_follow_the_draws_of_their_image(shards: str) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    torch = pytest.importorskip("torch")
    fields = {"image": F.Image(CROP), "mask": F.Mask("seg.png"), "crop": F.Geometry()}
    with Loader(shards, fields=fields, batch_size=COUNT, shuffle=True, seed=4) as loader:
        batch = next(iter(loader))
        crop = batch["crop"]
        assert isinstance(crop, Crops) and 0 < crop.flip_x.sum() < COUNT
        assert (crop.original_height == 40).all() and (crop.original_width == 56).all()
        for row, key in enumerate(loader.keys(batch)):
            number = number_of(key)
            place = [int(edge[row]) for edge in crop[:4]]
            image = functional.resized_crop(Image.fromarray(picture(number)), *place, [16, 16])
            mask = functional.resized_crop(
                tv_tensors.Mask(torch.from_numpy(mask_of(number))), *place, [16, 16]
            )
            if crop.flip_x[row]:
                image, mask = functional.horizontal_flip(image), functional.horizontal_flip(mask)
            assert np.array_equal(batch["image"][row], np.asarray(image).transpose(2, 0, 1))
            assert np.array_equal(batch["mask"][row], mask.numpy())


def test_views_have_draws_of_their_own_and_the_first_field_those_of_an_image(shards: str) -> None:
    chain = [T.RandomResizedCrop(16)]
    with Loader(shards, fields={"views": F.Views(3, chain)}, batch_size=8, seed=2) as loader:
        views = next(iter(loader))["views"].copy()
    with Loader(shards, transforms=chain, batch_size=8, seed=2) as loader:
        image = next(iter(loader))["image"].copy()
    assert views.shape == (8, 3, 3, 16, 16) and np.array_equal(views[:, 0], image)
    assert not np.array_equal(views[:, 0], views[:, 1]) and not np.array_equal(views[:, 1], views[:, 2])


def test_several_images_of_a_record_are_fields_of_their_own(tmp_path: Path) -> None:
    records = {
        f"{number:03}": {
            "left.png": encoded(picture(number)),
            "right.jpg": encoded(picture(number + 1), "JPEG"),
        }
        for number in range(12)
    }
    source = shard(tmp_path / "pairs.tar", records)
    fields = {"left": F.Image(TINY, part="left.png"), "right": F.Image(TINY, part="right.jpg;right.png")}
    with Loader(source, fields=fields, batch_size=12) as loader:
        batch = next(iter(loader))
        assert batch["left"].shape == batch["right"].shape == (12, 3, 8, 8)
        assert np.abs(batch["left"][1:].astype(int) - batch["right"][:-1]).mean() < 8


def test_torch_gets_tensors_and_nested_ones(shards: str) -> None:
    torch = pytest.importorskip("torch")
    from fuelrail.torch import Loader as TorchLoader
    from fuelrail.torch import Ragged as TorchRagged

    with TorchLoader(shards, fields=ALL, batch_size=6) as loader:
        batch = next(iter(loader))
        boxes = batch["boxes"]
        assert isinstance(boxes, TorchRagged) and boxes.padded.dtype == torch.float32
        assert boxes.nested().layout == torch.jagged and len(boxes.nested().unbind()) == 6
        moved = batch.to("cpu")
        assert moved["caption"] == batch["caption"] and torch.equal(moved["boxes"].padded, boxes.padded)
        assert moved["crop"].top.dtype == torch.float32 and moved.ragged("meta").lengths.shape == (6,)
        assert batch["mask"].dtype == torch.uint8 and batch["score"].dtype == torch.float32


# Every kind of source -----------------------------------------------------------------------------------------------


def in_a_folder(folder: Path) -> str:
    for number in range(COUNT):
        for ending, content in members(number).items():
            path = folder / "train" / f"c{number % 3}" / f"{number:04}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        mask = folder / "masks" / f"c{number % 3}" / f"{number:04}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(members(number)["seg.png"])
    return str(folder / "train")


def in_a_table(folder: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "image": members(number)["png"],
            "seg": members(number)["seg.png"],
            "text": caption(number),
            **meta(number),
        }
        for number in range(COUNT)
    ]
    path = folder / "table.parquet"
    parquet.write_table(
        pa.Table.from_pylist([{**row, "tags": json.dumps(row["tags"])} for row in rows]),
        path,
        row_group_size=13,
    )
    return str(path)


def in_arrays(folder: Path) -> str:
    numbers = range(COUNT)
    np.savez(
        folder / "arrays.npz",
        images=np.stack([picture(number) for number in numbers]),
        masks=np.stack([mask_of(number) for number in numbers]),
        captions=np.array([caption(number) for number in numbers]),
        score=np.array([number / 4 for number in numbers]),
    )
    return str(folder / "arrays.npz")


PICTURES = {"image": F.Image([*CROP, T.ColorJitter(0.4, 0.4, 0.4, 0.1)]), "crop": F.Geometry()}
KINDS: dict[str, tuple[Any, dict[str, F.Field]]] = {
    "folder": (
        in_a_folder,
        {
            **PICTURES,
            "mask": F.Mask("seg.png"),
            "other": F.Mask("../masks/{path}.png"),
            "caption": F.Text("txt", max_bytes=64),
            "boxes": F.Numbers("json:boxes", max_rows=5),
            "score": F.Numbers("json:score"),
        },
    ),
    "table": (
        in_a_table,
        {
            "image": F.Image(PICTURES["image"].transforms, part="image"),
            "crop": F.Geometry(),
            "mask": F.Mask("seg"),
            "caption": F.Text("text", max_bytes=64),
            "tags": F.Json("tags", max_bytes=64),
            "boxes": F.Numbers("boxes", max_rows=5),
            "score": F.Numbers("score"),
        },
    ),
    "arrays": (
        in_arrays,
        {
            **PICTURES,
            "mask": F.Mask("masks"),
            "caption": F.Text("captions", max_bytes=64),
            "score": F.Numbers("score"),
        },
    ),
    "synthetic": (
        lambda _: f"synthetic://?count={COUNT}&width=56&height=40",
        {
            **PICTURES,
            "mask": F.Mask("mask"),
            "views": F.Views(2, [T.RandomResizedCrop(8)]),
            "caption": F.Text("caption", max_bytes=512),
            "meta": F.Json("meta", max_bytes=512),
            "boxes": F.Numbers("boxes", max_rows=20),
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_every_kind_of_source_are_exact(kind: str, tmp_path: Path) -> None:
    make, fields = KINDS[kind]
    source = make(tmp_path)
    options: dict[str, Any] = {"fields": fields, "shuffle": True, "seed": 6, "label": None}
    with Loader(source, batch_size=12, num_workers=1, **options) as loader:
        whole = row_digests(loader)
        assert sorted(whole) == list(range(COUNT))
    with Loader(source, batch_size=12, num_workers=8, **options) as loader:
        batches = iter(loader)
        first = row_digests([next(batches) for _ in range(2)])
        state = loader.state_dict()
        assert first | row_digests(batches) == whole
    rest: dict[int, str] = {}
    for rank in range(3):
        with Loader(source, batch_size=5, rank=rank, world_size=3, **options) as part:
            part.load_state_dict(state)
            rest |= row_digests(part)
    assert rest == {at: row for at, row in whole.items() if at >= 24}


@pytest.mark.parametrize("kind", ["folder", "table", "arrays"])
def test_parts_of_every_kind_of_source_are_those_of_their_record(kind: str, tmp_path: Path) -> None:
    make, fields = KINDS[kind]
    source = make(tmp_path)
    whole = F.Image([T.Resize((40, 56))], part=fields["image"].part)
    shown = {"image": whole, "mask": fields["mask"], "caption": fields["caption"], "score": fields["score"]}
    with Loader(source, fields=shown, batch_size=COUNT, shuffle=True, label=None) as loader:
        batch = next(iter(loader))
        numbers = [round(4 * score) for score in batch["score"].tolist()]
        assert sorted(numbers) == list(range(COUNT))
        assert batch["caption"] == [caption(number) for number in numbers]
        for row, number in enumerate(numbers):
            assert np.array_equal(batch["image"][row], picture(number).transpose(2, 0, 1))
            assert np.array_equal(batch["mask"][row], mask_of(number))


# The commands -------------------------------------------------------------------------------------------------------

AS_JSON = json.dumps(
    [
        {"type": "Image", "name": "image", "transforms": [{"type": "Resize", "size": [40, 56]}]},
        {"type": "Mask", "name": "mask", "part": "seg.png"},
        {"type": "Text", "name": "caption", "part": "txt", "max_bytes": 64},
    ]
)


def fuelrail(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(binary()), *arguments], capture_output=True, text=True, timeout=120)


def test_inspect_says_how_long_parts_are_and_which_cap_holds_them(tmp_path: Path) -> None:
    source = one_shard(tmp_path, {7: {"txt": None}, 8: {"txt": b"\xff"}, 9: {"txt": b"x" * 300}})
    fields = '[{"type": "Text", "part": "txt"}, {"type": "Numbers", "part": "json:boxes", "max_rows": 1}]'
    done = fuelrail("inspect", source, "--fields", fields, "--json", "-o", "label=none")
    assert done.returncode == 0, done.stderr
    text, boxes = json.loads(done.stdout)["parts"]
    assert (text["missing"], text["unusable"], text["records"]) == (1, 1, 38)
    assert text["lengths"]["max"] == text["lengths"]["99.9%"] == 300
    assert "0008" in text["first_unusable"]["key"] and "not UTF-8" in text["first_unusable"]["why"]
    assert boxes["lengths"] == {"min": 0, "median": 2, "99.9%": 4, "max": 4}
    said = fuelrail("inspect", source, "--fields", fields, "-o", "label=none").stdout
    assert "max_bytes=300 holds 99.9% of them" in said and "1 have none" in said


def test_preview_draws_the_borders_of_masks_and_the_captions(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    options = ("--count", "4", "--columns", "2", "--no-shuffle", "--out", str(out))
    done = fuelrail("preview", shards, "--fields", AS_JSON, *options)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(out))
    # Two pictures of 56 pixels beside each other in a record, and a line of text below.
    assert sheet.shape == (2 * (40 + 10 + 6) + 6, 2 * (56 + 2 + 56 + 6) + 6, 3)
    assert np.array_equal(sheet[6:46, 6:62], picture(0))
    mask = mask_of(0)
    border = np.zeros(mask.shape, dtype=bool)
    border[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    border[:-1] |= mask[:-1] != mask[1:]
    assert np.array_equal((sheet[6:46, 64:120] == (255, 0, 255)).all(axis=2), border)
    assert (sheet[46:56, 6:62] < 100).any()


def test_bench_and_which_know_fields(shards: str, tmp_path: Path) -> None:
    done = fuelrail("bench", shards, "--fields", AS_JSON, "--seconds", "0.2", "--batch-size", "4")
    assert done.returncode == 0 and "caption text up to 64 bytes" in done.stdout, done.stdout + done.stderr
    wrong = fuelrail(
        "bench", shards, "--fields", '[{"type": "Text", "name": "c", "part": "txt", "max_byte": 4}]'
    )
    assert wrong.returncode != 0 and "--fields[0]" in wrong.stderr and '"max_bytes"' in wrong.stderr, (
        wrong.stderr
    )
    with Loader(
        shards, fields={"caption": F.Text("txt", max_bytes=64)}, batch_size=8, seed=3, shuffle=True
    ) as loader:
        keys = loader.keys(next(iter(loader)))
        state = loader.state_dict()
    (tmp_path / "state.json").write_text(json.dumps(state))
    pipelines = tmp_path / "pipelines.toml"
    pipelines.write_text(
        f'[pipelines.text]\nsource = "{shards}"\nbatch_size = 8\nseed = 3\nshuffle = true\n'
        'fields = [{ type = "Text", name = "caption", part = "txt", max_bytes = 64 }]\n'
    )
    state_file = str(tmp_path / "state.json")
    done = fuelrail(
        "which", "--config", str(pipelines), "--pipeline", "text", "--state", state_file, "--before"
    )
    assert done.returncode == 0, done.stderr
    assert all(key in done.stdout for key in keys), done.stdout


def test_pack_keeps_every_part_and_the_shards_have_the_same_fields(tmp_path: Path) -> None:
    source = in_a_folder(tmp_path)
    (tmp_path / "train" / "c1" / "0007.txt").unlink()
    asked = json.dumps(
        [
            {"type": "Image", "name": "image"},
            {"type": "Mask", "name": "mask", "part": "seg.png"},
            {"type": "Text", "part": "txt"},
            {"type": "Json", "part": "json"},
            {"type": "Numbers", "part": "json:boxes", "max_rows": 1},
        ]
    )
    shards = tmp_path / "shards"
    done = fuelrail("pack", source, str(shards), "--fields", asked)
    assert done.returncode == 0, done.stderr
    renamed = dict(re.findall(r'part "(.+)" is "(.+)" in the shards', done.stdout))
    assert renamed["txt"] == "txt" and renamed["json"] == "json" and len(renamed) == 4, done.stdout

    def fields(mask: str, boxes: str) -> dict[str, F.Field]:
        return {
            "image": F.Image(CROP),
            "mask": F.Mask(mask),
            "caption": F.Text("txt", max_bytes=64, missing="empty"),
            "meta": F.Json("json", max_bytes=512),
            "boxes": F.Numbers(boxes, max_rows=5),
        }

    packed = fields(renamed["seg.png"], renamed["json:boxes"])
    with (
        Loader(source, fields=fields("seg.png", "json:boxes"), batch_size=7) as before,
        Loader(f"{shards}/shard-*.tar", fields=packed, batch_size=7) as after,
    ):
        assert row_digests(before) == row_digests(after)
    again = fuelrail("pack", source, str(shards), "--fields", asked)
    assert again.returncode == 0 and "already packed" in again.stdout
    other = fuelrail("pack", source, str(shards))
    assert other.returncode != 0 and "different shards" in other.stderr
