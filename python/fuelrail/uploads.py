"""Copies batches to a GPU, a few ahead of the consumer. A `Place` is the framework's part.

    daemon ──▶ slot ──copy on the side stream──▶ arrays on the GPU ──▶ waiting ──▶ the consumer's stream waits ──▶ taken
                └── goes back when the copy is done, by a thread of the native half

Never waits for a batch after the one that is due: the next copy starts only if that batch is already there.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from fuelrail import _native
from fuelrail.errors import EnvironmentFailure

logger = logging.getLogger("fuelrail")

Array = TypeVar("Array")

#: Batches on the GPU ahead of the consumer.
AHEAD = 2

_HELD = ("text", "bytes", "json")


class Room(NamedTuple, Generic[Array]):
    """Memory of a batch's field on the GPU."""

    array: Array
    address: int
    bytes: int


class Place(ABC, Generic[Array]):
    """The framework's part: memory on one GPU, and waits between streams."""

    #: Which GPU, among those that the process sees.
    ordinal: int

    @abstractmethod
    def begin(self, batch: int) -> AbstractContextManager[object]:
        """A context for creating the arrays of batch N, counted from 0: their memory belongs to the side stream."""

    @property
    @abstractmethod
    def stream(self) -> int:
        """The side stream's handle."""

    @abstractmethod
    def room(self, at: int, field: Mapping[str, Any], rows: int) -> Room[Array]:
        """Memory for a field (or a column, which has a dtype alone), strides included."""

    @abstractmethod
    def finish(self, at: int, array: Array, left: Mapping[str, Any], beside: Array | None) -> Array:
        """Converts field `at`, copied as bytes, to floats, using the remaining steps and the field beside it."""

    @abstractmethod
    def mark(self, copied: _native.Copied) -> Any:
        """A mark after all work started so far."""

    @abstractmethod
    def hand_over(self, mark: Any, arrays: Sequence[Array]) -> None:
        """Makes the consumer's stream wait for a mark, and keeps the arrays until it has finished with them."""

    @abstractmethod
    def asked(self) -> None:
        """The consumer requests the next batch: all its work on the previous one is already queued on its stream."""

    def copy_wait_s(self) -> float | None:
        """Seconds that the consumer's stream waited for copies, as far as known; None if unknown."""
        return None

    @abstractmethod
    def drop(self, mark: Any) -> None:
        """The arrays of a mark are discarded: waits until their work is done."""


def finished(
    fields: Sequence[Mapping[str, Any]],
    arrays: list[Array],
    finish: Callable[[int, Array, Mapping[str, Any], Array | None], Array],
) -> None:
    """Applies to each array the steps left to the client: `finish(number, array, left, the array beside)`."""
    for at, field in enumerate(fields):
        if (left := field.get("finishing")) is not None:
            arrays[at] = finish(at, arrays[at], left, arrays[at + 1] if left["erasings"] else None)


@dataclass(slots=True)
class _Coming(Generic[Array]):
    """A batch being copied."""

    iteration: int
    #: Without its slot.
    native: _native.Batch
    tensors: list[Array]
    columns: dict[int, Array]
    mark: Any

    def arrays(self) -> list[Array]:
        return [*self.tensors, *self.columns.values()]


class Uploads(Generic[Array]):
    """Copies one loader's batches to its GPU."""

    def __init__(
        self,
        feed: _native.Feed,
        place: Place[Array],
        layout: Mapping[str, Any],
        *,
        pin: str,
        ahead: int = AHEAD,
    ) -> None:
        self._feed = feed
        self._place = place
        self._own: list[dict[str, Any]] = layout["fields"]
        # The daemon's columns about rows stay on the CPU, where they are used; labels go to the GPU.
        self._labels = {
            at: column for at, column in enumerate(layout["columns"]) if column["name"] == "label"
        }
        # With the lengths after each.
        text = [at for at, field in enumerate(self._own) if field.get("content") in _HELD]
        self._text = [each for at in text for each in (at, at + 1)]
        self._coming: deque[_Coming[Array]] = deque()
        self._ahead = ahead
        self._failed: Exception | None = None
        self._begun = 0
        self.bytes = 0
        try:
            self._uploader = feed.uploader(place.ordinal, pin)
        except RuntimeError as error:
            raise EnvironmentFailure(
                f'pin="{pin}": {error}. pin="auto" goes on without page-locked memory, more slowly'
            ) from None
        took, refused = self._uploader.locked, self._uploader.refused
        if took is not None:
            logger.debug("the ring is page-locked (%.2f s)", took)
        elif refused is not None:
            logger.warning("copies to the GPU are slower than they could be: %s", refused)

    @property
    def copy_wait_s(self) -> float | None:
        """Seconds that the consumer's stream waited for copies."""
        return self._place.copy_wait_s()

    @property
    def pinned(self) -> bool:
        """Whether the ring is page-locked."""
        return self._uploader.locked is not None

    def take(
        self, iteration: int, timeout: float | None
    ) -> tuple[_native.Batch, list[Array], dict[int, Array]] | None:
        """The next batch of an iteration, which holds no slot, and its fields and columns on the GPU."""
        self._place.asked()
        due = self._due(iteration)
        if due is None:
            if self._failed is not None:
                failed, self._failed = self._failed, None
                raise failed
            native = self._feed.next(iteration, timeout)
            if native is None:
                return None
            due = self._start(iteration, native)
        self._look_ahead(iteration)
        self._place.hand_over(due.mark, due.arrays())
        return due.native, due.tensors, due.columns

    def waiting(self, iteration: int) -> int:
        """Batches of an iteration that have left the feed but have not been taken."""
        return sum(coming.iteration == iteration for coming in list(self._coming))

    def close(self) -> None:
        """Drop what is on its way, and wait until no copy reads shared memory any more."""
        while self._coming:
            self._place.drop(self._coming.popleft().mark)
        self._uploader.wait()

    def _due(self, iteration: int) -> _Coming[Array] | None:
        while True:
            try:
                # One step: a signal handler may take a batch at any time.
                coming = self._coming.popleft()
            except IndexError:
                return None
            if coming.iteration == iteration:
                return coming
            self._failed = None
            self._place.drop(coming.mark)

    def _look_ahead(self, iteration: int) -> None:
        while self._failed is None and len(self._coming) < self._ahead:
            try:
                native = self._feed.poll(iteration)
            except Exception as error:
                # The batch that is due comes first.
                self._failed = error
                return
            if native is None:
                return
            self._coming.append(self._start(iteration, native))

    def _start(self, iteration: int, native: _native.Batch) -> _Coming[Array]:
        place, uploads, labels = self._place, [], []
        number, self._begun = self._begun, self._begun + 1
        tensors: list[Array] = []
        columns: dict[int, Array] = {}
        with place.begin(number):
            for at, field in enumerate(self._own):
                room = place.room(at, field, native.rows)
                tensors.append(room.array)
                uploads.append((at, room.address, room.bytes))
            for at, column in self._labels.items():
                room = place.room(len(self._own) + at, column, native.rows)
                columns[at] = room.array
                labels.append((at, room.address, room.bytes))
            copied = self._uploader.copy(native, uploads, labels, place.stream)
            self.bytes += sum(size for _, _, size in [*uploads, *labels])
            finished(self._own, tensors, place.finish)
            mark = place.mark(copied)
        # Only the copy holds the slot now.
        return _Coming(iteration, native.held(self._text), tensors, columns, mark)
