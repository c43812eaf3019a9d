"""Generated photographs: a folder to measure on where there is no other.

Not noise and not flat colour: octaves of smooth structure, edges of shapes, and sensor grain, so that a 500 x
375 JPEG weighs about 110 KB like ImageNet's, three quarters of them without chroma subsampling, as there. The
same numbers give the same files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
from PIL import Image

SIZES = ((500, 375), (375, 500), (500, 333), (640, 480), (400, 400))


def write_photos(folder: Path, count: int = 500, classes: int = 10) -> None:
    """Fills `folder` with `count` JPEGs in `classes` class folders; one that is there is left as it is."""
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number in range(count):
        place = unfinished / f"class-{number % classes:02d}"
        place.mkdir(parents=True, exist_ok=True)
        width, height = SIZES[number % len(SIZES)]
        photo = Image.fromarray(_photo(numpy.random.default_rng(number), width, height))
        # 0 is 4:4:4, 2 is 4:2:0.
        photo.save(place / f"photo-{number:05d}.jpg", quality=95, subsampling=2 if number % 4 == 3 else 0)
    unfinished.rename(folder)


def _photo(generator: numpy.random.Generator, width: int, height: int) -> numpy.ndarray:
    pixels = numpy.zeros((height, width, 3), dtype=numpy.float32)
    # Octaves: half the size, half the contrast, like the 1/f spectrum of natural scenes.
    for octave in range(2, 8):
        coarse = generator.standard_normal((2**octave, 2**octave, 3)).astype(numpy.float32)
        # Channels of a scene move together; colour is the smaller part.
        coarse = 0.8 * coarse[..., :1] + 0.3 * coarse
        layers = [
            Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            for channel in range(3)
        ]
        pixels += numpy.stack([numpy.asarray(layer) for layer in layers], axis=-1) * (46 / 2 ** (octave / 2))
    rows, columns = numpy.mgrid[0:height, 0:width]
    for _ in range(8):
        x, y, radius = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(15, 90)
        inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
        pixels[inside] += generator.uniform(-60, 60, 3).astype(numpy.float32)
    grain = generator.standard_normal((height, width, 1)).astype(numpy.float32) * 6
    return numpy.clip(pixels + grain + 118, 0, 255).astype(numpy.uint8)
