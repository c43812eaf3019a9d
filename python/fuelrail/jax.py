"""fuelrail for JAX: `from fuelrail.jax import Loader, transforms as T`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fuelrail import _native, fields, loader, transforms
from fuelrail.checks import shown
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader
from fuelrail.options import OF_CUDA, OPTIONS, documented

try:
    import jax
    import numpy as np
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ModuleNotFoundError(
        "fuelrail.jax needs JAX, which is not installed here: pip install jax, or use fuelrail.numpy",
        name="jax",
    ) from None
from jax.sharding import Sharding, SingleDeviceSharding

__all__ = ["Batch", "Loader", "fields", "transforms"]

#: The daemon's columns about rows stay numpy arrays: JAX has no 64-bit numbers unless enabled.
_COLUMNS: dict[str, type[np.generic]] = {"i64": np.int64, "bool": np.bool_, "f32": np.float32}


class Batch(loader.Batch[Any]):
    """One batch of `jax.Array`s; see `fuelrail.loader.Batch` for its use.

    "index", "position", "substituted" and "part" are numpy arrays of this process's rows.
    """

    __slots__ = ()


@documented(*(name for name in OPTIONS if name not in OF_CUDA))
class Loader(BaseLoader[Any]):
    """Iterates over batches of images as `jax.Array`s; otherwise like `fuelrail.torch.Loader`.

    Images have shape (N, C, H, W), or (N, H, W, C) with `layout="nhwc"`, which JAX's libraries expect. Labels are int32
    (int64 if JAX's 64-bit mode is enabled).

    `device=` takes what `jax.device_put` takes: a `jax.Device`, or a `Sharding`. With a sharding over several
    processes, each contributes its rows (`rank=`, `world_size=`) and `jax.make_array_from_process_local_data` forms one
    global array: `batch_size` is per process. The rows must divide evenly among the devices, so set `drop_last=True`.

    Args:
        source, transforms: as in `fuelrail.torch.Loader`.
        ...: as the fields of `fuelrail.options.LoaderOptions`.
    """

    _batch = Batch

    def _place(self, device: Any) -> Sharding | None:
        if device is None or isinstance(device, Sharding):
            return device
        if isinstance(device, jax.Device):
            return SingleDeviceSharding(device)
        if isinstance(device, str):
            kind, _, number = device.partition(":")
            try:
                found = jax.devices(kind)
                return SingleDeviceSharding(found[int(number or 0)])
            except (RuntimeError, ValueError, IndexError):
                known = ", ".join(f"{each.platform}:{at}" for at, each in enumerate(jax.devices()))
                raise ConfigError(
                    f"device={shown(device)} is not among JAX's devices here: {known}"
                ) from None
        raise ConfigError(f"device= takes a jax.Device or a jax.sharding.Sharding; {shown(device)} was given")

    def _tensor(self, batch: _native.Batch, at: int) -> Any:
        field = self._own[at]
        tensor = batch.tensor(at)
        # numpy has no bfloat16, so JAX imports it, on the CPU.
        array = (
            np.asarray(jax.dlpack.from_dlpack(tensor)) if field["dtype"] == "bf16" else np.from_dlpack(tensor)
        )
        if field.get("content") == "image" and self._chosen.layout == "nhwc":
            array = np.moveaxis(array, -3, -1)
        return self._put(array)

    def _finish(self, at: int, array: Any, left: Mapping[str, Any], beside: Any) -> Any:
        raise ConfigError(
            'this pipeline leaves floats to its clients (finish = "client"), which fuelrail.jax does not make'
        )

    def _column(self, column: bytearray, dtype: str, name: str) -> Any:
        array = np.frombuffer(column, dtype=_COLUMNS[dtype])
        return self._put(array) if name in ("label", "weight") else array

    def _put(self, array: np.ndarray) -> Any:
        # JAX keeps the buffer until it has read it, so the slot is not returned earlier.
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        if self._device is None:
            return jax.device_put(array)
        try:
            return jax.make_array_from_process_local_data(self._device, array)  # type: ignore[no-untyped-call]
        except ValueError as error:
            why = str(error).partition("\n")[0]
            raise ConfigError(
                f"a batch of {len(array)} rows cannot be laid out over the devices of {self._device}: {why}. Give a "
                "batch_size that the number of devices divides, and drop_last=True"
            ) from None
