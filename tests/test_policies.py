"""Policies against torchvision's on PIL images: the operations that a policy draws are drawn again here, by `draws.py`,
and carried out by torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from draws import Draws
from fuelrail import ConfigError
from fuelrail import transforms as T
from PIL import Image
from support import Loader

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from torchvision.transforms import v2  # noqa: E402

Mode = v2.InterpolationMode
SIZES = [(60, 47), (33, 52), (64, 64), (101, 40)]
COUNT = 400
END = T.CenterCrop((32, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(SIZES):
        photographs.photograph(number, *size).save(folder / f"{number}.png")
    for number in range(len(SIZES), COUNT):
        (folder / f"{number:04}.png").symlink_to(folder / f"{number % len(SIZES)}.png")
    return folder


def delivered(folder: Path, step: Any) -> list[tuple[Image.Image, np.ndarray, Draws]]:
    """Each picture, what the step makes of its middle, and the draws of the step for it."""
    with Loader(folder, transforms=[step, END], batch_size=COUNT, shuffle=False, seed=5) as loader:
        images = next(iter(loader))["image"].copy()
    files = sorted(folder.glob("*.png"))
    pictures = [Image.open(path).convert("RGB") for path in files]
    return [(picture, images[at], Draws.of(0, at, seed=5)) for at, picture in enumerate(pictures)]


def differences(folder: Path, step: Any, expect: Callable[[Image.Image, Draws], Image.Image]) -> np.ndarray:
    found = []
    for picture, image, draws in delivered(folder, step):
        expected = np.asarray(v2.functional.center_crop(expect(picture, draws), [32, 32])).astype(int)
        found.append(np.abs(expected.transpose(2, 0, 1) - image).max())
    return np.array(found)


def carried_out(
    policy: Any, picture: Image.Image, kind: str, bin: int, bins: int, draws: Draws
) -> Image.Image:
    """An operation of torchvision's policy, with the sign that is drawn."""
    magnitudes, signed = policy._AUGMENTATION_SPACE[kind]
    values = magnitudes(bins, picture.height, picture.width)
    magnitude = 0.0
    if values is not None:
        magnitude = float(values[bin])
        if signed and draws.chance(0.5):
            magnitude = -magnitude
    return policy._apply_image_or_video_transform(
        picture, kind, magnitude, interpolation=policy.interpolation, fill=policy._fill
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_ops": 1, "magnitude": 30},
        {
            "num_ops": 3,
            "magnitude": 4,
            "num_magnitude_bins": 10,
            "interpolation": Mode.BILINEAR,
            "fill": [7, 80, 200],
        },
        {"num_ops": 2, "magnitude": 15, "interpolation": Mode.BICUBIC, "fill": 99},
        {"num_ops": 0},
    ],
    ids=["as it is", "one, strong", "three of ten bins", "bicubic", "none"],
)
def test_rand_augment_is_torchvisions(options: dict[str, Any], folder: Path) -> None:
    theirs = v2.RandAugment(**options)
    kinds = list(theirs._AUGMENTATION_SPACE)
    seen = set()

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        for _ in range(theirs.num_ops):
            kind = kinds[draws.below(len(kinds))]
            seen.add(kind)
            picture = carried_out(theirs, picture, kind, theirs.magnitude, theirs.num_magnitude_bins, draws)
        return picture

    assert differences(folder, T.RandAugment(**options), expect).max() == 0
    assert len(seen) == (len(kinds) if theirs.num_ops else 0)


def test_trivial_augment_is_torchvisions(folder: Path) -> None:
    theirs = v2.TrivialAugmentWide(interpolation=Mode.BILINEAR, fill=50)
    kinds = list(theirs._AUGMENTATION_SPACE)
    bins = theirs.num_magnitude_bins

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        kind = kinds[draws.below(len(kinds))]
        return carried_out(theirs, picture, kind, draws.below(bins), bins, draws)

    assert differences(folder, T.TrivialAugmentWide(interpolation="bilinear", fill=50), expect).max() == 0


@pytest.mark.parametrize("policy", list(v2.AutoAugmentPolicy), ids=str)
def test_auto_augment_is_torchvisions(policy: Any, folder: Path) -> None:
    theirs = v2.AutoAugment(policy, fill=30)

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        for kind, probability, bin in theirs._policies[draws.below(25)]:
            if draws.chance(probability):
                picture = carried_out(theirs, picture, kind, bin or 0, 10, draws)
        return picture

    assert differences(folder, T.AutoAugment(policy, fill=30), expect).max() == 0


