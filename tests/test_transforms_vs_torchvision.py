"""Every transform against torchvision on PIL images: the same names, the same arguments, the same pixels.

The chain is written once, as a function of the module that holds the transforms. From PNG input geometry agrees within
1 level and colour within 2; from JPEG the mean difference is at most 1; float arithmetic agrees within 1e-5.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from fuelrail import transforms as ours
from PIL import Image, ImageOps
from support import GATE, Loader

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision import transforms as v1  # noqa: E402
from torchvision.transforms import InterpolationMode as Mode  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

Chain = Callable[[Any], list[Any]]


def load(files: list[tuple[str, bytes]], folder: Path, chain: list[Any], **options: Any) -> list[np.ndarray]:
    """Images (C, H, W) in the order of `files`, through folder, daemon and loader."""
    folder.mkdir(exist_ok=True)
    for number, (suffix, content) in enumerate(files):
        (folder / f"{number:05}.{suffix}").write_bytes(content)
    with Loader(folder, transforms=chain, batch_size=16, on_error="fail", **options) as loader:
        return [image.copy() for batch in loader for image in batch["image"]]


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pixels(picture: Image.Image) -> np.ndarray:
    """(C, H, W) levels."""
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


SIZES = [(160, 120), (97, 141), (64, 64), (203, 50), (33, 190), (150, 151)]
SQUARES = [(100, 100), (65, 65), (128, 128)]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [photographs.photograph(number, *size) for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def photos(data: Path) -> list[Path]:
    """Real photographs."""
    files = sorted((data / "imagenet-sample").rglob("*.[jJ]*"))
    if not files:
        pytest.skip(f"no photographs in {data / 'imagenet-sample'}")
    return files[:: len(files) // (20 if GATE else 8)]


# One end for all chains whose result has no fixed size.
def middle(t: Any) -> Any:
    return t.CenterCrop((32, 40))


GEOMETRY: dict[str, Chain] = {
    "Resize to a size": lambda t: [t.Resize((50, 70))],
    "Resize up": lambda t: [t.Resize((300, 260))],
    "Resize the shorter edge": lambda t: [t.Resize(45), middle(t)],
    "Resize the shorter edge up": lambda t: [t.Resize(250), t.CenterCrop(224)],
    "Resize with max_size": lambda t: [t.Resize(45, max_size=60), middle(t)],
    "Resize and CenterCrop": lambda t: [t.Resize(64), t.CenterCrop(56)],
    "Resize nearest": lambda t: [t.Resize((50, 70), Mode.NEAREST)],
    "Resize bicubic": lambda t: [t.Resize((50, 70), Mode.BICUBIC)],
    "Resize bicubic up": lambda t: [t.Resize((250, 270), Mode.BICUBIC)],
    "Resize lanczos": lambda t: [t.Resize((50, 70), Mode.LANCZOS)],
    "Resize box": lambda t: [t.Resize((50, 70), Mode.BOX)],
    "Resize hamming": lambda t: [t.Resize((50, 70), Mode.HAMMING)],
    "two Resizes stay two": lambda t: [t.Resize((30, 30)), t.Resize((90, 80))],
    "CenterCrop": lambda t: [t.CenterCrop(30)],
    "CenterCrop odd": lambda t: [t.CenterCrop((31, 27))],
    "CenterCrop larger than the image": lambda t: [t.CenterCrop((180, 220))],
    "Pad one number": lambda t: [t.Pad(5), t.CenterCrop((70, 80))],
    "Pad two numbers": lambda t: [t.Pad((3, 9), fill=200), t.CenterCrop((260, 260))],
    "Pad four numbers": lambda t: [t.Pad((1, 2, 30, 40), fill=(10, 20, 30)), t.CenterCrop((230, 230))],
    "Pad edge": lambda t: [t.Pad((7, 3), padding_mode="edge"), t.CenterCrop((230, 230))],
    "Pad reflect": lambda t: [t.Pad((7, 3, 4, 9), padding_mode="reflect"), t.Resize((60, 60))],
    "Pad symmetric": lambda t: [t.Pad((7, 3, 4, 9), padding_mode="symmetric"), t.Resize((60, 60))],
    "RandomCrop of the whole": lambda t: [t.Resize((60, 50)), t.RandomCrop((60, 50))],
    "RandomCrop of the whole, padded": lambda t: [
        t.Resize((60, 50)),
        t.RandomCrop((70, 56), padding=(3, 5), fill=9),
    ],
    "RandomHorizontalFlip always": lambda t: [t.RandomHorizontalFlip(p=1), t.Resize((50, 70))],
    "RandomHorizontalFlip never": lambda t: [t.RandomHorizontalFlip(p=0), t.CenterCrop(33)],
    "RandomVerticalFlip always": lambda t: [t.CenterCrop((33, 47)), t.RandomVerticalFlip(p=1)],
    "both flips": lambda t: [t.RandomVerticalFlip(p=1), t.Resize((41, 43)), t.RandomHorizontalFlip(p=1)],
    "crop, resize, crop, flip": lambda t: [
        t.CenterCrop(60),
        t.Resize((40, 40)),
        t.CenterCrop((31, 30)),
        t.RandomHorizontalFlip(p=1),
    ],
    "RandomRotation and what follows": lambda t: [
        t.RandomRotation((20, 20), Mode.BILINEAR),
        t.Resize((40, 40)),
        t.RandomVerticalFlip(p=1),
    ],
    "RandomRotation that expands": lambda t: [t.RandomRotation((30, 30), expand=True), t.CenterCrop(50)],
    "RandomRotation about a corner": lambda t: [
        t.RandomRotation((10, 10), center=(0, 0), fill=7),
        t.CenterCrop(50),
    ],
} | {
    f"RandomRotation by {angle}, {mode.value}": (
        lambda t, angle=angle, mode=mode: [
            t.RandomRotation((angle, angle), mode, fill=50),
            t.CenterCrop((32, 32)),
        ]
    )
    for angle in (0, 17, -33, 90, 180, 270, 123.4)
    for mode in (Mode.NEAREST, Mode.BILINEAR)
}

ALL_FILTERS = (Mode.NEAREST, Mode.BILINEAR, Mode.BICUBIC)

# The same integers, or the same floats cut off: not a level may differ. Fixed parameters are numbers that torchvision's
# float32 holds exactly.
EXACT: dict[str, Chain] = (
    {
        "RandomAffine that does nothing": lambda t: [t.RandomAffine(0), middle(t)],
        "RandomAffine about a corner": lambda t: [t.RandomAffine((25, 25), center=(0, 0)), middle(t)],
        "RandomPerspective never": lambda t: [t.RandomPerspective(0.5, p=0), middle(t)],
        "RandomPerspective by nothing": lambda t: [
            t.RandomPerspective(0.0, p=1, interpolation=Mode.NEAREST),
            middle(t),
        ],
        "ElasticTransform by nothing": lambda t: [t.ElasticTransform(0.0, 2.0), middle(t)],
        "RandomSolarize": lambda t: [t.RandomSolarize(100, p=1), middle(t)],
        "RandomSolarize at a fraction": lambda t: [t.RandomSolarize(127.5, p=1), middle(t)],
        "RandomSolarize never": lambda t: [t.RandomSolarize(100, p=0), middle(t)],
        "RandomEqualize": lambda t: [t.RandomEqualize(p=1), middle(t)],
        "RandomEqualize after a crop": lambda t: [middle(t), t.RandomEqualize(p=1)],
        "RandomAutocontrast": lambda t: [t.RandomAutocontrast(p=1), middle(t)],
        "RandomAutocontrast of a dull image": lambda t: [
            t.ColorJitter(brightness=(0.3, 0.3)),
            t.RandomAutocontrast(p=1),
            middle(t),
        ],
        "RandomInvert": lambda t: [t.RandomInvert(p=1), middle(t)],
        "RandomAdjustSharpness after a flip": lambda t: [
            t.RandomHorizontalFlip(1),
            t.RandomAdjustSharpness(2, p=1),
            middle(t),
        ],
        "tables of levels after each other": lambda t: [
            t.RandomInvert(p=1),
            t.ColorJitter(contrast=(1.4, 1.4)),
            t.RandomPosterize(4, p=1),
            t.RandomHorizontalFlip(1),
            t.RandomEqualize(p=1),
            middle(t),
            t.RandomAutocontrast(p=1),
            t.RandomSolarize(90, p=1),
            t.Resize((40, 30)),
            t.RandomEqualize(p=1),
        ],
        "gray levels": lambda t: [
            t.Grayscale(),
            t.RandomEqualize(1),
            t.RandomAdjustSharpness(0.3, 1),
            middle(t),
        ],
        "RandomApply always": lambda t: [t.RandomApply([t.RandomInvert(1), t.Pad(3)], p=1), middle(t)],
        "RandomApply never": lambda t: [t.RandomApply([t.RandomInvert(1)], p=0), middle(t)],
        "RandomChoice of one": lambda t: [t.RandomChoice([t.RandomInvert(1), t.Pad(9)], p=[1, 0]), middle(t)],
        "RandomChoice of a Compose": lambda t: [
            t.RandomChoice([t.Compose([t.RandomInvert(1), t.Pad(3)]), t.Pad(9)], p=[1, 0]),
            middle(t),
        ],
        "RandomOrder of alike": lambda t: [t.RandomOrder([t.Pad(2), t.Pad(3)]), middle(t)],
        "RandomOrder around RandomApply": lambda t: [
            t.RandomOrder([t.RandomApply([t.RandomPosterize(2, 1)], p=1), t.RandomHorizontalFlip(1)]),
            middle(t),
        ],
    }
    | {
        f"RandomPosterize to {bits} bits": lambda t, bits=bits: [t.RandomPosterize(bits, p=1), middle(t)]
        for bits in (1, 2, 4, 8)
    }
    | {
        f"RandomAdjustSharpness {factor}": lambda t, factor=factor: [
            t.RandomAdjustSharpness(factor, p=1),
            middle(t),
        ]
        for factor in (0, 0.4, 1, 1.9, 7.5)
    }
    | {
        f"RandomAffine, {mode.value}": lambda t, mode=mode: [
            t.RandomAffine(
                (17, 17), scale=(0.75, 0.75), shear=(11, 11, -6, -6), interpolation=mode, fill=(9, 8, 77)
            ),
            middle(t),
        ]
        for mode in ALL_FILTERS
    }
    | {
        f"RandomAffine that scales, {mode.value}": lambda t, mode=mode: [
            t.RandomAffine(0, scale=(1.375, 1.375), interpolation=mode),
            middle(t),
        ]
        for mode in ALL_FILTERS
    }
    | {
        "RandomRotation bicubic": lambda t: [t.RandomRotation((17, 17), Mode.BICUBIC, fill=50), middle(t)],
        "RandomRotation bicubic that expands": lambda t: [
            t.RandomRotation((-33, -33), Mode.BICUBIC, expand=True),
            middle(t),
        ],
    }
)

SQUARE: dict[str, Chain] = {
    "RandomResizedCrop of the whole": lambda t: [t.RandomResizedCrop(40, scale=(1, 1), ratio=(1, 1))],
    "RandomResizedCrop of the whole, bicubic": lambda t: [
        t.RandomResizedCrop((50, 40), scale=(1, 1), ratio=(1, 1), interpolation=Mode.BICUBIC)
    ],
    "RandomResizedCrop after a crop": lambda t: [
        t.CenterCrop(50),
        t.RandomResizedCrop(24, scale=(1, 1), ratio=(1, 1)),
        t.RandomHorizontalFlip(p=1),
    ],
}

COLOUR: dict[str, Chain] = {
    "Grayscale": lambda t: [t.Grayscale()],
    "Grayscale in three channels": lambda t: [t.Grayscale(3)],
    "RandomGrayscale always": lambda t: [t.RandomGrayscale(p=1)],
    "RandomGrayscale never": lambda t: [t.RandomGrayscale(p=0)],
    **{
        f"ColorJitter {name} {factor}": lambda t, name=name, factor=factor: [
            t.ColorJitter(**{name: (factor, factor)})  # a range of one value
        ]
        for name, factors in {
            "brightness": (0.0, 0.4, 1.0, 1.7),
            "contrast": (0.0, 0.3, 1.6),
            "saturation": (0.0, 0.5, 2.0),
            "hue": (-0.5, -0.2, 0.07, 0.4),
        }.items()
        for factor in factors
    },
    "GaussianBlur": lambda t: [t.GaussianBlur(5, (1.3, 1.3))],
    "GaussianBlur wide": lambda t: [t.GaussianBlur(23, (4.0, 4.0))],
    "GaussianBlur of two sizes": lambda t: [t.GaussianBlur((3, 9), (0.8, 0.8))],
    "GaussianBlur, hardly": lambda t: [t.GaussianBlur(3, (0.1, 0.1))],
}


def compare(
    originals: list[Image.Image], results: list[np.ndarray], chain: Chain, module: Any, levels: int | None
) -> None:
    """`levels`: the largest difference; None: a mean difference of at most 1."""
    apply = module.Compose(chain(module))
    assert len(results) == len(originals)
    for number, (picture, result) in enumerate(zip(originals, results, strict=True)):
        expected = pixels(apply(picture))
        assert result.shape == expected.shape
        difference = np.abs(result.astype(int) - expected.astype(int))
        where = f"picture {number} {picture.size}: at most {difference.max()}, mean {difference.mean():.3f}"
        if levels is None:
            assert difference.mean() <= 1.0, where
        else:
            assert difference.max() <= levels, where


def both(name: str, chain: Chain, originals: list[Image.Image], folder: Path, levels: int) -> None:
    """As PNG and as JPEG, against both generations of torchvision."""
    results = load([("png", encoded(picture)) for picture in originals], folder / "png", chain(ours))
    for module in (v1, v2):
        compare(originals, results, chain, module, levels)
    files = [("jpg", encoded(picture, "JPEG", quality=90)) for picture in originals]
    decoded = [Image.open(io.BytesIO(content)).convert("RGB") for _, content in files]
    compare(decoded, load(files, folder / "jpg", chain(ours)), chain, v1, None)


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_torchvisions(name: str, pictures: list[Image.Image], tmp_path: Path) -> None:
    chosen = pictures
    if "reflect" in name or "symmetric" in name or "by" in name:
        chosen = pictures[:4]
    if "(32, 32)" in name:
        chosen = [picture for picture in pictures if min(picture.size) >= 32]
    both(name, GEOMETRY[name], chosen, tmp_path, levels=1)


@pytest.mark.parametrize("name", EXACT)
def test_what_pillow_does_in_integers_is_the_same_to_the_last_bit(
    name: str, pictures: list[Image.Image], tmp_path: Path
) -> None:
    both(name, EXACT[name], pictures, tmp_path, levels=0)


@pytest.mark.parametrize("name", SQUARE)
def test_geometry_of_square_images_is_torchvisions(name: str, tmp_path: Path) -> None:
    originals = [photographs.photograph(number, *size) for number, size in enumerate(SQUARES)]
    both(name, SQUARE[name], originals, tmp_path, levels=1)


@pytest.mark.parametrize("name", COLOUR)
def test_colour_is_torchvisions(name: str, pictures: list[Image.Image], tmp_path: Path) -> None:
    def chain(t: Any) -> list[Any]:
        # A crop keeps every pixel as it is: what differs is the colour.
        return [t.CenterCrop((40, 48)), *COLOUR[name](t)]

    both(name, chain, pictures, tmp_path, levels=2)


@pytest.mark.parametrize(
    "name",
    ["Resize and CenterCrop", "Resize to a size", "crop, resize, crop, flip", "Resize bicubic", "both flips"],
)
def test_geometry_of_real_photographs_is_torchvisions(name: str, photos: list[Path], tmp_path: Path) -> None:
    chain = GEOMETRY[name]
    decoded = [Image.open(path).convert("RGB") for path in photos]
    results = load(
        [("png", encoded(picture, compress_level=1)) for picture in decoded], tmp_path / "png", chain(ours)
    )
    compare(decoded, results, chain, v1, 1)
    results = load([("jpg", path.read_bytes()) for path in photos], tmp_path / "jpg", chain(ours))
    upright = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in photos]
    compare(upright, results, chain, v1, None)


@pytest.mark.parametrize(
    "name", ["ColorJitter contrast 1.6", "ColorJitter hue 0.07", "Grayscale", "GaussianBlur"]
)
def test_colour_of_real_photographs_is_torchvisions(name: str, photos: list[Path], tmp_path: Path) -> None:
    def chain(t: Any) -> list[Any]:
        return [t.CenterCrop(160), *COLOUR[name](t)]

    decoded = [Image.open(path).convert("RGB") for path in photos]
    results = load(
        [("png", encoded(picture, compress_level=1)) for picture in decoded], tmp_path / "png", chain(ours)
    )
    compare(decoded, results, chain, v1, 2)
    results = load([("jpg", path.read_bytes()) for path in photos], tmp_path / "jpg", chain(ours))
    upright = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in photos]
    compare(upright, results, chain, v1, None)


# Numbers ---------------------------------------------------------------------------------------------------------------


MEAN, STD = ours.IMAGENET


def test_normalize_is_torchvisions_within_1e_5(pictures: list[Image.Image], tmp_path: Path) -> None:
    files = [("png", encoded(picture)) for picture in pictures]
    levels = load(files, tmp_path / "a", [ours.CenterCrop(32)])
    floats = load(files, tmp_path / "a", [ours.CenterCrop(32)], dtype="float32")
    normalized = load(files, tmp_path / "a", [ours.CenterCrop(32), ours.Normalize(MEAN, STD)])
    for level, plain, result in zip(levels, floats, normalized, strict=True):
        tensor = v1.ToTensor()(Image.fromarray(level.transpose(1, 2, 0)))
        assert plain.dtype == result.dtype == np.float32
        assert np.abs(plain - tensor.numpy()).max() <= 1e-6
        assert np.abs(result - v1.Normalize(MEAN, STD)(tensor).numpy()).max() <= 1e-5


def test_normalize_of_one_channel(pictures: list[Image.Image], tmp_path: Path) -> None:
    files = [("png", encoded(picture)) for picture in pictures]
    chain = [ours.CenterCrop(32), ours.Grayscale()]
    levels = load(files, tmp_path / "a", chain)
    results = load(files, tmp_path / "a", [*chain, ours.Normalize([0.4], [0.3])])
    for level, result in zip(levels, results, strict=True):
        assert np.abs(result - (level.astype(np.float64) / 255 - 0.4) / 0.3).max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", [True, False])
def test_half_precision_is_torchs_cast_of_the_float_result(
    dtype: Any, normalize: bool, pictures: list[Image.Image], tmp_path: Path
) -> None:
    from fuelrail.torch import Loader as TorchLoader

    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    chain = [ours.CenterCrop(32), *([ours.Normalize(MEAN, STD)] if normalize else [])]
    results = {}
    for wanted in (torch.float32, dtype):
        with TorchLoader(tmp_path, transforms=chain, dtype=wanted, batch_size=6) as loader:
            results[wanted] = next(iter(loader))["image"].clone()
            assert results[wanted].dtype == wanted
    assert torch.equal(results[torch.float32].to(dtype), results[dtype])


@pytest.mark.parametrize("dtype", ["u8", "f32", "f16", "bf16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_hold_the_same_numbers(
    dtype: str, channels: int, pictures: list[Image.Image], tmp_path: Path
) -> None:
    from fuelrail.torch import Loader as TorchLoader

    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    chain = [ours.CenterCrop((30, 22)), ours.Grayscale(channels)]
    batches = {}
    for layout in ("nchw", "nhwc"):
        with TorchLoader(tmp_path, transforms=chain, dtype=dtype, layout=layout, batch_size=6) as loader:
            batches[layout] = next(iter(loader))["image"].clone()
    assert batches["nchw"].shape == batches["nhwc"].shape == (6, channels, 30, 22)
    assert torch.equal(batches["nchw"], batches["nhwc"])
    assert batches["nchw"].is_contiguous()
    assert batches["nhwc"].is_contiguous(memory_format=torch.channels_last)


# Random transforms -----------------------------------------------------------------------------------------------------


def many(
    picture: Image.Image, folder: Path, chain: list[Any], count: int = 600, **options: Any
) -> np.ndarray:
    """`count` draws on the same picture."""
    (folder / "draws").mkdir()
    (folder / "draws" / "original.png").write_bytes(encoded(picture))
    for number in range(count - 1):
        (folder / "draws" / f"{number}.png").symlink_to(folder / "draws" / "original.png")
    with Loader(folder / "draws", transforms=chain, batch_size=count, **options) as loader:
        return next(iter(loader))["image"].copy()


def flat(level: int = 128, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def near(count: float, total: int, probability: float) -> bool:
    """Within five standard deviations: wrong once in two million runs, and runs are deterministic."""
    return abs(count - total * probability) <= 5 * math.sqrt(total * probability * (1 - probability)) + 1


def test_flips_happen_with_their_probability_and_independently(tmp_path: Path) -> None:
    picture = photographs.photograph(1, 24, 24)
    images = many(
        picture, tmp_path, [ours.CenterCrop(24), ours.RandomHorizontalFlip(0.3), ours.RandomVerticalFlip()]
    )
    original = pixels(picture)
    kinds = [original, original[:, :, ::-1], original[:, ::-1], original[:, ::-1, ::-1]]
    counts = [sum(np.array_equal(image, kind) for image in images) for kind in kinds]
    assert sum(counts) == len(images)
    for count, probability in zip(counts, (0.35, 0.15, 0.35, 0.15), strict=True):
        assert near(count, len(images), probability), counts


def test_random_crops_are_windows_of_the_image_everywhere_in_it(tmp_path: Path) -> None:
    picture = photographs.photograph(2, 26, 22)
    images = many(picture, tmp_path, [ours.RandomCrop((20, 21))])
    original = pixels(picture)
    places = {
        next(
            (y, x)
            for y in range(3)
            for x in range(6)
            if np.array_equal(image, original[:, y : y + 20, x : x + 21])
        )
        for image in images
    }
    assert len(places) == 3 * 6


def test_random_resized_crop_draws_areas_and_aspects_as_torchvision_does(tmp_path: Path) -> None:
    # The coordinates are in the colours: what was cut out can be read from the corners.
    width, height = 250, 200
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    picture = Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))
    chain = [ours.RandomResizedCrop(8, interpolation="nearest")]
    images = many(picture, tmp_path, chain, count=2000).astype(float)
    # Centres of the first and last of 8 samples are 7/8 of the side apart.
    widths = (images[:, 0, 0, 7] - images[:, 0, 0, 0]) * 8 / 7
    heights = (images[:, 1, 7, 0] - images[:, 1, 0, 0]) * 8 / 7
    ours_drawn = (widths * heights / (width * height), np.log(widths / heights))
    torch.manual_seed(0)
    tensor = torch.empty(3, height, width)
    boxes = [v1.RandomResizedCrop.get_params(tensor, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    _, _, h, w = np.array(boxes, dtype=float).T
    for mine, theirs in zip(ours_drawn, (w * h / (width * height), np.log(w / h)), strict=True):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            spread = np.std(theirs)
            assert abs(np.quantile(mine, share) - np.quantile(theirs, share)) < 0.15 * spread
    assert (
        abs(np.mean(images[:, 0]) - (width - 1) / 2) < 5 and abs(np.mean(images[:, 1]) - (height - 1) / 2) < 5
    )


def test_gaussian_noise_has_its_mean_and_deviation(tmp_path: Path) -> None:
    images = many(
        flat(), tmp_path, [ours.CenterCrop(32), ours.GaussianNoise(mean=0.1, sigma=0.05)], count=100
    )
    levels = images.astype(float) - 128
    assert abs(levels.mean() - 25.5) < 0.3
    assert abs(levels.std() - 12.75) < 0.3
    # Neither channels nor pixels nor images repeat each other.
    assert abs(np.corrcoef(levels[:, 0].ravel(), levels[:, 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(levels[:, :, :, 1:].ravel(), levels[:, :, :, :-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(levels[1:].ravel(), levels[:-1].ravel())[0, 1]) < 0.02


def test_gaussian_noise_stays_within_the_levels(tmp_path: Path) -> None:
    images = many(flat(250), tmp_path, [ours.CenterCrop(16), ours.GaussianNoise(sigma=0.2)], count=50)
    assert 0.4 < (images == 255).mean() < 0.6 and images.min() < 200


def test_random_erasing_has_its_probability_area_and_place(tmp_path: Path) -> None:
    images = many(
        flat(), tmp_path, [ours.CenterCrop(64), ours.RandomErasing(0.4, (0.05, 0.2), (0.5, 2.0))], count=1000
    )
    erased = (images == 0).all(axis=1)
    assert ((images == 128).all(axis=1) | erased).all()
    hit = erased.any(axis=(1, 2))
    assert near(hit.sum(), 1000, 0.4)
    shares = erased[hit].mean(axis=(1, 2))
    assert 0.03 < shares.min() < 0.07 and 0.17 < shares.max() < 0.22
    borders = [64, -1, 64, -1]
    for mask in erased[hit]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns), "a rectangle"
        assert len(rows) == rows[-1] - rows[0] + 1 and len(columns) == columns[-1] - columns[0] + 1
        assert 0.4 < len(rows) / len(columns) < 2.6
        least, most = (rows[0], columns[0]), (rows[-1], columns[-1])
        borders = [
            min(borders[0], least[0]),
            max(borders[1], most[0]),
            min(borders[2], least[1]),
            max(borders[3], most[1]),
        ]
    assert borders == [0, 63, 0, 63], "no place is spared"


def test_random_erasing_after_normalize_writes_its_value(tmp_path: Path) -> None:
    chain = [ours.CenterCrop(32), ours.Normalize((0.5,) * 3, (0.5,) * 3)]
    images = many(flat(255), tmp_path, [*chain, ours.RandomErasing(1.0, value=(1.5, -2.0, 0.25))], count=50)
    for channel, value in enumerate((1.5, -2.0, 0.25)):
        values = set(np.unique(images[:, channel]).tolist())
        assert values <= {1.0, value} and value in values


def test_random_erasing_with_random_values_is_standard_normal(tmp_path: Path) -> None:
    chain = [ours.CenterCrop(64), ours.Normalize((0.5,) * 3, (0.5,) * 3)]
    erase = ours.RandomErasing(1.0, scale=(0.3, 0.33), value="random")
    images = many(flat(255), tmp_path, [*chain, erase], count=60)
    drawn = images[images != 1.0]
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02


def test_random_rotation_draws_angles_evenly(tmp_path: Path) -> None:
    # A white ray from the centre to the right: its end tells the angle.
    picture = np.zeros((101, 101, 3), np.uint8)
    picture[49:52, 70:95] = 255
    chain = [ours.RandomRotation((-60, 30), interpolation="bilinear"), ours.CenterCrop(101)]
    images = many(Image.fromarray(picture), tmp_path, chain, count=800)[:, 0].astype(float)
    y, x = np.mgrid[-50:51, -50:51]
    mass = images.sum(axis=(1, 2))
    angles = np.degrees(
        np.arctan2(-(images * y).sum(axis=(1, 2)) / mass, (images * x).sum(axis=(1, 2)) / mass)
    )
    assert -61 < angles.min() < -57 and 27 < angles.max() < 31, (
        "counter-clockwise is positive, as in torchvision"
    )
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(angles, share) - (-60 + 90 * share)) < 6


def test_color_jitter_draws_factors_evenly_and_orders_at_random(tmp_path: Path) -> None:
    images = many(flat(100), tmp_path, [ours.CenterCrop(8), ours.ColorJitter(brightness=0.5)], count=1000)
    factors = images[:, 0, 0, 0] / 100
    assert 0.49 < factors.min() < 0.53 and 1.47 < factors.max() < 1.51
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(factors, share) - (0.5 + share)) < 0.06


def test_random_order_of_color_jitter_reaches_both_orders(tmp_path: Path) -> None:
    picture = photographs.photograph(4, 30, 30)
    fixed = {"brightness": (1.8, 1.8), "contrast": (0.4, 0.4)}
    images = many(picture, tmp_path, [ours.CenterCrop(30), ours.ColorJitter(**fixed)], count=60)
    first = v1.functional.adjust_contrast(v1.functional.adjust_brightness(picture, 1.8), 0.4)
    second = v1.functional.adjust_brightness(v1.functional.adjust_contrast(picture, 0.4), 1.8)
    kinds = [pixels(first).astype(int), pixels(second).astype(int)]
    counts = [sum(bool(np.abs(image - kind).max() <= 2) for image in images) for kind in kinds]
    assert sum(counts) == 60 and min(counts) > 10, counts


def test_gaussian_blur_draws_its_sigma_from_the_range(tmp_path: Path) -> None:
    picture = np.zeros((41, 41, 3), np.uint8)
    picture[20, 20] = 255
    images = many(Image.fromarray(picture), tmp_path, [ours.CenterCrop(41), ours.GaussianBlur(9, (0.5, 1.5))])
    peaks = images[:, 0, 20, 20]
    expected = {
        sigma: pixels(v1.GaussianBlur(9, (sigma, sigma))(Image.fromarray(picture)))[0, 20, 20]
        for sigma in (0.5, 1.5)
    }
    assert peaks.min() <= int(expected[1.5]) + 1 and peaks.max() >= int(expected[0.5]) - 8
    assert peaks.min() >= int(expected[1.5]) - 1 and peaks.max() <= int(expected[0.5]) + 1
    assert len(np.unique(peaks)) > 30


# What is in the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    picture = photographs.photograph(6, 64, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        content = encoded(picture, kind, tiffinfo={0x0112: orientation})
    else:
        content = encoded(picture, kind, exif=exif, **options)
    with Image.open(io.BytesIO(content)) as stored:
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    assert upright.size == ((64, 48) if orientation <= 4 else (48, 64))

    def chain(t: Any) -> list[Any]:
        # Not symmetric: a wrong turn or mirror shows.
        return [t.Pad((5, 0, 0, 9)), t.Resize((40, 36))]

    results = load([(kind.lower(), content)], tmp_path / "a", chain(ours))
    compare([upright], results, chain, v1, None if kind == "JPEG" else 1)


def sixteen_bit_png(levels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(levels.astype(np.uint16)))


def test_every_kind_of_pixel_becomes_rgb_as_pillow_converts(tmp_path: Path) -> None:
    picture = photographs.photograph(7, 60, 50)
    gray = picture.convert("L")
    alpha = picture.copy()
    alpha.putalpha(gray)
    cases = {
        "gray PNG": ("png", encoded(gray)),
        "gray JPEG": ("jpg", encoded(gray, "JPEG", quality=95)),
        "gray and alpha PNG": ("png", encoded(alpha.convert("LA"))),
        "alpha PNG": ("png", encoded(alpha)),
        "alpha WebP": ("webp", encoded(alpha, "WEBP", lossless=True, exact=True)),
        "palette PNG": ("png", encoded(picture.quantize(200))),
        "palette GIF": ("gif", encoded(picture.quantize(100), "GIF")),
        "palette BMP": ("bmp", encoded(picture.quantize(64), "BMP")),
        "one bit PNG": ("png", encoded(picture.convert("1"))),
        "one bit TIFF": ("tiff", encoded(picture.convert("1"), "TIFF", compression="raw")),
        "RGB BMP": ("bmp", encoded(picture, "BMP")),
        "RGB TIFF": ("tiff", encoded(picture, "TIFF", compression="tiff_lzw")),
        "RGB PPM": ("ppm", encoded(picture, "PPM")),
        "gray PGM": ("pgm", encoded(gray, "PPM")),
        "progressive JPEG": ("jpg", encoded(picture, "JPEG", progressive=True)),
        "4:4:4 JPEG": ("jpg", encoded(picture, "JPEG", subsampling=0)),
        "CMYK JPEG": ("jpg", encoded(picture.convert("CMYK"), "JPEG", quality=95)),
    }
    results = load(list(cases.values()), tmp_path / "a", [ours.CenterCrop((50, 60))])
    for (name, (_, content)), result in zip(cases.items(), results, strict=True):
        expected = pixels(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        difference = np.abs(result - expected)
        if "JPEG" in name:
            assert difference.mean() <= 1, f"{name}: mean {difference.mean():.2f}, at most {difference.max()}"
        else:
            assert difference.max() <= 1, f"{name}: at most {difference.max()}"


def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path: Path) -> None:
    """Pillow clips 16-bit gray at 255, which whitens the picture; ours is what the picture shows."""
    levels = np.random.default_rng(0).integers(0, 1 << 16, (40, 40))
    rgb = np.random.default_rng(1).integers(0, 1 << 16, (40, 40, 3))
    chunks = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    files = [("png", sixteen_bit_png(levels)), ("png", png(40, 40, 16, 2, chunks))]
    gray, colour = load(files, tmp_path / "a", [ours.CenterCrop(40)])
    assert np.abs(gray[0].astype(int) - (levels >> 8)).max() <= 1
    assert np.array_equal(gray[0], gray[1]) and np.array_equal(gray[0], gray[2])
    assert np.abs(colour.astype(int) - (rgb >> 8).transpose(2, 0, 1)).max() <= 1


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG that Pillow cannot write."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [photographs.photograph(number, 40, 40) for number in range(3)]
    gif = encoded(
        frames[0].quantize(64), "GIF", save_all=True, append_images=[f.quantize(64) for f in frames[1:]]
    )
    webp = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    for content, result in zip(
        (gif, webp), load([("gif", gif), ("webp", webp)], tmp_path / "a", [ours.CenterCrop(40)]), strict=True
    ):
        first = pixels(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        assert np.abs(result - first).max() <= 1


def test_the_format_is_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    picture = photographs.photograph(9, 40, 40)
    (result,) = load([("jpg", encoded(picture))], tmp_path / "a", [ours.CenterCrop(40)])
    assert np.array_equal(result, pixels(picture))


def test_transforms_are_written_as_torchvision_writes_them() -> None:
    """Names, argument names, order and defaults: a chain can be copied from a torchvision script."""
    import inspect

    # The last are others' whose steps have no equal there: Ultralytics' and timm's.
    no_steps = {"IMAGENET", "Transform", "Letterbox", "TimmAutoAugment", "TimmRandomErasing"}
    for name in sorted(set(ours.__all__) - no_steps):
        theirs = dict(inspect.signature(getattr(v2, name)).parameters)
        mine = inspect.signature(getattr(ours, name)).parameters
        # A choice that is not there, and a function, for which `like=` of the fields stands.
        for lacking in ("clamping_mode", "labels_getter"):
            theirs.pop(lacking, None)
        assert list(mine) == list(theirs), name
        for parameter, at in theirs.items():
            default, own = at.default, mine[parameter].default
            default = getattr(default, "value", default)
            # torchvision says None for "no fill given", which is 0, and for an optional padding.
            if default is not inspect.Parameter.empty and not (default is None and own == 0):
                same = own == (list(default) if isinstance(own, list) else default)
                assert same or tuple(own) == tuple(default), f"{name}({parameter}={default})"
