"""What several files of these tests train on."""

from __future__ import annotations

from pathlib import Path

import pytest

CLASSES = ("bars", "dots", "rings")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """These models are tiny: threads would wait for each other, most of all beside other tests."""
    pytest.importorskip("torch", reason="fuelrail.train needs torch").set_num_threads(1)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 small pictures in three classes, PNG and JPEG; train/ and val/."""
    numpy = pytest.importorskip("numpy")
    Image = pytest.importorskip("PIL.Image", reason="these pictures are drawn with Pillow")
    root = tmp_path_factory.mktemp("pictures")
    generator = numpy.random.default_rng(0)
    rows, columns = numpy.mgrid[0:24, 0:24]
    shapes = {
        "bars": rows // 4 % 2,
        "dots": (rows // 4 % 2) * (columns // 4 % 2),
        "rings": numpy.hypot(rows - 12, columns - 12) // 4 % 2,
    }
    for number in range(120):
        name = CLASSES[number % 3]
        place = root / ("val" if number % 5 == 0 else "train") / name
        place.mkdir(parents=True, exist_ok=True)
        pixels = 60 + 120 * shapes[name][..., None] + generator.normal(0, 12, (24, 24, 3))
        picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
        picture.save(place / f"{number:03d}.{'png' if number % 2 else 'jpg'}")
    return root
