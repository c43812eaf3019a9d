"""Steps with random parameters against torchvision's functions on PIL images, given the same parameters: these are drawn
again here, by `draws.py`, in the order in which a step draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from draws import Draws
from fuelrail import transforms as T
from PIL import Image
from support import Loader

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

Mode = v2.InterpolationMode

#: Of the photographs that all steps get; each is drawn for several times.
SIZES = [(60, 47), (33, 52), (64, 64), (101, 40)]
TIMES = 6
END = T.CenterCrop((32, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(len(SIZES) * TIMES):
        photographs.photograph(number, *SIZES[number % len(SIZES)]).save(folder / f"{number:03}.png")
    return folder


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


def differences(
    folder: Path, steps: list[Any], expect: Callable[[Image.Image, Draws], Image.Image]
) -> np.ndarray:
    """The largest difference of each picture from what `expect` makes of it with the draws of the first step."""
    count = len(SIZES) * TIMES
    with Loader(folder, transforms=[*steps, END], batch_size=count, shuffle=False, seed=3) as loader:
        images = next(iter(loader))["image"].copy()
    found = []
    for position, (picture, image) in enumerate(zip(pictures(folder), images, strict=True)):
        expected = np.asarray(F.center_crop(expect(picture, Draws.of(0, position, seed=3)), [32, 32]))
        found.append(np.abs(expected.astype(int) - image.transpose(1, 2, 0)).max())
    return np.array(found)


@pytest.mark.parametrize("mode", [Mode.NEAREST, Mode.BILINEAR, Mode.BICUBIC])
def test_a_random_affine_map_is_torchvisions(mode: Any, folder: Path) -> None:
    step = T.RandomAffine(
        (-40, 30),
        translate=(0.2, 0.3),
        scale=(0.6, 1.5),
        shear=(-20, 10, -5, 15),
        interpolation=mode,
        fill=(9, 80, 200),
    )

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        width, height = picture.size
        angle = draws.range(-40, 30)
        x, y = 0.2 * width, 0.3 * height
        moved = [round(draws.range(-x, x)), round(draws.range(-y, y))]
        scale = draws.range(0.6, 1.5)
        shear = [draws.range(-20, 10), draws.range(-5, 15)]
        return F.affine(picture, angle, moved, scale, shear, mode, fill=[9.0, 80.0, 200.0])

    assert differences(folder, [step], expect).max() == 0


@pytest.mark.parametrize("mode", [Mode.NEAREST, Mode.BILINEAR, Mode.BICUBIC])
def test_a_random_perspective_is_torchvisions(mode: Any, folder: Path) -> None:
    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        if not draws.chance(0.8):
            return picture
        width, height = picture.size
        wide, high = int(0.6 * (width // 2)) + 1, int(0.6 * (height // 2)) + 1
        corners = [
            [draws.below(wide) + right * (width - wide), draws.below(high) + low * (height - high)]
            for right, low in ((0, 0), (1, 0), (1, 1), (0, 1))
        ]
        start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
        return F.perspective(picture, start, corners, mode, fill=30)

    found = differences(folder, [T.RandomPerspective(0.6, p=0.8, interpolation=mode, fill=30)], expect)
    # The eight coefficients are found in two ways, whose last digits may differ: of nearest pixels, one may be another.
    assert np.median(found) == 0 and ((found <= 1).mean() == 1 or mode is Mode.NEAREST)
    assert (found == 0).mean() > 0.8


@pytest.mark.parametrize("mode", [Mode.NEAREST, Mode.BILINEAR])
@pytest.mark.parametrize("sigma", [2.0, 0.0])
def test_an_elastic_transform_is_torchvisions(mode: Any, sigma: float, folder: Path) -> None:
    alpha = [80.0, 50.0] if sigma else [3.0, 2.0]

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        width, height = picture.size
        field = []
        for length, strength in ((width, alpha[0]), (height, alpha[1])):
            noise = torch.tensor(draws.units(width * height).reshape(1, 1, height, width) * 2 - 1).float()
            if sigma:
                noise = F.gaussian_blur(noise, [int(8 * sigma + 1) | 1] * 2, [sigma, sigma])
            field.append(noise * strength / length)
        moved = torch.concat(field, 1).permute([0, 2, 3, 1])
        return F.elastic(picture, moved, mode, fill=[10.0, 20.0, 30.0])

    step = T.ElasticTransform(alpha, sigma, mode, fill=(10, 20, 30))
    found = differences(folder, [step], expect)
    # Nearest pixels beside the edge between two may be either.
    assert found.max() <= 1 or (mode is Mode.NEAREST and np.median(found) <= 1)


def test_a_photometric_distortion_is_torchvisions(folder: Path) -> None:
    step = T.RandomPhotometricDistort(p=0.7)

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        ranges = [(0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)]
        drawn = [(draws.chance(0.7), draws.range(*bounds)) for bounds in ranges]
        brightness, contrast, saturation, hue = (factor if done else None for done, factor in drawn)
        before = draws.chance(0.5)
        permuted = draws.chance(0.7)
        order = draws.shuffle([0, 1, 2])
        params = {
            "brightness_factor": brightness,
            "contrast_factor": contrast,
            "saturation_factor": saturation,
            "hue_factor": hue,
            "contrast_before": before,
            "channel_permutation": torch.tensor(order) if permuted else None,
        }
        return v2.RandomPhotometricDistort().transform(picture, params)

    # Without a crop before it the mean of the contrast is that of the whole picture.
    assert differences(folder, [step], expect).max() == 0


def test_steps_made_of_steps_draw_as_their_places_say(folder: Path) -> None:
    step = T.RandomApply(
        [
            T.RandomChoice(
                [T.RandomInvert(1.0), [T.RandomSolarize(100, 0.5), T.RandomPosterize(3, 0.5)]], p=[1, 3]
            ),
            T.RandomOrder([T.RandomSolarize(128, 1.0), T.RandomEqualize(0.6), T.RandomAutocontrast(1.0)]),
        ],
        p=0.8,
    )

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        if not draws.chance(0.8):
            return picture
        choice, order = draws.child(0), draws.child(1)
        if choice.weighted([1, 3]) == 0:
            picture = F.invert(picture)
        else:
            both = choice.child(1)
            assert both.chance(1.0)
            picture = F.solarize(picture, 100) if both.child(0).chance(0.5) else picture
            picture = F.posterize(picture, 3) if both.child(1).chance(0.5) else picture
        for next_one in order.shuffle([0, 1, 2]):
            if next_one == 0:
                picture = F.solarize(picture, 128)
            elif next_one == 1:
                picture = F.equalize(picture) if order.child(1).chance(0.6) else picture
            else:
                picture = F.autocontrast(picture)
        return picture

    assert differences(folder, [step], expect).max() == 0


def test_a_permutation_of_channels_is_any_of_the_six(folder: Path) -> None:
    seen = set()

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        order = draws.shuffle([0, 1, 2])
        seen.add(tuple(order))
        return F.permute_channels(picture, order)

    assert differences(folder, [T.RandomChannelPermutation()], expect).max() == 0
    assert len(seen) == 6
