"""The fields of a batch: each is made from one part of a record.

>>> from fuelrail import fields as F, transforms as T
>>> pairs = {
...     "image": F.Image([T.RandomResizedCrop(224)], part="jpg;png"),
...     "caption": F.Text("txt", max_bytes=512),
... }

`Loader(source, fields=pairs)` then gives `batch["image"]` and `batch["caption"]`. A *part* names the data in
the source: the extension of a file next to the image ("txt", "seg.png"), a column ("caption"), a key inside JSON
("json:meta.caption"). A record whose part is missing, longer than its field, or of the wrong kind is a bad record,
unless `missing=` or `overflow=` says otherwise; nothing is truncated silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fuelrail import checks, interop
from fuelrail.errors import ConfigError

__all__ = [
    "Boxes",
    "Bytes",
    "Field",
    "Geometry",
    "Image",
    "Json",
    "Keypoints",
    "Mask",
    "Numbers",
    "Text",
    "Views",
]

_OVERFLOW = checks.choice("bad", "cut")
_MISSING = checks.choice("bad", "empty")
_INVALID = checks.choice("bad", "drop")
_BOX_FORMAT = checks.choice("xyxy", "xywh", "cxcywh", "xyxyn", "xywhn", "cxcywhn")
#: The daemon enforces the real maximum.
_COUNT = checks.whole(1, 1 << 62)

#: Types of numbers, by numpy's and torch's names, and the daemon's.
_NUMBERS = {
    **{f"uint{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"f{bits}" for bits in (16, 32, 64)},
    **{"bool": "bool", "half": "f16", "float": "f32", "double": "f64", "long": "i64", "int": "i32"},
}


def _dtype(value: Any) -> str:
    """The daemon's name of a type of numbers."""
    name = (
        value if isinstance(value, str) else getattr(value, "name", None) or getattr(value, "__name__", value)
    )
    name = str(name).removeprefix("torch.").lstrip("<=|")
    known = _NUMBERS.get(name, name)
    if known not in _NUMBERS.values() or value in (float, int, bool):
        raise checks.Refused("a type of numbers by numpy's or torch's name, like int64 or float32")
    return known


def _part(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise checks.Refused('text that says where the source has it, like "txt", a column, or "json:key"')
    return value


def _row(value: Any) -> list[int]:
    sizes = [value] if isinstance(value, int) else value
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise checks.Refused("the shape of one row: () for one number, (4,) for a box")
    return [_COUNT(size) for size in sizes]


def _indices(value: Any) -> list[int]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(at, int) for at in value)
    ):
        raise checks.Refused("a list of whole numbers, such as [0, 2, 1]")
    return [checks.whole(0, 1 << 30)(at) for at in value]


class Field:
    """Base of all fields."""

    #: The dtype that conversions among its transforms request.
    dtype_asked: str | None = None

    def config(self, name: str) -> dict[str, Any]:
        """The field as the daemon takes it, under this name in the batch."""
        given = {key: value for key, value in self._arguments().items() if value is not None}
        return {"type": type(self).__name__, "name": name, **given}

    def _arguments(self) -> dict[str, Any]:
        # Without dtype_asked, which is not an argument.
        return {key: value for key, value in vars(self).items() if key != "dtype_asked"}

    def _checked(self, **takes: checks.Check) -> None:
        for argument, check in takes.items():
            value = getattr(self, argument)
            if value is not None:
                shown = f"fields.{type(self).__name__}: {argument}"
                object.__setattr__(self, argument, checks.accept(shown, value, check))


class _Drawn(Field):
    """A field with a chain of transforms."""

    transforms: Any
    part: str | Sequence[str] | None

    def _translated(self) -> None:
        if isinstance(self.part, Sequence) and not isinstance(self.part, str):
            object.__setattr__(self, "part", ";".join(self.part))
        self._checked(part=_part)
        steps, dtype = interop.chain(self.transforms)
        object.__setattr__(self, "transforms", steps)
        object.__setattr__(self, "dtype_asked", dtype)


@dataclass(frozen=True)
class Image(_Drawn):
    """An image: (N, C, H, W) in the batch.

    Args:
        transforms: transforms for this image, as in the Loader's own `transforms=`.
        part: the part of the record; of several extensions, the first that a record has is used. Default: the image
            that the source finds by itself.
    """

    transforms: Any = ()
    part: str | Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._translated()


