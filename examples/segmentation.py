"""Photographs and their masks, cropped, flipped and rotated together, and a small network that labels pixels.

    .venv/bin/python examples/segmentation.py "shards/train-*.tar" seg.png

Each record has an image and a map of class numbers of the same size (0001.jpg, 0001.seg.png). The mask takes the draws
of its image: nearest neighbours, palette indices and gray levels as they are, no colour transform, and 255 for what lies
outside of the picture, which the loss leaves out.
"""

import sys

import torch
from fuelrail.torch import Loader
from fuelrail.torch import fields as F
from fuelrail.torch import transforms as T
from torch import nn

source, part = sys.argv[1], sys.argv[2]
fields = {
    "image": F.Image(
        [
            T.RandomRotation(15, interpolation="bilinear"),
            T.RandomResizedCrop(48, scale=(0.5, 1.0)),
            T.RandomHorizontalFlip(),
            T.ColorJitter(0.2, 0.2, 0.2),
            T.Normalize(*T.IMAGENET),
        ]
    ),
    "mask": F.Mask(part, like="image"),
}
CLASSES = 5

torch.manual_seed(1)
model = nn.Sequential(
    nn.Conv2d(3, 32, 5, padding=2),
    nn.ReLU(),
    nn.Conv2d(32, 32, 5, padding=2),
    nn.ReLU(),
    nn.Conv2d(32, CLASSES, 1),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

with Loader(source, fields=fields, batch_size=16, shuffle=True, seed=1, label=None) as loader:
    for epoch in range(4):
        right = counted = 0
        for batch in loader:
            target = batch["mask"].long()  # (N, H, W) uint8 in the batch
            scores = model(batch["image"])
            loss = nn.functional.cross_entropy(scores, target, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            inside = target != 255
            right += int((scores.argmax(1) == target)[inside].sum())
            counted += int(inside.sum())
        print(f"epoch {epoch + 1}: {100 * right / counted:.1f} % of the pixels right, loss {loss.item():.3f}")
