"""Writes scikit-learn's handwritten digits as an image folder: real data that comes with a package.

1,797 scans of 8 x 8 pixels (UCI's "Optical Recognition of Handwritten Digits"), enlarged to 24 x 24 on a
canvas of 32 x 32: FOLDER/{train,val}/{0..9}/digit-0042.png. A fifth of each class is held out. Every other
file is a JPEG, so that both decoders are at work.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy
from PIL import Image
from sklearn.datasets import load_digits

HELD_OUT = 0.2


def write_digits(folder: Path) -> None:
    """Fills `folder` with train/ and val/; one that is there is left as it is."""
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    digits = load_digits()
    held_out = _held_out(digits.target)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = unfinished / ("val" if held_out[number] else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        # The scans count ink in 0..16.
        scan = Image.fromarray((pixels * (255 / 16)).astype(numpy.uint8))
        canvas = Image.new("L", (32, 32))
        canvas.paste(scan.resize((24, 24), Image.Resampling.BICUBIC), (4, 4))
        name = place / f"digit-{number:04d}"
        if number % 2:
            canvas.save(name.with_suffix(".jpg"), quality=95)
        else:
            canvas.save(name.with_suffix(".png"))
    unfinished.rename(folder)


def _held_out(labels: numpy.ndarray) -> numpy.ndarray:
    """A fifth of each class, chosen at random once and for all."""
    chosen = numpy.zeros(len(labels), dtype=bool)
    generator = numpy.random.default_rng(0)
    for label in numpy.unique(labels):
        members = numpy.flatnonzero(labels == label)
        chosen[generator.choice(members, round(HELD_OUT * len(members)), replace=False)] = True
    return chosen


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
