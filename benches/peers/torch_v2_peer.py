"""torch's DataLoader at its quickest: torchvision's decode_jpeg and v2 transforms on tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2 as T

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks import MEAN, STD, Settings, measure


def load(path: str) -> torch.Tensor:
    """The file's pixels, u8 (3, H, W)."""
    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) to dense (H, W, 3)."""
    return image.permute(1, 2, 0).contiguous()


def batches(settings: Settings) -> Iterator[torch.Tensor]:
    """Images of as many epochs as are asked for; the workers stay between epochs."""
    crop = [T.RandomResizedCrop(224, antialias=True), T.RandomHorizontalFlip()]
    normalise = [T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]
    chain: list[Any] = {
        "A": [*crop, *normalise],
        "B": [T.Resize(256, antialias=True), T.CenterCrop(224), *normalise],
        "C": [*crop, channels_last],
    }[settings.task]
    loader = DataLoader(
        ImageFolder(str(settings.data), T.Compose(chain), loader=load),
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=True,
    )
    try:
        while True:
            for images, _ in loader:
                yield images.permute(0, 3, 1, 2) if settings.task == "C" else images
    finally:
        # Ends the persistent workers and waits for them.
        del loader


if __name__ == "__main__":
    measure(batches)
