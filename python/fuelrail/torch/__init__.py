"""fuelrail for PyTorch: `from fuelrail.torch import Loader, transforms as T`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Self

from fuelrail import _native, fields, loader, transforms, values
from fuelrail.checks import shown
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader
from fuelrail.options import OPTIONS, documented
from fuelrail.values import Held

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "fuelrail.torch needs PyTorch, which is not installed here: pip install torch, or use fuelrail.numpy",
        name="torch",
    ) from None
import torch.utils.dlpack

from fuelrail.torch.finishing import finish
from fuelrail.torch.mixing import CutMix, MixUp, Mixup
from fuelrail.torch.place import Cuda
from fuelrail.uploads import AHEAD, Uploads

__all__ = ["Batch", "CutMix", "Loader", "MixUp", "Mixup", "Ragged", "fields", "transforms"]

logger = logging.getLogger("fuelrail")

_COLUMNS = {"i64": torch.int64, "bool": torch.bool, "f32": torch.float32}


class Ragged(values.Ragged[torch.Tensor]):
    """Rows of differing length, as tensors."""

    __slots__ = ()

    def nested(self) -> torch.Tensor:
        """The rows as one nested tensor with jagged layout: a copy without the padding."""
        return torch.nested.nested_tensor(self.list(), layout=torch.jagged)

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """The same on a device."""
        return type(self)(
            *(each.to(device, non_blocking=non_blocking) for each in (self.padded, self.lengths))
        )


class Batch(loader.Batch[torch.Tensor]):
    """One batch of tensors; see `fuelrail.loader.Batch` for its use."""

    __slots__ = ()

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """The batch with all fields on a device; tensors already there are not copied."""
        return self._with(self._fields.mapped(lambda field: field.to(device, non_blocking=non_blocking)))

    def pin_memory(self, device: torch.device | str | None = None) -> Self:
        """The batch in pinned memory, for asynchronous copies to a device (`to(device, non_blocking=True)`)."""
        del device  # torch's own argument; it knows the device that pins
        return self._with(self._fields.mapped(lambda field: field.pin_memory()))


@documented(*OPTIONS)
class Loader(BaseLoader[torch.Tensor]):
    """Iterates over batches of images as torch tensors, prepared by a daemon in Rust.

    Images have shape (N, C, H, W); on the CPU they are views of shared memory, and a slot is returned when
    the last tensor over it is gone. Labels are int64 of shape (N,).

    Args:
        source: a folder of class folders, tar shards, Parquet, Arrow, CSV, JSONL, HDF5, .npy or .npz files, local or at
            s3://, gs://, az:// or https:// (see `fuelrail.Source`); "synthetic://?count=1000&width=500&height=375"; a
            `fuelrail.Mix` of several; or "unix:///path/to/socket" of a running `fuelrail serve`, with `pipeline=`.
        transforms: the transforms for each image: a list of steps from `fuelrail.transforms`, or torchvision's own
            objects (also a `Compose`, and `weights.transforms()`), which are translated. The final size must be fixed.
        ...: as the fields of `fuelrail.options.LoaderOptions`.

    None means the default, except for batch_size. Arguments of torch's DataLoader with a value that has no effect
    (`sampler=None`, `persistent_workers=False`) are accepted; for its other arguments, the error says what to use
    instead.

    Its methods can be called from any thread, from signal handlers, callbacks, `__del__` and `atexit`, even while a
    thread is in `next()`. A handler that ends the iteration (`close`, `load_state_dict`, `iter`) causes an error in the
    `next()` that it interrupted; one that calls `next()` gets the batch that was due.

    Raises:
        ConfigError, SourceError, EnvironmentFailure: at once. DataError, DaemonDied, LoaderTimeout: while
            iterating.
    """

    _batch = Batch

    def _place(self, device: Any) -> torch.device | None:
        if device is None:
            return None
        try:
            place = torch.device(device)
            if place.type == "cuda":
                found = torch.cuda.device_count() if torch.cuda.is_available() else 0
                if (place.index or 0) >= found:
                    devices = "CUDA devices" if found != 1 else "CUDA device"
                    raise RuntimeError(f"torch finds {found} {devices} here")
            else:
                torch.empty(0, device=place)
        except (RuntimeError, TypeError, AssertionError, NotImplementedError, ImportError) as error:
            why = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
            raise ConfigError(
                f"device={shown(device)} cannot be used: {why}. Give a device of this machine, like "
                '"cuda", "cuda:1" or "cpu", or leave it out'
            ) from None
        return place

    _ragged = Ragged
    _pins = True

    def _opened(self) -> None:
        if self._device is None or self._device.type != "cuda":
            if self._chosen.pin_memory and not torch.cuda.is_available():
                logger.warning("pin_memory=True does nothing here: torch finds no CUDA device")
            return
        buffers = self._chosen.device_buffers
        place = Cuda(self._device, rows=self.batch_size, buffers=buffers)
        self._uploads = Uploads(
            self._feed,
            place,
            self._attached["layout"],
            pin=self._chosen.pin,
            ahead=AHEAD if buffers is None else min(AHEAD, buffers - 1),
        )

    def _finishes(self) -> bool:
        return self._device is not None and self._device.type == "cuda"

    def _take(self, iteration: int) -> tuple[_native.Batch, Held[torch.Tensor]] | None:
        if self._uploads is None:
            return super()._take(iteration)
        taken = self._uploads.take(iteration, self._timeout)
        if taken is None:
            return None
        native, tensors, columns = taken
        return native, self._convert(native, tensors, columns)

    def _tensor(self, batch: _native.Batch, at: int) -> torch.Tensor:
        return self._placed(torch.utils.dlpack.from_dlpack(batch.tensor(at)))

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device is not None:
            return tensor.to(self._device)
        if self._chosen.pin_memory and torch.cuda.is_available():
            return tensor.pin_memory()
        return tensor

    def _finish(
        self, at: int, array: torch.Tensor, left: Mapping[str, Any], beside: torch.Tensor | None
    ) -> torch.Tensor:
        return finish(array, left, beside)

    def _column(self, column: bytearray, dtype: str, name: str) -> torch.Tensor:
        kind = _COLUMNS[dtype]
        # torch.frombuffer refuses an empty buffer: a rank without rows in a tail.
        tensor = torch.frombuffer(column, dtype=kind) if column else torch.empty(0, dtype=kind)
        return self._placed(tensor) if name in ("label", "weight") else tensor
