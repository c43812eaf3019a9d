"""fuelrail for numpy: `from fuelrail.numpy import Loader`."""

from __future__ import annotations

from typing import Any

from fuelrail import _native, fields, transforms
from fuelrail.checks import shown
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader, Batch
from fuelrail.options import OF_DEVICES, OPTIONS, documented

try:
    import numpy as np
except ModuleNotFoundError as error:
    if error.name != "numpy":
        raise
    raise ModuleNotFoundError(
        "fuelrail.numpy needs NumPy, which is not installed here: pip install numpy", name="numpy"
    ) from None

__all__ = ["Batch", "Loader", "fields", "transforms"]

_COLUMNS: dict[str, type[np.generic]] = {"i64": np.int64, "bool": np.bool_}


@documented(*(name for name in OPTIONS if name not in OF_DEVICES))
class Loader(BaseLoader[np.ndarray]):
    """Iterates over batches of images as numpy arrays; all else is as in `fuelrail.torch.Loader`, without
    the options of devices.

    Images are views of shared memory of shape (N, C, H, W); a slot is given back when the last array over it
    is gone. numpy has no bfloat16.

    Args:
        source, transforms: as in `fuelrail.torch.Loader`.
        ...: as the fields of `fuelrail.options.LoaderOptions`.
    """

    def _opened(self) -> None:
        if any(field["dtype"] == "bf16" for field in self._own):
            self.close()
            raise ConfigError("this pipeline makes bfloat16, which numpy does not have: use fuelrail.torch")

    def _dtype(self, name: str | None) -> str | None:
        if name == "bf16":
            raise ConfigError("numpy has no bfloat16: use dtype='float32' or 'float16', or fuelrail.torch")
        return name

    def _place(self, device: Any) -> None:
        if device is not None and str(device) != "cpu":
            raise ConfigError(
                f"device={shown(device)}: numpy's arrays are in CPU memory; use fuelrail.torch for other devices"
            )

    def _tensor(self, batch: _native.Batch, at: int) -> np.ndarray:
        return np.from_dlpack(batch.tensor(at))

    def _column(self, batch: _native.Batch, at: int, dtype: str, name: str) -> np.ndarray:
        del name
        return np.frombuffer(batch.column(at), dtype=_COLUMNS[dtype])
