"""MixUp and CutMix of delivered batches, beside torchvision's and timm's on the same draws."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from fuelrail import ConfigError
from support import T

torch = pytest.importorskip("torch")
v2 = pytest.importorskip("torchvision.transforms.v2")
timm = pytest.importorskip("timm.data.mixup")

from fuelrail.torch import CutMix, Loader, MixUp, Mixup, mixing  # noqa: E402

COUNT, CLASSES = 6, 5


def batch(dtype: Any = torch.float32, count: int = COUNT) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, 10, 12, generator=generator).to(dtype)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def loader(images: Path, **options: Any) -> Loader:
    return Loader(
        images,
        transforms=[T.RandomResizedCrop(16), T.Normalize(*T.IMAGENET)],
        batch_size=7,
        shuffle=True,
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mixup_is_torchvisions_with_its_draws(dtype: Any) -> None:
    images, labels = batch(dtype)
    mixed, shares = MixUp(alpha=0.4, num_classes=CLASSES, seed=2).mixed(images, labels, epoch=1, position=64)
    draws = random.Random(mixing._key(2, 1, 64))
    draws.random()
    lam = draws.betavariate(0.4, 0.4)
    theirs = v2.MixUp(num_classes=CLASSES)
    params = {"labels": labels, "batch_size": COUNT, "lam": lam}
    assert mixed.dtype == dtype and shares.dtype == torch.float32 and shares.shape == (COUNT, CLASSES)
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert (mixed - theirs.transform(images, params)).abs().max() <= tolerance
    assert torch.allclose(shares, theirs.transform(labels, params))
    assert torch.allclose(shares.sum(1), torch.ones(COUNT))


def test_cutmix_is_torchvisions_with_its_draws() -> None:
    images, labels = batch()
    for position in range(40):
        mixed, shares = CutMix(num_classes=CLASSES, seed=2).mixed(images, labels, epoch=0, position=position)
        draws = random.Random(mixing._key(2, 0, position))
        draws.random()
        lam = draws.betavariate(1.0, 1.0)
        box = mixing.drawn_box(draws, lam, 10, 12)
        theirs = v2.CutMix(num_classes=CLASSES)
        params = {
            "labels": labels,
            "batch_size": COUNT,
            "box": (box.left, box.top, box.right, box.bottom),
            "lam_adjusted": 1 - box.share(10, 12),
        }
        assert torch.equal(mixed, theirs.transform(images, params))
        assert torch.allclose(shares, theirs.transform(labels, params))


def test_boxes_are_torchvisions_rule() -> None:
    """Around a pixel, of (1 - lam) of the area, cut at the border: on the same draws of lam and of the pixel."""
    seen = set()
    for seed in range(200):
        draws, again = random.Random(seed), random.Random(seed)
        box = mixing.drawn_box(draws, seed / 200, 10, 12)
        x, y = again.randrange(12), again.randrange(10)
        half = 0.5 * (1 - seed / 200) ** 0.5
        tall, wide = int(half * 10), int(half * 12)
        assert box == (max(y - tall, 0), max(x - wide, 0), min(y + tall, 10), min(x + wide, 12))
        seen.add(box)
    assert len(seen) > 50


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)], ids=["mixup", "cutmix", "both"])
def test_mixup_of_timm_is_timms_with_its_draws(
    mode: str, alphas: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Mixup(*alphas, prob=0.8, mode=mode, num_classes=CLASSES, label_smoothing=0.1, seed=4)
    theirs = timm.Mixup(*alphas, prob=0.8, mode=mode, num_classes=CLASSES, label_smoothing=0.1)
    images, labels = batch()
    for position in range(30):
        drawn: list[Any] = []
        draw = ours._drawn
        monkeypatch.setattr(
            ours, "_drawn", lambda *given, draw=draw, drawn=drawn: drawn.append(draw(*given)) or drawn[-1]
        )
        mixed, shares = ours.mixed(images, labels, epoch=0, position=position)
        monkeypatch.undo()
        replay(monkeypatch, theirs, drawn, mode)
        expected, targets = theirs(images.clone(), labels.clone())
        monkeypatch.undo()
        assert (mixed - expected).abs().max() <= 1e-6, (mode, alphas, position)
        assert (shares - targets).abs().max() <= 1e-6


def replay(patch: pytest.MonkeyPatch, theirs: Any, drawn: list[Any], mode: str) -> None:
    """Lets timm draw what we drew."""
    import numpy as np

    # It asks for none where nothing is left to mix.
    boxes = iter([box for lam, box in drawn if box is not None and lam != 1])

    def box(shape: Any, lam: Any, **_: Any) -> Any:
        top, left, bottom, right = next(boxes)
        return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (shape[-1] * shape[-2])

    patch.setattr(timm, "cutmix_bbox_and_lam", box)
    if mode == "batch":
        ((lam, of),) = drawn
        patch.setattr(theirs, "_params_per_batch", lambda: (lam, of is not None))
    else:
        lams = np.array([lam for lam, _ in drawn], np.float32)
        cuts = np.array([of is not None for _, of in drawn])
        patch.setattr(theirs, "_params_per_elem", lambda count: (lams[:count], cuts[:count]))


def test_what_is_drawn_depends_on_seed_epoch_and_position_alone() -> None:
    images, labels = batch()
    mix = CutMix(num_classes=CLASSES, seed=9)
    first = mix.mixed(images, labels, epoch=3, position=128)
    mix.mixed(images, labels, epoch=0, position=0)
    again = CutMix(num_classes=CLASSES, seed=9).mixed(images, labels, epoch=3, position=128)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for other in [{"epoch": 4, "position": 128}, {"epoch": 3, "position": 192}]:
        assert not torch.equal(first[1], mix.mixed(images, labels, **other)[1])
    assert not torch.equal(
        first[1], CutMix(num_classes=CLASSES, seed=8).mixed(images, labels, epoch=3, position=128)[1]
    )


def test_a_run_that_goes_on_mixes_as_the_one_that_was_stopped(images: Path) -> None:
    mix = MixUp(alpha=0.3, num_classes=3, seed=1)
    with loader(images) as whole:
        expected = [tuple(mix(each)) for _ in range(2) for each in whole]
    with loader(images) as one:
        batches = iter(one)
        for _ in range(4):
            next(batches)
        state = one.state_dict()
    with loader(images) as other:
        other.load_state_dict(state)
        rest = [tuple(mix(each)) for _ in range(2) for each in other]
    assert len(rest) == len(expected) - 4
    for (image, label), (found, share) in zip(expected[4:], rest, strict=True):
        assert torch.equal(image, found) and torch.equal(label, share)


def test_the_batch_that_was_given_stays_as_it_is(images: Path) -> None:
    with loader(images) as one:
        given = next(iter(one))
        before = given["image"].clone()
        mixed = CutMix(num_classes=3)(given)
        assert torch.equal(given["image"], before) and given["label"].dtype == torch.int64
        assert (mixed.epoch, mixed.position, mixed.rows) == (given.epoch, given.position, given.rows)
        assert mixed["label"].shape == (7, 3) and torch.equal(mixed["index"], given["index"])
        image, label = mixed
        assert image is mixed["image"] and label is mixed["label"]


def test_p_leaves_batches_alone_and_labels_are_shares_all_the_same() -> None:
    images, labels = batch()
    mix = MixUp(num_classes=CLASSES, p=0.5)
    left = sum(torch.equal(mix.mixed(images, labels, epoch=0, position=at)[0], images) for at in range(200))
    assert 60 < left < 140
    same, shares = MixUp(num_classes=CLASSES, p=0).mixed(images, labels, epoch=0, position=0)
    assert torch.equal(same, images) and torch.equal(
        shares, torch.nn.functional.one_hot(labels, CLASSES).float()
    )


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(
    "mix",
    [
        MixUp(num_classes=5),
        CutMix(num_classes=5),
        Mixup(1, 1, num_classes=5, mode="pair"),
        Mixup(1, 1, num_classes=5, mode="elem"),
    ],
    ids=repr,
)
def test_batches_of_any_length_are_mixed(mix: Any, count: int) -> None:
    images, labels = batch(count=count)
    mixed, shares = mix.mixed(images, labels, epoch=0, position=0)
    assert mixed.shape == images.shape and shares.shape == (count, 5) and not mixed.isnan().any()


def test_soft_labels_are_mixed_too() -> None:
    images, labels = batch()
    soft = torch.nn.functional.one_hot(labels, CLASSES).float()
    hard = MixUp(num_classes=CLASSES, seed=1).mixed(images, labels, epoch=0, position=0)
    assert all(map(torch.equal, hard, MixUp(seed=1).mixed(images, soft, epoch=0, position=0)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: MixUp(alpha=0), "alpha= takes a number above 0"),
        (lambda: MixUp(alpha="1"), "alpha="),
        (lambda: CutMix(p=2), "p= takes a number from 0 to 1"),
        (lambda: CutMix(num_classes=0), "num_classes="),
        (lambda: Mixup(0, 0), "above 0"),
        (lambda: Mixup(mode="each"), '"batch", "pair" or "elem"'),
        (lambda: Mixup(cutmix_minmax=(0.9, 0.1)), "cutmix_minmax="),
        (lambda: MixUp().mixed(*batch(), epoch=0, position=0), "num_classes=len"),
        (lambda: MixUp().mixed(batch()[0].byte(), batch()[1], epoch=0, position=0), "uint8.*Normalize"),
        (lambda: MixUp().mixed(batch()[0], batch()[0], epoch=0, position=0), "labels are class numbers"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()


def test_tensors_alone_are_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"takes a batch of a Loader.*mixed\(images, labels"):
        MixUp(num_classes=2)(batch())