@pytest.mark.parametrize(
    "options", [{}, {"severity": 10, "mixture_width": 2, "chain_depth": 2, "all_ops": False}]
)
def test_augmix_mixes_as_torchvision_does(options: dict[str, Any], folder: Path) -> None:
    """torchvision changes the copies as tensors, which interpolates and stretches levels a little differently from
    Pillow, as all else here is: here its chains are those on PIL images."""
    theirs = v2.AugMix(**options, interpolation=Mode.NEAREST)
    space = theirs._AUGMENTATION_SPACE if theirs.all_ops else theirs._PARTIAL_AUGMENTATION_SPACE
    kinds = list(space)

    def gamma(draws: Draws) -> float:
        d = 1.0 - 1.0 / 3.0
        c = 1.0 / np.sqrt(9.0 * d)
        while True:
            x = draws.normal_pair()[0]
            v = (1.0 + c * x) ** 3
            u = 1.0 - draws.unit()
            if v > 0 and np.log(u) < 0.5 * x * x + d - d * v + d * np.log(v):
                return float(d * v)

    def dirichlet(draws: Draws, count: int) -> list[float]:
        parts = [gamma(draws) for _ in range(count)]
        return [part / sum(parts) for part in parts]

    def expect(picture: Image.Image, draws: Draws) -> Image.Image:
        own, mixed = dirichlet(draws, 2)
        weights = dirichlet(draws, theirs.mixture_width)
        total = own * np.asarray(picture, dtype=np.float64)
        for number, weight in enumerate(weights):
            chain, copy = draws.child(number), picture
            depth = theirs.chain_depth if theirs.chain_depth > 0 else 1 + chain.below(3)
            for _ in range(depth):
                kind = kinds[chain.below(len(kinds))]
                bin = chain.below(theirs.severity)
                if kind == "Posterize" and int(space[kind][0](10, 1, 1)[bin]) == 0:
                    copy = Image.new("RGB", copy.size)  # Pillow keeps one bit at least
                else:
                    copy = carried_out(theirs, copy, kind, bin, 10, chain)
            total += weight * mixed * np.asarray(copy)
        return Image.fromarray(total.clip(0, 255).astype(np.uint8))

    found = differences(folder, T.AugMix(**options, interpolation="nearest"), expect)
    assert found.max() <= 1


def test_augmix_is_near_torchvisions_own_on_the_whole(folder: Path) -> None:
    """The same distribution of pictures: their mean distance from the original."""
    torch.manual_seed(0)
    ours, theirs = [], []
    augmix = v2.AugMix()
    for picture, image, _ in delivered(folder, T.AugMix()):
        original = np.asarray(v2.functional.center_crop(picture, [32, 32])).astype(int).transpose(2, 0, 1)
        ours.append(np.abs(image - original).mean())
        other = (
            np.asarray(v2.functional.center_crop(augmix(picture), [32, 32])).astype(int).transpose(2, 0, 1)
        )
        theirs.append(np.abs(other - original).mean())
    spread = np.std(theirs) / np.sqrt(COUNT)
    assert abs(np.mean(ours) - np.mean(theirs)) < 5 * spread * 2**0.5


def test_a_policy_before_and_after_a_crop_sees_what_is_there(folder: Path) -> None:
    """The crop is fused with nothing that a policy does; a policy after it moves the crop's own pixels."""
    theirs = v2.RandAugment(num_ops=2, magnitude=20)
    kinds = list(theirs._AUGMENTATION_SPACE)

    def operations(picture: Image.Image, draws: Draws) -> Image.Image:
        for _ in range(2):
            picture = carried_out(theirs, picture, kinds[draws.below(14)], 20, 31, draws)
        return picture

    step = T.RandAugment(2, 20)
    chain = [
        T.Resize((48, 40)),
        T.RandomHorizontalFlip(1.0),
        step,
        T.CenterCrop(36),
        step,
        T.RandomVerticalFlip(1.0),
    ]
    with Loader(folder, transforms=chain, batch_size=COUNT, shuffle=False, seed=5) as loader:
        images = next(iter(loader))["image"].copy()
    for position, path in enumerate(sorted(folder.glob("*.png"))[:80]):
        picture = v2.functional.horizontal_flip(
            Image.open(path).convert("RGB").resize((40, 48), Image.BILINEAR)
        )
        picture = v2.functional.center_crop(operations(picture, Draws.of(2, position, seed=5)), [36, 36])
        picture = v2.functional.vertical_flip(operations(picture, Draws.of(4, position, seed=5)))
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), images[position]), position


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda: T.RandAugment(num_ops=-1), r"transforms\[0\] RandAugment: num_ops: .*-1"),
        (lambda: T.RandAugment(magnitude=31), r"transforms\[0\] RandAugment: magnitude must be below .*31"),
        (lambda: T.RandAugment(num_magnitude_bins=1), r"num_magnitude_bins must be between 2 and"),
        (lambda: T.RandAugment(interpolation="lanczos"), r"nearest, bilinear or bicubic"),
        (
            lambda: T.RandAugment(fill={"image": 3}),
            r"RandAugment: fill: it takes a number or a list of numbers",
        ),
        (lambda: T.AutoAugment("imagenet21k"), r"imagenet21k.*imagenet.*cifar10.*svhn"),
        (lambda: T.AugMix(severity=11), r"severity must be between 1 and 10, not 11"),
        (lambda: T.AugMix(mixture_width=0), r"mixture_width must be between 1 and"),
        (lambda: T.AugMix(alpha=0), r"alpha must be above 0"),
        (
            lambda: T.RandomApply([T.RandAugment(num_magnitude_bins=0)]),
            r"RandomApply: transforms\[0\] RandAugment: num",
        ),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_its_argument(step: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Loader("synthetic://?count=2", transforms=[step(), T.CenterCrop(8)])
