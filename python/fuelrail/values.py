"""Fields of a batch that are not a single array: rows of varying length, text, JSON, and crops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from fuelrail import _native

Array = TypeVar("Array")


class Ragged(Generic[Array]):
    """Rows of varying length, padded with zeros, and their lengths.

    `padded` is (N, max_rows, ...), `lengths` (N,) int64. `list()` has an array per row, without padding. Iterating and
    indexing give the same arrays.
    """

    __slots__ = ("lengths", "padded")

    def __init__(self, padded: Array, lengths: Array) -> None:
        #: All rows, with zeros after their ends: (N, max_rows, ...).
        self.padded = padded
        #: The length of each row: (N,) int64.
        self.lengths = lengths

    def list(self) -> list[Array]:
        """An array per row, without the padding: views."""
        padded: Any = self.padded
        lengths: Any = self.lengths
        return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(self.lengths)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Array:
        padded: Any = self.padded
        lengths: Any = self.lengths
        one: Array = padded[row][: int(lengths[row])]
        return one

    def __iter__(self) -> Iterator[Array]:
        return iter(self.list())

    def __repr__(self) -> str:
        padded: Any = self.padded
        return f"{type(self).__name__}(shape={tuple(padded.shape)}, dtype={padded.dtype})"


class Crops(NamedTuple, Generic[Array]):
    """Where images were cropped, in pixels of the upright originals: (N,) float32 each."""

    top: Array
    left: Array
    height: Array
    width: Array
    #: 1 if left and right are mirrored.
    flip_x: Array
    #: 1 if top and bottom are mirrored.
    flip_y: Array
    original_height: Array
    original_width: Array


class Held(Mapping[str, Any], Generic[Array]):
    """The fields of a batch by name; some are created on access."""

    __slots__ = ("_made", "_ragged", "_text")

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._ragged: dict[str, Ragged[Array]] = {}
        self._text: dict[str, Callable[[], list[Any]]] = {}

    def __getitem__(self, name: str) -> Any:
        # Removed only once its value exists: another thread may access it meanwhile, or creating it may fail.
        if (make := self._text.get(name)) is not None:
            self._made[name] = make()
            self._text.pop(name, None)
        return self._made[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._made[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def ragged(self, name: str) -> Ragged[Array] | None:
        """A field of varying length as padded rows and their lengths, or None for other fields."""
        return self._ragged.get(name)

    def mapped(self, change: Callable[[Array], Array]) -> Held[Array]:
        """The same with all arrays changed; text and JSON are unchanged."""
        fields: Held[Array] = Held()
        rows = {
            name: type(each)(change(each.padded), change(each.lengths)) for name, each in self._ragged.items()
        }
        fields._ragged, fields._text = rows, dict(self._text)
        for name, value in self._made.items():
            if isinstance(value, Ragged):
                fields._made[name] = rows[name]
            elif isinstance(value, Crops):
                fields._made[name] = Crops(*map(change, value))
            else:
                fields._made[name] = value if value is None or isinstance(value, list) else change(value)
        return fields

    def put(self, field: Mapping[str, Any], value: Array, lengths: Array | None, rows: Rows[Array]) -> None:
        """One of the record's own fields, as its content is delivered."""
        name, content = field["name"], field.get("content", "dense")
        self._made[name] = value
        if lengths is not None:
            self._ragged[name] = rows.kind(value, lengths)
            self._made[name] = self._ragged[name]
        if content == "geometry":
            columns: Any = value
            self._made[name] = Crops(*(columns[:, at] for at in range(8)))
        if content in ("text", "bytes", "json"):
            # Its place among the others; the value is created on access.
            self._made[name] = None
            self._text[name] = rows.texts(content)


class Rows(NamedTuple, Generic[Array]):
    """Creates rows of varying length from one field of a native batch."""

    kind: type[Ragged[Array]]
    native: _native.Batch
    at: int

    def texts(self, content: str) -> Callable[[], list[Any]]:
        """The function that creates the values of a field of text, bytes or JSON."""
        native, at = self.native, self.at
        if content == "bytes":
            return lambda: native.blobs(at)
        if content == "text":
            return lambda: native.texts(at)
        return lambda: [json.loads(text) if text else None for text in native.texts(at)]
