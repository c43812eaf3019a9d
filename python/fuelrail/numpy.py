"""fuelrail for numpy: `from fuelrail.numpy import Loader`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_FLOATS: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16}
_COLUMNS: dict[str, type[np.generic]] = {"i64": np.int64, "bool": np.bool_, "f32": np.float32}


@documented(*(name for name in OPTIONS if name not in OF_DEVICES))
class Loader(BaseLoader[np.ndarray]):
    """Iterates over batches of images as numpy arrays; otherwise like `fuelrail.torch.Loader`, without the device
    options.

    Images are views of shared memory of shape (N, C, H, W); a slot is returned when the last array over it
    is gone. numpy has no bfloat16.

    Args:
        source, transforms: as in `fuelrail.torch.Loader`.
        ...: as the fields of `fuelrail.options.LoaderOptions`.
    """

    def _opened(self) -> None:
        if any(field.get("finishing", field)["dtype"] == "bf16" for field in self._own):
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

    def _finish(
        self, at: int, array: np.ndarray, left: Mapping[str, Any], beside: np.ndarray | None
    ) -> np.ndarray:
        def channels(values: Sequence[float]) -> np.ndarray:
            return np.array(values, np.float32).reshape(-1, 1, 1)

        floats: np.ndarray = array * channels(left["scale"])
        floats += channels(left["bias"])
        for number, value in enumerate(left["erasings"]):
            assert beside is not None
            rectangles = beside[..., number, :].astype(np.int64).reshape(-1, 4)
            for image, (top, start, tall, wide) in zip(
                floats.reshape(-1, *floats.shape[-3:]), rectangles, strict=True
            ):
                image[:, top : top + tall, start : start + wide] = channels(value)
        finished: np.ndarray = floats.astype(_FLOATS[left["dtype"]], copy=False)
        return finished

    def _column(self, column: bytearray, dtype: str, name: str) -> np.ndarray:
        del name
        return np.frombuffer(column, dtype=_COLUMNS[dtype])
