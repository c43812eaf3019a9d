"""torch's DataLoader as most people write it: ImageFolder, torchvision's first transforms on Pillow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks import MEAN, STD, Settings, measure


def batches(settings: Settings) -> Iterator[torch.Tensor]:
    """Images of as many epochs as are asked for; the workers stay between epochs."""
    crop = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()]
    normalise = [T.ToTensor(), T.Normalize(MEAN, STD)]
    chain: list[Any] = {
        "A": [*crop, *normalise],
        "B": [T.Resize(256), T.CenterCrop(224), *normalise],
        "C": [*crop, numpy.array, torch.from_numpy],
    }[settings.task]
    loader = DataLoader(
        ImageFolder(str(settings.data), T.Compose(chain)),
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
