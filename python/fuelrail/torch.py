"""fuelrail for PyTorch: `from fuelrail.torch import Loader, transforms as T`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
import torch.utils.dlpack

from fuelrail import _native, transforms
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader, Batch, LoaderOptions
from fuelrail.sources import Address, Mix, Source
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
        source: a folder of class folders, tar shards, Parquet, Arrow, CSV, JSONL, HDF5, .npy or .npz files, here or
            behind s3://, gs://, az:// or https:// (see `fuelrail.Source`); "synthetic://?count=1000&width=500&height=375";
            a `fuelrail.Mix` of several; or "unix:///path/to/socket" of a running `fuelrail serve`, with `pipeline=`.
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
        timeout: seconds after which a batch that does not come is an error, and after which opening the source
            is, when it gets on no more; 0 or None waits for ever.
        on_error: "substitute" another record for a bad one, "drop" its row, or "fail".
        error_budget: bad records tolerated: below 1 a share of the source (default 0.01, at least 16), else a
            count.
        quarantine: file to which bad records are appended, one JSON line each.
        image, label, fields, tokens: which columns, arrays, datasets or tar members to take, as `fuelrail.Source` says.
        classes: fixes the mapping from class names to labels (pass the training loader's to the validation
            loader).
        split: "train[:90%]" or "train[90%:]": a part of the source, by a hash of each key.
        cache_dir, cache_limit: where copies of remote and unpacked files are kept, and how many bytes of them
            ("100gb").
        source_options: further keys of this kind of source, like `{"root": "images/"}` for a manifest.
        sampling: "class_balanced" draws every class equally often; {"cat": 2, "dog": 1} draws classes in these
            shares. Within a class, no record comes again before all others of it. The order is random.
        weights: one number a record (or a .npy file of them): how often it is drawn, relative to the others.
        samples_per_epoch: draws in an epoch, with sampling or weights. Default: the number of records.
        read_backend: "auto", "io_uring" or "threads".
        read_ahead_bytes: encoded bytes in flight (default 64 MiB).
        max_sample_bytes: decoded bytes of one sample above which it is bad (default 256 MiB).
        truncated: what becomes of an image whose data end before its picture does: "bad" makes it a bad record,
            "fill" delivers the part that is there (JPEG, PNG and GIF), as Pillow's LOAD_TRUNCATED_IMAGES does.
        pipeline: name of a pipeline of the daemon at `source`.

    Raises:
        ConfigError, SourceError, EnvironmentFailure: at once. DataError, DaemonDied, LoaderTimeout: while
            iterating.
    """

    def __init__(
        self,
        source: Address | Source | Mix | Mapping[str, Any],
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
        fields = {
            field["name"]: torch.utils.dlpack.from_dlpack(batch.tensor(at))
            for at, field in enumerate(self._own)
        }
        own = list(fields)
        for at, field in enumerate(self._small):
            dtype = _SMALL[field["dtype"]]
            # torch.frombuffer refuses an empty buffer: a rank without rows in a tail.
            fields[field["name"]] = (
                torch.frombuffer(batch.small(at), dtype=dtype) if batch.rows else torch.empty(0, dtype=dtype)
            )
        if self._device is not None and self._device.type != "cpu":
            for name in (*own, "label"):
                fields[name] = fields[name].to(self._device)
        return fields
