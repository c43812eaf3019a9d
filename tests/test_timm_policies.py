"""timm's policies and erasing, against timm on PIL images: timm's own objects are run with our random numbers, which are
drawn again by `draws.py`.
"""

from __future__ import annotations

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

pytest.importorskip("torch")
pytest.importorskip("torchvision")
theirs = pytest.importorskip("timm.data.auto_augment")

from torchvision.transforms.v2 import functional as F  # noqa: E402

SIZES = [(60, 47), (41, 52), (64, 64), (101, 48)]
COUNT = 240
MEAN = (124, 116, 104)


class Chosen:
    """Python's and numpy's random modules for timm: all from the draws of one step."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.parent, self.chains, self.began = draws, draws, 0, False
        self.random_state = self

    def random(self) -> float:
        return self.draws.unit()

    def uniform(self, low: float, high: float) -> float:
        return self.draws.range(low, high)

    def gauss(self, mean: float, deviation: float) -> float:
        return mean + deviation * self.draws.normal_pair()[0]

    def choice(self, things: Any, count: int | None = None, replace: bool = True, p: Any = None) -> Any:
        if count is None:
            if isinstance(things, tuple):  # of two filters
                return things[0] if self.draws.chance(0.5) else things[1]
            return things[self.draws.below(len(things))]
        if self.mixing and not self.began:
            self.begin()
        self.began = False
        if self.mixing:
            return [things[self.draws.below(len(things))] for _ in range(count)]
        weights = [1.0] * len(things) if p is None else [float(weight) for weight in p]
        chosen = []
        for _ in range(count):
            at = self.draws.weighted(weights)
            chosen.append(things[at])
            if not replace:
                weights[at] = 0.0
        return chosen

    # Of AugMix.

    mixing = False

    def begin(self) -> None:
        """The next chain, whose draws are its own."""
        self.draws = self.parent.child(self.chains)
        self.chains, self.began = self.chains + 1, True

    def randint(self, low: int, high: int) -> int:
        self.begin()
        return low + self.draws.below(high - low)

    def dirichlet(self, alphas: list[float]) -> np.ndarray:
        self.mixing = True
        parts = [self.gamma(alpha) for alpha in alphas]
        return np.array(parts) / sum(parts)

    def beta(self, a: float, b: float) -> float:
        return float(self.dirichlet([a, b])[0])

    def gamma(self, shape: float) -> float:
        d = shape - 1 / 3
        c = 1 / np.sqrt(9 * d)
        while True:
            x = self.draws.normal_pair()[0]
            v = (1 + c * x) ** 3
            u = 1 - self.draws.unit()
            if v > 0 and np.log(u) < 0.5 * x * x + d - d * v + d * np.log(v):
                return float(d * v)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(SIZES):
        photographs.photograph(number, *size).save(folder / f"{number}.png")
    for number in range(len(SIZES), COUNT):
        (folder / f"{number:04}.png").symlink_to(folder / f"{number % len(SIZES)}.png")
    return folder


def posterized(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, which fails on newer Pillows where no bit is kept: those keep one at least."""
    if bits_to_keep >= 8:
        return image
    mask = 0xFF00 >> max(bits_to_keep, 0) & 0xFF
    return image.point([level & mask for level in range(256)] * 3)


def timms(text: str, hparams: dict[str, Any]) -> Any:
    if text.startswith("rand"):
        return theirs.rand_augment_transform(text, hparams)
    if text.startswith("augmix"):
        return theirs.augment_and_mix_transform(text, {"translate_pct": 0.3, **hparams})
    return theirs.auto_augment_transform(text, hparams)


