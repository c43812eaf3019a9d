"""fuelrail: the daemon's ring, read in place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks import MEAN, STD, Settings, measure


def batches(settings: Settings) -> Iterator[torch.Tensor]:
    """Images of as many epochs as are asked for."""
    crop = [T.RandomResizedCrop(224), T.RandomHorizontalFlip()]
    chain = {
        "A": [*crop, T.Normalize(MEAN, STD)],
        "B": [T.Resize(256), T.CenterCrop(224), T.Normalize(MEAN, STD)],
        "C": crop,
    }[settings.task]
    with Loader(
        str(settings.data),
        transforms=chain,
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        layout="nhwc" if settings.task == "C" else "nchw",
    ) as loader:
        while True:
            for images, _ in loader:
                yield images
                # The name would hold the slot while the next batch is waited for.
                del images


if __name__ == "__main__":
    measure(batches)
