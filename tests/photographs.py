"""Generated images that look like photographs to a codec: smooth light, edges, texture, noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bridge", "forest", "harbour")


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """One RGB image; a pure function of its arguments."""
    draw = np.random.default_rng([seed, width, height])
    picture = np.zeros((height, width, 3))
    # Octaves of noise: each scale half as strong as the one above, as in natural images.
    for octave in range(6):
        cells = 2 << octave
        coarse = draw.uniform(-1, 1, (min(cells, height), min(cells, width), 3)).astype(np.float32)
        layers = [
            np.asarray(
                Image.fromarray(coarse[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            )
            for channel in range(3)
        ]
        picture += np.stack(layers, axis=2) * 70.0 / 2**octave
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(6):
        # Objects: discs and half-planes with hard edges.
        colour = draw.uniform(-60, 60, 3)
        if draw.random() < 0.5:
            cx, cy, r = (
                draw.uniform(0, width),
                draw.uniform(0, height),
                draw.uniform(0.05, 0.3) * min(width, height),
            )
            inside = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        else:
            a, b = draw.normal(size=2)
            inside = a * (x - width * draw.random()) + b * (y - height * draw.random()) > 0
        picture[inside] += colour
    picture += 128 + draw.normal(0, 3, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def folder(root: Path, count: int, seed: int, least: int = 60, most: int = 260) -> Path:
    """An image folder of `count` JPEG (two of three) and PNG images of varied sizes in `CLASSES`, one nested."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        name = CLASSES[int(draw.integers(len(CLASSES)))]
        parent = root / name / "nested" if number % 5 == 0 else root / name
        parent.mkdir(parents=True, exist_ok=True)
        width, height = (int(side) for side in draw.integers(least, most, 2))
        picture = photograph(seed + number, width, height)
        if number % 3:
            options = {"quality": int(draw.integers(60, 96)), "subsampling": int(draw.integers(3))}
            picture.save(parent / f"{number:04}.jpg", **options)
        else:
            picture.save(parent / f"{number:04}.png")
    return root
