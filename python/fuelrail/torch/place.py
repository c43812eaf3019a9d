"""Tensors on a CUDA device, filled on a separate stream from the training step's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from fuelrail import _native
from fuelrail.torch.dtypes import DTYPES
from fuelrail.torch.finishing import finish
from fuelrail.uploads import Place, Room


class _Mark(NamedTuple):
    done: torch.cuda.Event
    buffer: int | None


class Cuda(Place[torch.Tensor]):
    """One CUDA device.

    Tensors are allocated for the side stream. The allocator reuses a tensor's memory for a later batch once
    the streams that used it (`record_stream`) have finished with it. Work on the side stream itself is in order, so a
    batch that nobody takes needs no wait.

    With `buffers`, batch k is in buffer k % buffers. The buffer is filled once the consumer's stream has finished the
    work queued before the consumer requested the batch after the buffer's previous one.
    """

    def __init__(self, device: torch.device, *, rows: int, buffers: int | None) -> None:
        self.ordinal = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", self.ordinal)
        # From the pool of high-priority streams: kernels that finish a batch do not queue after the step's.
        self._side = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        self._rows = rows
        self._buffers = buffers
        self._buffer: int | None = None
        self._fixed: dict[tuple[int, int], torch.Tensor] = {}
        self._floats: dict[tuple[int, int], torch.Tensor] = {}
        self._free: dict[int, torch.cuda.Event] = {}
        self._taken: int | None = None
        self._waits: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._waited = 0.0

    @contextmanager
    def begin(self, batch: int) -> Iterator[None]:
        """Allocates for the side stream; with buffers, in the batch's buffer."""
        with torch.cuda.stream(self._side):
            self._buffer = None
            if self._buffers is not None:
                self._buffer = batch % self._buffers
                free = self._free.pop(self._buffer, None)
                if free is not None:
                    self._side.wait_event(free)
            yield

    @property
    def stream(self) -> int:
        """The side stream's handle."""
        return int(self._side.cuda_stream)

    def room(self, at: int, field: Mapping[str, Any], rows: int) -> Room[torch.Tensor]:
        """A tensor with the field's strides."""
        dtype = DTYPES[field["dtype"]]
        shape, strides = field.get("shape", ()), field.get("strides", ())
        row = field.get("row_bytes", dtype.itemsize)
        fixed = self._buffer is not None
        tensor = self._fixed.get((self._buffer, at)) if self._buffer is not None else None
        if tensor is None:
            count = self._rows if fixed else rows
            tensor = torch.empty_strided(
                (count, *shape), (row // dtype.itemsize, *strides), dtype=dtype, device=self.device
            )
            if self._buffer is not None:
                self._fixed[self._buffer, at] = tensor
        tensor = tensor[:rows] if fixed else tensor
        return Room(tensor, tensor.data_ptr(), rows * row)

    def finish(
        self, at: int, tensor: torch.Tensor, left: Mapping[str, Any], beside: torch.Tensor | None
    ) -> torch.Tensor:
        """Floats; with buffers, in the batch's buffer."""
        if self._buffer is None:
            return finish(tensor, left, beside)
        whole = self._fixed[self._buffer, at]
        floats = self._floats.get((self._buffer, at))
        if floats is None:
            floats = torch.empty_like(whole, dtype=DTYPES[left["dtype"]])
            self._floats[self._buffer, at] = floats
        return finish(tensor, left, beside, floats[: len(tensor)])

    def mark(self, copied: _native.Copied) -> _Mark:
        """An event after the copy and its finishing kernels."""
        del copied  # on the side stream, too
        return _Mark(self._side.record_event(), self._buffer)

    def hand_over(self, mark: _Mark, arrays: Sequence[torch.Tensor]) -> None:
        """Makes the current stream wait, and tells the allocator that it uses the tensors."""
        stream = self._consumer()
        # The time between the two on the stream is the wait.
        begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begins.record(stream)
        stream.wait_event(mark.done)
        ends.record(stream)
        self._waits.append((begins, ends))
        if mark.buffer is None:
            for array in arrays:
                array.record_stream(stream)
        self._taken = mark.buffer

    def copy_wait_s(self) -> float:
        """Seconds between the events around each wait that the stream has passed."""
        while self._waits and self._waits[0][1].query():  # type: ignore[no-untyped-call]
            begins, ends = self._waits.popleft()
            self._waited += begins.elapsed_time(ends) / 1e3
        return self._waited

    def asked(self) -> None:
        """Records the point where the consumer's stream has finished with its previous buffer."""
        self.copy_wait_s()
        taken, self._taken = self._taken, None
        if taken is not None:
            self._free[taken] = self._consumer().record_event()

    def drop(self, mark: _Mark) -> None:
        """Does nothing: later work on the side stream comes after it."""

    def _consumer(self) -> torch.cuda.Stream:
        stream = torch.cuda.current_stream(self.device)
        # A signal handler may have interrupted the creation of a batch.
        return torch.cuda.default_stream(self.device) if stream == self._side else stream
