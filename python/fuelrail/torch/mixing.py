"""MixUp and CutMix on delivered batches, on their device.

The random numbers are a function of (seed, epoch, position): a resumed run mixes as an uninterrupted one would.

    mix = CutMix(num_classes=len(loader.classes), seed=1)
    for batch in loader:
        images, labels = mix(batch)  # labels are float (N, C) now

Sources: MixUp, arXiv 1710.09412; CutMix, arXiv 1905.04899. For the same random numbers, `MixUp` and `CutMix` do what
torchvision.transforms.v2 does, `Mixup` what timm.data.Mixup does.
"""

from __future__ import annotations

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import functional

from fuelrail import loader as base
from fuelrail.checks import shown
from fuelrail.errors import ConfigError

AnyBatch = TypeVar("AnyBatch", bound=base.Batch[Any])


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    bottom: int
    right: int

    def share(self, height: int, width: int) -> float:
        """Its share of the image's area."""
        return (self.bottom - self.top) * (self.right - self.left) / (height * width)


class Mix(ABC):
    """The common base: takes a batch and returns one with mixed images and float labels (N, C).

    Args:
        num_classes: number of classes for integer labels; may be omitted if labels are already (N, C).
        seed: the random seed.
        p: probability that a batch is mixed at all.
        image, label: the names of the fields.
        label_smoothing: the share of each label spread evenly over all classes.
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        seed: int = 0,
        p: float = 1.0,
        image: str = "image",
        label: str = "label",
        label_smoothing: float = 0.0,
    ) -> None:
        self.num_classes = _whole("num_classes", num_classes)
        self.seed = seed
        self.p = _share("p", p)
        self.image, self.label = image, label
        self.label_smoothing = _share("label_smoothing", label_smoothing)

    def __call__(self, batch: AnyBatch) -> AnyBatch:
        """The batch with mixed images and labels; the given batch is not changed."""
        if not isinstance(batch, base.Batch):
            raise TypeError(
                f"{type(self).__name__} takes a batch of a Loader, which knows its place in the epoch, not "
                f"{shown(batch)}; mixed(images, labels, epoch=..., position=...) takes tensors"
            )
        positions = batch["position"]
        position = int(positions[0]) if len(positions) else batch.position
        images, labels = self.mixed(
            batch[self.image], batch[self.label], epoch=batch.epoch, position=position
        )
        changed = {self.image: images, self.label: labels}
        return batch.replaced(changed)

    def mixed(
        self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed images, of the shape and dtype of `images` (N, C, H, W), and labels of float32 (N, C).

        Args:
            images: of a floating type.
            labels: whole numbers (N,), or shares of classes (N, C).
            epoch, position: where in the run the batch starts; the random numbers depend on it.

        Raises:
            ConfigError: images are not floats, or labels are whole numbers and num_classes= was not given.
        """
        if images.ndim < 3 or not images.is_floating_point():
            raise ConfigError(
                f"{type(self).__name__} mixes floats of shape (N, C, H, W), and got {images.dtype} "
                f"{tuple(images.shape)}: end the transforms with Normalize, or give dtype=torch.float32"
            )
        shares = self._shares(labels)
        draws = random.Random(_key(self.seed, epoch, position))
        if not len(images) or draws.random() >= self.p:
            return images, shares
        return self._mix(images, shares, draws)

    @abstractmethod
    def _mix(
        self, images: torch.Tensor, shares: torch.Tensor, draws: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes."""

    def _shares(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim == 1 and not labels.is_floating_point():
            if self.num_classes is None:
                raise ConfigError(
                    f"{type(self).__name__} needs num_classes= where labels are class numbers: "
                    "num_classes=len(loader.classes)"
                )
            shares = functional.one_hot(labels.long(), self.num_classes).float()
        elif labels.ndim == 2 and labels.is_floating_point():
            shares = labels.float()
        else:
            raise ConfigError(
                f"labels are class numbers (N,) or shares of classes (N, C), not {labels.dtype} {tuple(labels.shape)}"
            )
        if self.label_smoothing:
            shares = shares * (1 - self.label_smoothing) + self.label_smoothing / shares.shape[1]
        return shares

    def __repr__(self) -> str:
        shown_ = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({shown_})"


class _OfBeta(Mix):
    """One draw of Beta(alpha, alpha) for the whole batch."""

    def __init__(self, *, alpha: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.alpha = _positive("alpha", alpha)


class MixUp(_OfBeta):
    """Each image with the one before it in the batch: `lam * image + (1 - lam) * before`, lam from Beta(alpha, alpha).

    Like torchvision.transforms.v2.MixUp, with the arguments of `Mix` in addition.

    Args:
        alpha: parameter of the Beta distribution; higher values mix more evenly.
    """

    def _mix(
        self, images: torch.Tensor, shares: torch.Tensor, draws: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lam = draws.betavariate(self.alpha, self.alpha)
        return blended(images, images.roll(1, 0), lam), blended(shares, shares.roll(1, 0), lam)


class CutMix(_OfBeta):
    """Replaces a rectangle of each image with that of the one before it in the batch; labels are mixed by area.

    Like torchvision.transforms.v2.CutMix, with the arguments of `Mix` in addition.

    Args:
        alpha: parameter of the Beta distribution that the rectangle's area is drawn from.
    """

    def _mix(
        self, images: torch.Tensor, shares: torch.Tensor, draws: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        box = drawn_box(draws, draws.betavariate(self.alpha, self.alpha), height, width)
        lam = 1.0 - box.share(height, width)
        return pasted(images, images.roll(1, 0), box), blended(shares, shares.roll(1, 0), lam)


class Mixup(Mix):
    """Either of them, with timm.data.Mixup's arguments and meaning: partners are the batch in reverse order.

    Args:
        mixup_alpha, cutmix_alpha: parameters of the Beta distributions; 0 disables one.
        cutmix_minmax: bounds of the rectangle's share of each side, instead of cutmix_alpha.
        prob: probability that a batch (or an element, or a pair) is mixed.
        switch_prob: probability of CutMix if both are enabled.
        mode: "batch" draws once for all, "pair" for each pair, "elem" for each image.
        correct_lam: whether labels use the rectangle's area after clipping at the border.
        label_smoothing, num_classes: as in `Mix`.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: tuple[float, float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        *,
        seed: int = 0,
        image: str = "image",
        label: str = "label",
    ) -> None:
        super().__init__(
            num_classes=num_classes, seed=seed, image=image, label=label, label_smoothing=label_smoothing
        )
        if mode not in ("batch", "pair", "elem"):
            raise ConfigError(f'mode= takes "batch", "pair" or "elem"; {shown(mode)} was given')
        if cutmix_minmax is not None:
            cutmix_alpha = 1.0
            if not (len(cutmix_minmax) == 2 and 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1):
                raise ConfigError(
                    f"cutmix_minmax= takes two shares, the smaller first; {shown(cutmix_minmax)} was given"
                )
        if mixup_alpha < 0 or cutmix_alpha < 0 or mixup_alpha + cutmix_alpha == 0:
            raise ConfigError("one of mixup_alpha= and cutmix_alpha= must be above 0, and none below")
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.prob, self.switch_prob = _share("prob", prob), _share("switch_prob", switch_prob)
        self.mode, self.correct_lam = mode, correct_lam

    def _mix(
        self, images: torch.Tensor, shares: torch.Tensor, draws: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, (height, width) = len(images), images.shape[-2:]
        if self.mode == "batch":
            lam, box = self._drawn(draws, height, width)
            others = images.flip(0)
            mixed = blended(images, others, lam) if box is None else pasted(images, others, box)
            return mixed, blended(shares, shares.flip(0), lam)
        each = count if self.mode == "elem" else count // 2
        drawn = [self._drawn(draws, height, width) for _ in range(each)]
        if self.mode == "pair":
            # The image in the middle of an odd batch is its own partner.
            drawn = [*drawn, *[(1.0, None)] * (count % 2), *reversed(drawn)]
        lams = torch.tensor([lam for lam, _ in drawn], device=images.device)
        blends = torch.tensor([lam if box is None else 1.0 for lam, box in drawn], device=images.device)
        others = images.flip(0)
        shape = (-1, *[1] * (images.ndim - 1))
        mixed = blended(images, others, blends.to(images.dtype).reshape(shape))
        for row, (_, box) in enumerate(drawn):
            if box is not None:
                inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
                mixed[row][inside] = others[row][inside]
        return mixed, blended(shares, shares.flip(0), lams[:, None])

    def _drawn(self, draws: random.Random, height: int, width: int) -> tuple[float, Box | None]:
        if draws.random() >= self.prob:
            return 1.0, None
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cuts = draws.random() < self.switch_prob if both else self.cutmix_alpha > 0
        if not cuts:
            return draws.betavariate(self.mixup_alpha, self.mixup_alpha), None
        lam = draws.betavariate(self.cutmix_alpha, self.cutmix_alpha)
        if self.cutmix_minmax is None:
            box = drawn_box(draws, lam, height, width)
        else:
            tall, wide = (
                draws.randint(
                    int(side * self.cutmix_minmax[0]), max(0, int(side * self.cutmix_minmax[1]) - 1)
                )
                for side in (height, width)
            )
            top, left = draws.randint(0, height - tall), draws.randint(0, width - wide)
            box = Box(top, left, top + tall, left + wide)
        if self.correct_lam or self.cutmix_minmax is not None:
            lam = 1.0 - box.share(height, width)
        return lam, box


def blended(ours: torch.Tensor, others: torch.Tensor, lam: float | torch.Tensor) -> torch.Tensor:
    """`lam * ours + (1 - lam) * others`."""
    if isinstance(lam, torch.Tensor):
        return ours * lam + others * (1 - lam)
    return others.mul(1.0 - lam).add_(ours, alpha=lam)


def pasted(ours: torch.Tensor, others: torch.Tensor, box: Box) -> torch.Tensor:
    """Ours with a rectangle of the others."""
    mixed = ours.clone()
    inside = (..., slice(box.top, box.bottom), slice(box.left, box.right))
    mixed[inside] = others[inside]
    return mixed


def drawn_box(draws: random.Random, lam: float, height: int, width: int) -> Box:
    """A rectangle around a random pixel, with (1 - lam) of the area before clipping at the border."""
    x, y = draws.randrange(width), draws.randrange(height)
    half = 0.5 * math.sqrt(1.0 - lam)
    tall, wide = int(half * height), int(half * width)
    return Box(max(y - tall, 0), max(x - wide, 0), min(y + tall, height), min(x + wide, width))


def _key(*numbers: int) -> int:
    text = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"fuelrail-mix").digest(), "big")


def _checked(name: str, value: Any, takes: str, is_right: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_right(value):
        raise ConfigError(f"{name}= takes {takes}; {shown(value)} was given")
    return float(value)


def _share(name: str, value: Any) -> float:
    return _checked(name, value, "a number from 0 to 1", lambda number: 0 <= number <= 1)


def _positive(name: str, value: Any) -> float:
    return _checked(name, value, "a number above 0", lambda number: 0 < number < math.inf)


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    return int(_checked(name, value, "a whole number of classes", lambda n: n >= 1 and n == int(n)))