@dataclass(frozen=True)
class Views(_Drawn):
    """Several views of one image, each with its own random parameters: (N, n, C, H, W) in the batch.

    All views of an image, including those of other fields, come from one decode.

    Args:
        n: views of each image.
        transforms: transforms for each view.
        part: as of `Image`.
    """

    n: int
    transforms: Any
    part: str | Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._checked(n=_COUNT)
        self._translated()


@dataclass(frozen=True)
class Mask(Field):
    """Class numbers for each pixel of an image, (N, H, W) uint8: cropped, resized, flipped and rotated as the image is.

    Palette indices and gray levels are unchanged, resizing uses nearest neighbours, colour transforms do not apply, and
    pixels outside the picture are 255.

    Args:
        part: the part of the record. It must have the size of its image.
        like: the field of the image.
        dtype: uint16 for masks with 16 bits.
        missing: what to do with a record without it: "bad" makes it a bad record, "empty" delivers 255 everywhere.
    """

    part: str
    like: str = field(default="image", kw_only=True)
    dtype: Any = field(default=None, kw_only=True)
    missing: str = field(default="bad", kw_only=True)

    def __post_init__(self) -> None:
        self._checked(part=_part, like=checks.text("the name of a field"), dtype=_dtype, missing=_MISSING)
        if self.dtype not in (None, "u8", "u16"):
            raise ConfigError(
                "fields.Mask: dtype= takes uint8 or uint16; batch[name].long() makes what losses take"
            )


@dataclass(frozen=True)
class _Variable(Field):
    part: str
    max_bytes: int = field(kw_only=True)
    overflow: str = field(default="bad", kw_only=True)
    missing: str = field(default="bad", kw_only=True)

    def __post_init__(self) -> None:
        self._checked(part=_part, max_bytes=_COUNT, overflow=_OVERFLOW, missing=_MISSING)


@dataclass(frozen=True)
class Text(_Variable):
    """Text: a `list[str]` in the batch; `batch.ragged(name)` has its bytes, for your own tokeniser.

    Args:
        part: the part of the record.
        max_bytes: the maximum length of a row, in bytes of UTF-8.
        overflow: what to do with a longer text: "bad" makes it a bad record, "cut" cuts it between two characters.
        missing: what to do with a record without it: "bad" makes it a bad record, "empty" delivers "".
    """


@dataclass(frozen=True)
class Bytes(_Variable):
    """Bytes as they are: a `list[bytes]` in the batch. Arguments as of `Text`."""


@dataclass(frozen=True)
class Json(_Variable):
    """A JSON value: a list of values in the batch, parsed on access.

    Arguments as of `Text`, without `overflow="cut"`; `missing="empty"` delivers None.
    """


@dataclass(frozen=True)
class Numbers(Field):
    """Numbers: of one shape in every record, (N, ...), or with `max_rows` a `Ragged` of as many rows as a record has.

    Args:
        part: the part of the record.
        like: a Boxes field, if there is one row per box: what removes a box removes its row. `max_rows` and
            `overflow` are then those of the boxes.
        dtype: their type in the batch. Default: as in the source; float32 from JSON lists of varying length.
        max_rows: the maximum number of rows, if records have different numbers of rows.
        row: the shape of one row, such as (4,) for boxes, if the source does not define it (JSON). Default: as in the
            first records.
        overflow: what to do with a record with more rows: "bad", or "cut" after the first `max_rows`.
        missing: what to do with a record without them: "bad", or "empty" for no rows.
    """

    part: str
    like: str | None = field(default=None, kw_only=True)
    dtype: Any = field(default=None, kw_only=True)
    max_rows: int | None = field(default=None, kw_only=True)
    row: Sequence[int] | None = field(default=None, kw_only=True)
    overflow: str = field(default="bad", kw_only=True)
    missing: str = field(default="bad", kw_only=True)

    def __post_init__(self) -> None:
        self._checked(
            part=_part,
            like=checks.text("the name of a Boxes field"),
            dtype=_dtype,
            max_rows=_COUNT,
            row=_row,
            overflow=_OVERFLOW,
            missing=_MISSING,
        )


