"""Two global and eight local views of each image from one decode, and a small DINO: a student that follows its teacher.

    .venv/bin/python examples/dino.py build/demo/digits/train

Each view has random draws of its own, a pure function of seed, epoch, position and the view's number; the state
continues with exactly the views that were left. `Geometry` would say where an image was cropped, for heads that need
to know.
"""

import copy
import sys

import torch
from fuelrail.torch import Loader
from fuelrail.torch import fields as F
from fuelrail.torch import transforms as T
from torch import nn

GLOBAL, LOCAL = 224, 96


def views(size: int, scale: tuple[float, float]) -> list[T.Transform]:
    """The chain of a view."""
    return [
        T.RandomResizedCrop(size, scale=scale),
        T.RandomHorizontalFlip(),
        T.ColorJitter(0.4, 0.4, 0.2, 0.1),
        T.RandomGrayscale(0.2),
        T.GaussianBlur(9, (0.1, 2.0)),
        T.Normalize(*T.IMAGENET),
    ]


fields = {
    "global": F.Views(2, views(GLOBAL, (0.4, 1.0))),
    "local": F.Views(8, views(LOCAL, (0.05, 0.4))),
}

torch.manual_seed(1)
student = nn.Sequential(
    *(nn.Conv2d(3, 32, 8, 8), nn.GELU(), nn.Conv2d(32, 64, 4, 4), nn.GELU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 256)),
)
teacher = copy.deepcopy(student).requires_grad_(False)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
center = torch.zeros(256)

with Loader(sys.argv[1], fields=fields, batch_size=16, shuffle=True, drop_last=True, seed=1) as loader:
    for step, batch in enumerate(loader, start=1):
        large, small = batch["global"], batch["local"]  # (N, 2, 3, 224, 224), (N, 8, 3, 96, 96)
        with torch.no_grad():
            seen = teacher(large.flatten(0, 1))
            target = ((seen - center) / 0.04).softmax(1).unflatten(0, large.shape[:2])
            center = 0.9 * center + 0.1 * seen.mean(0)
        guesses = torch.cat(
            [student(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in (large, small)], 1
        )
        guesses = (guesses / 0.1).log_softmax(2)
        # Every view of the student follows every other global view of the teacher.
        pairs = [(g, v) for g in range(2) for v in range(guesses.shape[1]) if g != v]
        loss = sum(-(target[:, g] * guesses[:, v]).sum(1).mean() for g, v in pairs) / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for own, followed in zip(teacher.parameters(), student.parameters(), strict=True):
                own.lerp_(followed, 0.01)
        print(f"step {step}: {guesses.shape[1]} views of {len(large)} images, loss {loss.item():.3f}")
        if step == 6:
            break
