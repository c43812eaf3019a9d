"""What a batch holds that is not one array: rows of differing length, and crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

Array = TypeVar("Array")


class Ragged(Generic[Array]):
    """Rows of differing length: padded with zeros, and how much of each row counts.

    `padded` is (N, max_rows, ...), `lengths` (N,) int64. `list()` has an array per row, as long as it is. Iterating and
    indexing give these too.
    """

    __slots__ = ("lengths", "padded")

    def __init__(self, padded: Array, lengths: Array) -> None:
        #: All rows, with zeros after their ends: (N, max_rows, ...).
        self.padded = padded
        #: How much of each row counts: (N,) int64.
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
    """Where images were cropped, in pixels of the originals as they are seen: (N,) float32 each."""

    top: Array
    left: Array
    height: Array
    width: Array
    #: 1 where left and right are mirrored.
    flip_x: Array
    #: 1 where top and bottom are mirrored.
    flip_y: Array
    original_height: Array
    original_width: Array
