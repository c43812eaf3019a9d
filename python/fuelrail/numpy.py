"""fuelrail for numpy: `from fuelrail.numpy import Loader`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from fuelrail import _native, transforms
from fuelrail.errors import ConfigError
from fuelrail.loader import BaseLoader, Batch, LoaderOptions
from fuelrail.sources import Address, Mix, Source
from fuelrail.transforms import Transform

__all__ = ["Batch", "Loader", "transforms"]

_SMALL: dict[str, type[np.generic]] = {"i64": np.int64, "bool": np.bool_}
_NAMES = {"uint8": "u8", "float32": "f32", "float16": "f16"}


class Loader(BaseLoader[np.ndarray]):
    """Iterates over batches of images as numpy arrays; arguments as in `fuelrail.torch.Loader`, without
    `device`.

    Images are views of shared memory of shape (N, C, H, W); a slot is given back when the last array over it
    is gone.
    dtype: "uint8", "float32" or "float16". numpy has no bfloat16.
    """

    def __init__(
        self,
        source: Address | Source | Mix | Mapping[str, Any],
        *,
        transforms: Sequence[Transform | Mapping[str, Any]] = (),
        dtype: Any = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        if dtype is not None:
            if str(dtype) in ("bf16", "bfloat16", "torch.bfloat16"):
                raise ConfigError(
                    "numpy has no bfloat16: use dtype='float32' or 'float16', or fuelrail.torch"
                )
            try:
                name = dtype if dtype in _NAMES.values() else _NAMES.get(np.dtype(dtype).name)
            except TypeError:
                name = None
            if name is None:
                raise ConfigError(f"dtype={dtype} is not made by the daemon; it makes {', '.join(_NAMES)}")
            dtype = name
        super().__init__(source, transforms=transforms, dtype=dtype, **options)
        if any(field["dtype"] == "bf16" for field in self._own):
            self.close()
            raise ConfigError("this pipeline makes bfloat16, which numpy does not have: use fuelrail.torch")

    def _convert(self, batch: _native.Batch) -> dict[str, np.ndarray]:
        fields = {field["name"]: np.from_dlpack(batch.tensor(at)) for at, field in enumerate(self._own)}
        for at, field in enumerate(self._small):
            fields[field["name"]] = np.frombuffer(batch.small(at), dtype=_SMALL[field["dtype"]])
        return fields
