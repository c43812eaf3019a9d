"""fuelrail for PyTorch: `from fuelrail.torch import Loader, transforms as T`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
import torch.utils.dlpack

from fuelrail import _native, transforms
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader, Batch, LoaderOptions
from fuelrail.transforms import Transform

__all__ = ["Batch", "Loader", "transforms"]

_DTYPES = {
    torch.uint8: "u8",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
}

_SMALL = {"i64": torch.int64, "bool": torch.bool}


class Loader(BaseLoader[torch.Tensor]):
    """Iterates over batches of images as torch tensors, prepared by a daemon in Rust.

    Images have shape (N, C, H, W); on the CPU they are views of shared memory, and a slot is given back when
    the last tensor over it is gone. Labels are int64 of shape (N,).

    Args:
        source: a folder of class folders; "synthetic://?count=1000&width=500&height=375"; or "unix:///path/to/socket"
            of a running `fuelrail serve`, with `pipeline=`.
        transforms: what happens to each image, from `fuelrail.transforms`. The last size must be fixed.
        batch_size: rows per batch and rank.
        shuffle: a new order in every epoch; a pure function of (seed, epoch, position).
        seed: of order and augmentation. The default is a constant.
        num_workers: threads of the daemon for this loader; 0 or None: one per core.
        drop_last: leave out a last batch that is not full.
        device: where batches go; None leaves them on the CPU. Copies are blocking in this version.
        dtype: torch.uint8, float32, float16 or bfloat16. Default: float32 with a Normalize, else uint8.
            float32 without Normalize is on the scale where white is 1.
        layout: "nchw" (contiguous) or "nhwc" (channels_last behind the same shape).
        prefetch_factor: finished batches kept ahead.
        rank, world_size: this process's share: row j of a global batch belongs to rank j mod world_size.
        timeout: seconds after which a batch that does not come is an error; 0 or None waits for ever.
        on_error: "substitute" another record for a bad one, "drop" its row, or "fail".
        error_budget: bad records tolerated: below 1 a share of the source (default 0.01, at least 16), else a
            count.
        quarantine: file to which bad records are appended, one JSON line each.
        classes: fixes the mapping from class folders to labels (pass the training loader's to the validation
            loader).
        split: "train[:90%]" or "train[90%:]": a part of the folder, by a hash of each key.
        read_backend: "auto", "io_uring" or "threads".
        read_ahead_bytes: encoded bytes in flight (default 64 MiB).
        max_sample_bytes: decoded bytes of one sample above which it is bad (default 256 MiB).
        pipeline: name of a pipeline of the daemon at `source`.

    Raises:
        ConfigError, SourceError, EnvironmentFailure: at once. DataError, DaemonDied, LoaderTimeout: while
            iterating.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        transforms: Sequence[Transform | Mapping[str, Any]] = (),
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        self._device = None if device is None else torch.device(device)
        if isinstance(dtype, torch.dtype):
            if dtype not in _DTYPES:
                known = ", ".join(str(known) for known in _DTYPES)
                raise ConfigError(f"dtype={dtype} is not made by the daemon; it makes {known}")
            dtype = _DTYPES[dtype]
        super().__init__(source, transforms=transforms, dtype=dtype, **options)

    def _convert(self, batch: _native.Batch) -> dict[str, torch.Tensor]:
        fields = {"image": torch.utils.dlpack.from_dlpack(batch.tensor())}
        for at, field in enumerate(self._fields[1:]):
            dtype = _SMALL[field["dtype"]]
            # torch.frombuffer refuses an empty buffer: a rank without rows in a tail.
            fields[field["name"]] = (
                torch.frombuffer(batch.small(at), dtype=dtype) if batch.rows else torch.empty(0, dtype=dtype)
            )
        if self._device is not None and self._device.type != "cpu":
            for name in ("image", "label"):
                fields[name] = fields[name].to(self._device)
        return fields