@pytest.mark.parametrize(
    "text",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m9-n3-mstd0.5",
        "rand-m7-n4-p1",
        "rand-m15-mmax20-mstd101-p0.9-inc1",
        "rand-mstd1-tweights-n3",
        "rand-n2-t3a-p1",
        "rand-n4-t3aw-m6-mstd2",
        "original",
        "originalr-mstd0.5",
        "v0-mstd0.5",
        "v0r",
        "3a",
        "augmix-m5-w4-d2",
        "augmix-mstd1",
    ],
)
def test_a_policy_of_timm_is_timms(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        monkeypatch.setitem(theirs.NAME_TO_OP, name, posterized)
    policy = timms(text, {"img_mean": MEAN})
    chain = [text, T.CenterCrop((40, 36))]
    with Loader(folder, transforms=chain, batch_size=COUNT, shuffle=False, seed=6) as loader:
        images = next(iter(loader))["image"].copy()
    changed = 0
    worst = []
    for position, path in enumerate(sorted(folder.glob("*.png"))):
        chosen = Chosen(Draws.of(0, position, seed=6))
        monkeypatch.setattr(theirs, "random", chosen)
        monkeypatch.setattr(theirs.np, "random", chosen)
        picture = Image.open(path).convert("RGB")
        expected = np.asarray(F.center_crop(policy(picture), [40, 36])).astype(int).transpose(2, 0, 1)
        worst.append(np.abs(expected - images[position]).max())
        changed += not np.array_equal(
            np.asarray(F.center_crop(picture, [40, 36])), images[position].transpose(1, 2, 0)
        )
    # Normal numbers are f32 in the daemon: a threshold or an angle may differ in its last digits.
    exact = "mstd" not in text and "augmix" not in text
    assert np.max(worst) == 0 if exact else np.mean(np.array(worst) <= 1) > 0.97, sorted(worst)[-9:]
    assert changed > COUNT / 4


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("counts", [(1, None), (2, 4)])
def test_erasing_is_timms(mode: str, counts: tuple[int, int | None], folder: Path) -> None:
    least, most = counts
    erase = T.TimmRandomErasing(
        0.7, min_area=0.05, min_aspect=0.4, mode=mode, min_count=least, max_count=most
    )
    plain = [T.CenterCrop((48, 40)), T.Normalize((0.5,) * 3, (0.25,) * 3)]

    def images(chain: list[Any]) -> np.ndarray:
        with Loader(folder, transforms=chain, batch_size=COUNT, shuffle=False, seed=6) as loader:
            return next(iter(loader))["image"].copy()

    before, after = images(plain), images([*plain, erase])
    drawn: list[np.ndarray] = []
    for position in range(COUNT):
        draws = Draws.of(2, position, seed=6)
        rects = []
        if draws.chance(0.7):
            count = least if most is None else least + draws.below(most - least + 1)
            for _ in range(count):
                for _ in range(10):
                    area = 48 * 40 * draws.range(0.05, 1 / 3) / count
                    aspect = np.exp(draws.range(np.log(0.4), np.log(1 / 0.4)))
                    h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
                    if w < 40 and h < 48:
                        rects.append((draws.below(48 - h + 1), draws.below(40 - w + 1), h, w))
                        break
        inside = np.zeros((48, 40), bool)
        for top, left, h, w in rects:
            inside[top : top + h, left : left + w] = True
            drawn.append(after[position][:, top : top + h, left : left + w])
        assert np.array_equal(after[position][:, ~inside], before[position][:, ~inside]), position
        if rects:
            top, left, h, w = rects[-1]
            patch = after[position][:, top : top + h, left : left + w]
            if mode == "const":
                assert (patch == 0).all()
            else:
                values = {len(np.unique(channel)) for channel in patch}
                assert values == {1} if mode == "rand" else min(values) > h * w / 2
    assert len(drawn) > 100
    if mode == "pixel":
        levels = np.concatenate([patch.ravel() for patch in drawn])
        assert abs(levels.mean()) < 0.02 and abs(levels.std() - 1) < 0.02


def test_an_object_of_timm_is_refused_with_what_to_write() -> None:
    with pytest.raises(
        ConfigError, match=r"transforms\[1\] is timm.*RandAugment.*write timm's configuration string"
    ):
        Loader(
            "synthetic://?count=2",
            transforms=[T.Resize((8, 8)), theirs.rand_augment_transform("rand-m9", {})],
        )


def test_a_string_is_a_policy_also_inside_other_steps() -> None:
    assert T.RandomApply(["rand-m9"]).config() == T.RandomApply([T.TimmAutoAugment("rand-m9")]).config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "rand-m9-x3",
            r'TimmAutoAugment: config_str: section "x3" is not one of m, n, p, mstd, mmax, inc and t',
        ),
        ("augmix-b1", r"blended"),
        ("randaugment-m9", r"is text, 'randaugment-m9'.*RandAugment.*rand, augmix, original"),
        ("v1", r"is text, 'v1'"),
    ],
)
def test_a_string_that_is_no_policy_is_refused_with_what_is_known(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Loader("synthetic://?count=2", transforms=[text, T.CenterCrop(8)])
    with pytest.raises(ConfigError, match=r"no policy; there are rand-.*augmix-"):
        Loader("synthetic://?count=2", transforms=[T.TimmAutoAugment("v1"), T.CenterCrop(8)])
