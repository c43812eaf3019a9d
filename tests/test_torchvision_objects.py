"""torchvision's objects as `transforms=`: translated to the same pixels, or refused with the step that has no equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from fuelrail import ConfigError
from fuelrail import transforms as T
from fuelrail.interop import chain
from PIL import Image

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from fuelrail.torch import Loader  # noqa: E402
from torchvision import transforms as v1  # noqa: E402
from torchvision.transforms import InterpolationMode as Mode  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The transform `ToTensor")

MEAN, STD = T.IMAGENET


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(60, 47), (33, 52), (64, 64)]):
        photographs.photograph(number, *size).save(folder / f"{number}.png")
    return folder


FIXED: dict[str, Callable[[Any], Any]] = {
    "the usual evaluation": lambda m: m.Compose(
        [m.Resize(40), m.CenterCrop(32), m.ToTensor(), m.Normalize(MEAN, STD)]
    ),
    "without Normalize": lambda m: m.Compose([m.Resize((24, 30)), m.ToTensor()]),
    "bytes": lambda m: m.Compose([m.Resize((24, 30), Mode.BICUBIC), m.PILToTensor()]),
    "converted": lambda m: [
        m.Resize(32),
        m.CenterCrop(20),
        m.PILToTensor(),
        m.ConvertImageDtype(torch.float32),
    ],
    "tensors as means": lambda m: m.Compose(
        [m.Resize((16, 16)), m.ToTensor(), m.Normalize(torch.tensor(MEAN), np.array(STD))]
    ),
    "nested": lambda m: m.Compose([m.Compose([m.Resize((20, 20)), m.Grayscale(3)]), m.ToTensor()]),
    "certain flips": lambda m: m.Compose(
        [m.Resize((20, 24)), m.RandomHorizontalFlip(1.0), m.RandomVerticalFlip(p=1), m.ToTensor()]
    ),
    "padding in white": lambda m: m.Compose([m.Resize((20, 24)), m.Pad([2, 3], fill=255), m.ToTensor()]),
    "padding after ToTensor": lambda m: m.Compose([m.Resize((20, 24)), m.ToTensor(), m.Pad(2, fill=1.0)]),
    "padding by reflection": lambda m: m.Compose(
        [m.Resize((20, 24)), m.Pad(3, padding_mode="reflect"), m.ToTensor()]
    ),
    "a fixed rotation": lambda m: m.Compose(
        [m.Resize((32, 32)), m.RandomRotation((30, 30), Mode.BILINEAR, fill=(10, 20, 30)), m.ToTensor()]
    ),
    "a fixed jitter": lambda m: m.Compose(
        [m.Resize((24, 24)), m.ColorJitter(brightness=(1.5, 1.5)), m.ToTensor(), m.Normalize([0.5], [0.5])]
    ),
}
V2_ONLY: dict[str, Callable[[Any], Any]] = {
    "v2's own way": lambda m: m.Compose(
        [
            m.ToImage(),
            m.Resize((24, 24), antialias=True),
            m.ToDtype(torch.float32, scale=True),
            m.Normalize(MEAN, STD),
        ]
    ),
    "v2, bytes": lambda m: m.Compose([m.ToImage(), m.CenterCrop([20]), m.ToDtype(torch.uint8, scale=True)]),
    "a weights' own": lambda m: torchvision.models.ResNet18_Weights.DEFAULT.transforms(
        crop_size=32, resize_size=40
    ),
}
CASES = [(name, module, make) for module in (v1, v2) for name, make in FIXED.items()]
CASES += [(name, v2, make) for name, make in V2_ONLY.items()]


@pytest.mark.parametrize(
    ("module", "make"),
    [pytest.param(module, make, id=f"{module.__name__[-2:]} {name}") for name, module, make in CASES],
)
def test_a_torchvision_chain_gives_torchvisions_pixels(
    module: Any, make: Callable[[Any], Any], folder: Path
) -> None:
    theirs = make(module)
    apply = module.Compose(theirs) if isinstance(theirs, list) else theirs
    with Loader(folder, transforms=theirs, batch_size=3) as loader:
        images = next(iter(loader))["image"]
    for at, image in enumerate(images):
        expected = torch.as_tensor(apply(Image.open(folder / f"{at}.png").convert("RGB")))
        assert image.dtype == expected.dtype and image.shape == expected.shape
        # A level of 255; where torchvision resizes floats or tensors it rounds later than Pillow does.
        level = 1.01 if image.dtype == torch.uint8 else 1.01 / 255 / min(STD)
        assert (image.float() - expected.float()).abs().max() <= 2 * level


@pytest.mark.parametrize("module", [v1, v2], ids=["v1", "v2"])
def test_random_steps_become_ours_with_all_their_arguments(module: Any) -> None:
    m = module
    pairs = [
        (
            m.RandomResizedCrop(24, (0.2, 0.9), (0.8, 1.2), Mode.BICUBIC),
            T.RandomResizedCrop([24, 24], (0.2, 0.9), (0.8, 1.2), "bicubic"),
        ),
        (
            m.RandomCrop(20, padding=4, pad_if_needed=True, fill=7, padding_mode="edge"),
            T.RandomCrop([20, 20], 4, True, 7, "edge"),
        ),
        (m.RandomHorizontalFlip(0.3), T.RandomHorizontalFlip(0.3)),
        (m.RandomVerticalFlip(0.2), T.RandomVerticalFlip(0.2)),
        (
            m.RandomRotation(20, expand=True, center=None, fill=3),
            T.RandomRotation([-20.0, 20.0], "nearest", True, None, 3),
        ),
        (m.RandomGrayscale(0.25), T.RandomGrayscale(0.25)),
        (m.ColorJitter(0.4, (0.5, 2), 0, 0.1), T.ColorJitter([0.6, 1.4], [0.5, 2.0], None, [-0.1, 0.1])),
        (m.GaussianBlur((3, 5), (0.2, 1.5)), T.GaussianBlur([3, 5], [0.2, 1.5])),
        (m.RandomErasing(0.4, (0.1, 0.2), (0.5, 2), value=3), T.RandomErasing(0.4, [0.1, 0.2], [0.5, 2], 3)),
        (
            m.RandomAffine(0, (0.1, 0.2), (0.5, 2), (1, 2, 3, 4), Mode.BILINEAR, 5, [1, 2]),
            T.RandomAffine([0.0, 0.0], [0.1, 0.2], [0.5, 2], [1, 2, 3, 4], "bilinear", 5, [1, 2]),
        ),
        (m.RandomRotation(20, Mode.BICUBIC), T.RandomRotation([-20.0, 20.0], Image.Resampling.BICUBIC)),
        (m.RandomAffine(5, shear=3), T.RandomAffine([-5.0, 5.0], shear=[-3.0, 3.0])),
        (m.RandomPerspective(0.3, 0.2, fill=4), T.RandomPerspective(0.3, 0.2, "bilinear", 4)),
        (m.ElasticTransform(30.0, 4.0), T.ElasticTransform([30.0, 30.0], [4.0, 4.0])),
        (m.RandomSolarize(99, 0.3), T.RandomSolarize(99, 0.3)),
        (m.RandomPosterize(3, 0.3), T.RandomPosterize(3, 0.3)),
        (m.RandomEqualize(0.3), T.RandomEqualize(0.3)),
        (m.RandomAutocontrast(0.3), T.RandomAutocontrast(0.3)),
        (m.RandomInvert(0.3), T.RandomInvert(0.3)),
        (m.RandomAdjustSharpness(2, 0.3), T.RandomAdjustSharpness(2, 0.3)),
        (m.RandAugment(), T.RandAugment()),
        (
            m.RandAugment(3, 5, 11, Mode.BILINEAR, [1, 2, 3]),
            T.RandAugment(3, 5, 11, "bilinear", [1, 2, 3]),
        ),
        (m.TrivialAugmentWide(11, Mode.BICUBIC, 9), T.TrivialAugmentWide(11, "bicubic", 9)),
        (m.AutoAugment(m.AutoAugmentPolicy.SVHN, fill=4), T.AutoAugment("svhn", fill=4)),
        (m.AugMix(4, 2, 1, 0.5, False), T.AugMix(4, 2, 1, 0.5, False)),
    ]
    if m is v2:
        pairs += [
            (m.GaussianNoise(0.1, 0.2), T.GaussianNoise(0.1, 0.2)),
            (m.RandomPhotometricDistort(p=0.3), T.RandomPhotometricDistort(p=0.3)),
            (m.RandomChannelPermutation(), T.RandomChannelPermutation()),
        ]
    flat = lambda config: {  # noqa: E731
        key: _numbers(value) for key, value in config.items() if value is not None
    }
    for theirs, ours in pairs:
        steps, dtype = chain(theirs)
        assert [flat(step) for step in steps] == [flat(ours.config())], theirs
        assert dtype is None


@pytest.mark.parametrize("module", [v1, v2], ids=["v1", "v2"])
def test_steps_made_of_steps_become_ours_with_all_that_is_in_them(module: Any) -> None:
    m = module
    theirs = m.Compose(
        [
            m.RandomApply([m.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            m.RandomChoice(
                [m.RandomInvert(), m.Compose([m.RandomEqualize(), m.RandomVerticalFlip()])], p=[1, 3]
            ),
            m.RandomOrder(
                [m.RandomApply(torch.nn.ModuleList([m.RandomAutocontrast()])), m.RandomHorizontalFlip()]
            ),
            m.CenterCrop(8),
            m.ToTensor(),
            m.RandomApply([m.RandomSolarize(0.5)]),
        ]
    )
    steps, dtype = chain(theirs)
    assert dtype == "f32" and [step["type"] for step in steps] == [
        "RandomApply",
        "RandomChoice",
        "RandomOrder",
        "CenterCrop",
        "RandomApply",
    ]
    assert steps[0]["p"] == 0.8 and steps[0]["transforms"][0]["brightness"] == [0.6, 1.4]
    weights = [weight / sum(steps[1]["p"]) for weight in steps[1]["p"]]
    assert weights == [0.25, 0.75]
    both = T.RandomApply([T.RandomEqualize(), T.RandomVerticalFlip()], p=1.0).config()
    assert steps[1]["transforms"] == [T.RandomInvert().config(), both]
    assert (
        steps[2]
        == T.RandomOrder([T.RandomApply([T.RandomAutocontrast()]), T.RandomHorizontalFlip()]).config()
    )
    assert steps[4]["transforms"][0]["threshold"] == 127.5, (
        "in levels, though 0.5 stands for them after ToTensor"
    )
    # Ours may hold theirs.
    assert T.RandomApply([m.RandomInvert(0.3)]).config() == T.RandomApply([T.RandomInvert(0.3)]).config()


def _numbers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = [_numbers(item) for item in value]
        return value[0] if len(set(value)) == 1 and len(value) in (1, 4) else value
    return round(float(value), 9) if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_erasing_after_normalize_keeps_its_value_and_random_stays_random() -> None:
    for m in (v1, v2):
        normalized = [m.ToTensor(), m.Normalize(MEAN, STD)]
        steps, dtype = chain([*normalized, m.RandomErasing(value="random")])
        assert steps[-1]["value"] == "random" and dtype == "f32"
        steps, _ = chain([*normalized, m.RandomErasing(value=1.5)])
        assert steps[-1]["value"] in (1.5, [1.5])
        steps, _ = chain([m.ToTensor(), m.RandomErasing(value=1.0)])
        assert steps[-1]["value"] in (255, [255.0]), "in levels, where white is not 1"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: v1.Compose([v1.Resize(8), v1.FiveCrop(4)]),
            r"transforms\[1\] is torchvision's FiveCrop.*no equal",
        ),
        (lambda: [v1.Compose([v1.TenCrop(4)])], r"transforms\[0\]\[0\] is torchvision's TenCrop"),
        (lambda: v1.Lambda(lambda image: image), r"Lambda"),
        (
            lambda: v2.RandomApply([v2.RandomInvert(), torch.nn.Flatten()]),
            r"transforms \(RandomApply\): transforms\[1\] is torch.*Flatten",
        ),
        (
            lambda: [v2.RandomOrder([v2.ToTensor()])],
            r"transforms\[0\] \(RandomOrder\): .*ToTensor.*move it out",
        ),
        (lambda: v2.RandomAffine(5, fill={"others": 3}), r"RandomAffine.*fill=.*number"),
        (lambda: T.RandomApply(T.RandomInvert()), r"RandomApply: transforms must be a list"),
        (lambda: T.RandomChoice([T.RandomInvert(), 3]), r"RandomChoice: transforms\[1\] is 3"),
        (lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]), r"scale=True"),
        (lambda: v1.ConvertImageDtype(torch.float64), r"float64.*daemon"),
        (lambda: v2.Pad(2, fill={"others": 3}), r"fill=.*number"),
        (lambda: [v1.Resize(8), lambda image: image], r"transforms\[1\] is a Python function"),
        (lambda: torch.nn.Sequential(v1.Resize(8), torch.nn.Flatten()), r"transforms\[1\] is torch.*Flatten"),
        (lambda: v1.Resize, r"class Resize"),
    ],
)
def test_what_has_no_equal_is_refused_by_its_place_and_name(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Loader("synthetic://?count=2", transforms=make())