@dataclass(frozen=True)
class Boxes(Field):
    """Bounding boxes that are cropped, resized, flipped and rotated as their image is: a `Ragged` of (4,) float32.

    Boxes are clipped where a crop ends. They are removed only by `T.SanitizeBoundingBoxes` among the image's transforms.
    Formats are "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height: COCO) and "cxcywh" (centre, width,
    height), in pixels; with an n ("cxcywhn": YOLO) as shares of the image's width and height.

    Args:
        part: the part of the record: rows of four numbers.
        like: the field of the image.
        format: the format in the source.
        to: the format in the batch, in pixels (or shares) of the transformed image. Default: as in the source.
        max_rows: the maximum number of boxes in a row, after the transforms.
        overflow: what to do with a record with more boxes: "bad", or "cut" after the first `max_rows`.
        missing: what to do with a record without them: "bad", or "empty" for no boxes.
        invalid: what to do with a box with NaN, or with its right edge left of its left one: "bad" makes the record a
            bad record, "drop" removes the box and the rows that follow it.
    """

    part: str
    like: str = field(default="image", kw_only=True)
    format: str = field(default="xyxy", kw_only=True)
    to: str | None = field(default=None, kw_only=True)
    max_rows: int = field(kw_only=True)
    overflow: str = field(default="bad", kw_only=True)
    missing: str = field(default="bad", kw_only=True)
    invalid: str = field(default="bad", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("format", "to"):
            value = getattr(self, name)
            if value is not None:  # torchvision's BoundingBoxFormat, or upper case
                object.__setattr__(self, name, str(getattr(value, "name", value)).lower())
        self._checked(
            part=_part,
            like=checks.text("the name of a field"),
            format=_BOX_FORMAT,
            to=_BOX_FORMAT,
            max_rows=_COUNT,
            overflow=_OVERFLOW,
            missing=_MISSING,
            invalid=_INVALID,
        )


@dataclass(frozen=True)
class Keypoints(Field):
    """Points that move as their image does: a `Ragged` of rows of (points, 2) or (points, 3) float32.

    The part has rows of shape (points, 2), (points, 3), or flat (3 * points) as in COCO. The third number is the
    visibility: a point with 0, or outside the transformed image, is delivered as 0, 0, 0. Without it, points outside
    keep their coordinates.

    Args:
        part: the part of the record.
        like: a Boxes field, if there is one row per box; or the field of the image.
        max_rows: the maximum number of rows. Default: that of the boxes.
        flip_indices: for each place, the point that takes it in a mirrored image (left and right are exchanged), such as
            [0, 2, 1] for nose, left eye, right eye.
        overflow: what to do with a record with more rows: "bad", or "cut" after the first `max_rows`.
        missing: what to do with a record without them: "bad", or "empty" for no rows.
    """

    part: str
    like: str = field(default="image", kw_only=True)
    max_rows: int | None = field(default=None, kw_only=True)
    flip_indices: Sequence[int] | None = field(default=None, kw_only=True)
    overflow: str = field(default="bad", kw_only=True)
    missing: str = field(default="bad", kw_only=True)

    def __post_init__(self) -> None:
        self._checked(
            part=_part,
            like=checks.text("the name of a field"),
            max_rows=_COUNT,
            flip_indices=_indices,
            overflow=_OVERFLOW,
            missing=_MISSING,
        )


@dataclass(frozen=True)
class Geometry(Field):
    """Where an image was cropped, in pixels of the original: a `Crops` of columns (N,) float32 in the batch.

    Args:
        of: the field of the image.
    """

    of: str = "image"

    def __post_init__(self) -> None:
        self._checked(of=checks.text("the name of a field"))


def named(value: Any) -> dict[str, Field]:
    """The mapping form of a Loader's `fields=`, checked.

    Raises:
        ConfigError: something in it is not a field.
    """
    for name, each in value.items():
        if isinstance(each, Field) and isinstance(name, str):
            continue
        hint = (
            f"; write fields.{each.__name__}(...)"
            if isinstance(each, type) and issubclass(each, Field)
            else ""
        )
        known = ", ".join(kind for kind in __all__ if kind != "Field")
        raise ConfigError(
            f"fields[{name!r}] is {checks.shown(each)}, which is not a field; fuelrail.fields has {known}{hint}"
        )
    return dict(value)
