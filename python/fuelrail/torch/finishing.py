"""Converts copied bytes to floats: cast, normalise and erase on the batch's device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from fuelrail.torch.dtypes import DTYPES


def finish(
    images: torch.Tensor,
    left: Mapping[str, Any],
    erased: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Does the daemon's last pass on images of bytes, keeping their memory format.

    Args:
        images: uint8 (..., C, H, W).
        left: the remaining steps: "dtype", and for each channel "scale" and "bias"; "erasings", a value per channel
            each.
        erased: float32 (..., erasings, 4): top, left, height and width of each rectangle; None without erasings.
        out: the output tensor, with the right dtype and shape.

    One kernel reads the bytes and writes the floats. Its product and sum may be fused, so float32 is within 1e-6 of the
    daemon's. Each erasing adds one kernel over the whole batch, and a few over its edges.
    """
    dtype = DTYPES[left["dtype"]]
    scale = _channels(tuple(left["scale"]), torch.float32, images.device)
    bias = _channels(tuple(left["bias"]), torch.float32, images.device)
    if out is None:
        out = torch.empty_like(images, dtype=dtype)
    torch.addcmul(bias, images, scale, out=out)
    for at, value in enumerate(left["erasings"]):
        if erased is None:
            raise ValueError("there are erasings and no rectangles")
        inside = _inside(erased[..., at, :], out.shape[-2], out.shape[-1])
        if len(set(value)) == 1:
            out.masked_fill_(inside, value[0])
        else:
            torch.where(inside, _channels(tuple(value), dtype, out.device), out, out=out)
    return out


def _inside(rectangles: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A mask (..., 1, H, W) of the pixels inside rectangles (..., 4)."""
    top, left, tall, wide = (each[..., None] for each in rectangles.unbind(-1))
    rows = torch.arange(height, device=rectangles.device)
    columns = torch.arange(width, device=rectangles.device)
    across = (rows >= top) & (rows < top + tall)
    along = (columns >= left) & (columns < left + wide)
    return across[..., None, :, None] & along[..., None, None, :]


@functools.lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)
