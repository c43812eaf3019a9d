"""fuelrail for PyTorch: `from fuelrail.torch import Loader, transforms as T`."""

from __future__ import annotations

from typing import Any, Self

from fuelrail import _native, loader, transforms
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader
from fuelrail.options import shown

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

__all__ = ["Batch", "Loader", "transforms"]

_COLUMNS = {"i64": torch.int64, "bool": torch.bool}


class Batch(loader.Batch[torch.Tensor]):
    """One batch of tensors; `fuelrail.loader.Batch` says how it is used."""

    __slots__ = ()

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """The batch with all of its fields on a device; what is there already is not copied."""
        moved = {name: field.to(device, non_blocking=non_blocking) for name, field in self.items()}
        return self._with(moved)

    def pin_memory(self, device: torch.device | str | None = None) -> Self:
        """The batch in pinned memory, which a device copies from without waiting (`to(device, non_blocking=True)`)."""
        del device  # torch's own argument; it knows the device that pins
        return self._with({name: field.pin_memory() for name, field in self.items()})


class Loader(BaseLoader[torch.Tensor]):
    """Iterates over batches of images as torch tensors, prepared by a daemon in Rust.

    Images have shape (N, C, H, W); on the CPU they are views of shared memory, and a slot is given back when
    the last tensor over it is gone. Labels are int64 of shape (N,).

    Args:
        source: a folder of class folders, tar shards, Parquet, Arrow, CSV, JSONL, HDF5, .npy or .npz files, here or
            behind s3://, gs://, az:// or https:// (see `fuelrail.Source`); "synthetic://?count=1000&width=500&height=375";
            a `fuelrail.Mix` of several; or "unix:///path/to/socket" of a running `fuelrail serve`, with `pipeline=`.
        transforms: what happens to each image: a list of steps from `fuelrail.transforms`, or torchvision's own objects
            (also a `Compose`, and `weights.transforms()`), which are translated. The last size must be fixed.
        batch_size: rows per batch and rank.
        shuffle: a new order in every epoch; a pure function of (seed, epoch, position).
        seed: of order and augmentation. The default is a constant.
        num_workers: threads of the daemon for this loader; 0 or None: one per core.
        drop_last: leave out a last batch that is not full.
        device: where batches go; None leaves them on the CPU. Copies are blocking in this version.
        dtype: uint8, float32, float16 or bfloat16, as torch's or numpy's dtypes or as text. Default: float32 with a
            Normalize or a torchvision ToTensor, else uint8. float32 without Normalize is on the scale where white is 1.
        layout: "nchw" (contiguous, torch.contiguous_format) or "nhwc" (torch.channels_last; the same shape).
        prefetch_factor: finished batches kept ahead.
        rank, world_size: this process's share: row j of a global batch belongs to rank j mod world_size.
        timeout: seconds (or a timedelta) after which a batch that does not come is an error, and after which opening
            the source is, when it makes no progress; 0 or None waits for ever.
        on_error: "substitute" another record for a bad one, "drop" its row, or "fail".
        error_budget: bad records tolerated: a share of the source (default 0.01, or "1%"; at least 16 records), or a
            whole number of records. 1 is one record, "100%" all; 1.0 is refused, for it may mean either.
        quarantine: file to which bad records are appended, one JSON line each.
        image, label, fields, tokens: which columns, arrays, datasets or tar members to take, as `fuelrail.Source` says.
            label=None: no labels, and a batch has none.
        classes: fixes the mapping from class names to labels (pass the training loader's to the validation
            loader).
        split: "train[:90%]" or "train[90%:]": a part of the source, by a hash of each key.
        cache_dir, cache_limit: where copies of remote and unpacked files are kept, and how many bytes of them
            ("100gb").
        source_options: further keys of this kind of source, like `{"root": "images/"}` for a manifest. They can be
            given as arguments, too: `Loader("list.csv", root="images/")`; only a source's own `layout` cannot.
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

    None stands for the default, but for batch_size. Arguments of torch's DataLoader that ask for nothing
    (`sampler=None`, `pin_memory=False`) are accepted; others that it has are answered with what to use instead.

    Its methods can be called from any thread, from signal handlers, callbacks, `__del__` and `atexit`, also while a
    thread is in `next()`. A handler that ends the iteration (`close`, `load_state_dict`, `iter`) leads to an error
    in the `next()` that it interrupted; one that calls `next()` takes the batch that was due.

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

    def _convert(self, batch: _native.Batch) -> dict[str, torch.Tensor]:
        fields = {
            field["name"]: torch.utils.dlpack.from_dlpack(batch.tensor(at))
            for at, field in enumerate(self._own)
        }
        own = list(fields)
        for at, column in enumerate(self._columns):
            dtype = _COLUMNS[column["dtype"]]
            # torch.frombuffer refuses an empty buffer: a rank without rows in a tail.
            fields[column["name"]] = (
                torch.frombuffer(batch.column(at), dtype=dtype) if batch.rows else torch.empty(0, dtype=dtype)
            )
        if self._device is not None and self._device.type != "cpu":
            for name in (*own, *({"label"} & fields.keys())):
                fields[name] = fields[name].to(self._device)
        return fields
