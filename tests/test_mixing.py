"""Mixtures, class-balanced and weighted sampling: drawn as told, resumable at any world size, the same every time."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, Mix, Source
from support import GATE, TINY, Loader, indices, row_digests, seeds

SIZE = "&width=8&height=8"


def synthetic(count: int, **options: Any) -> Source:
    """A small synthetic part; a different seed is different data."""
    return Source(f"synthetic://?count={count}{SIZE}", **options)


def three(scale: int = 1) -> Mix:
    parts = {
        "a": synthetic(500 * scale, seed=1),
        "b": synthetic(200 * scale, seed=2),
        "c": synthetic(7, seed=3),
    }
    return Mix(parts, weights={"a": 5, "b": 3, "c": 2}, samples_per_epoch=1000 * scale)


def test_an_epoch_holds_the_parts_in_their_shares_and_every_batch_nearly_so() -> None:
    with Loader(three(), transforms=TINY, batch_size=100, shuffle=True, seed=4) as loader:
        assert (loader.num_samples, len(loader)) == (1000, 10)
        for _ in range(2):
            parts = []
            for batch in loader:
                counts = np.bincount(batch["part"], minlength=3)
                assert np.abs(counts - [50, 30, 20]).max() <= 12, counts
                parts.append(counts)
            assert np.sum(parts, axis=0).tolist() == [500, 300, 200]


def test_no_record_comes_again_before_all_others_of_its_part_also_across_epochs() -> None:
    with Loader(three(), transforms=TINY, batch_size=64, shuffle=True) as loader:
        counts: Counter[int] = Counter()
        for epoch in range(3):
            counts.update(indices(loader))
            for begin, end in ((0, 500), (500, 700), (700, 707)):
                of_part = [counts[index] for index in range(begin, end)]
                assert max(of_part) - min(of_part) <= 1, (epoch, begin)


def test_repeats_are_passes() -> None:
    parts = {"a": synthetic(40, seed=1), "b": synthetic(30, seed=2)}
    with Loader(Mix(parts, repeat={"a": 2.5}), transforms=TINY, batch_size=10, shuffle=True) as loader:
        first, second = Counter(indices(loader)), Counter(indices(loader))
        assert loader.num_samples == 130
    assert all(first[index] == 1 for index in range(40, 70))
    assert {first[index] for index in range(40)} == {2, 3}
    assert {(first + second)[index] for index in range(40)} == {5}, "the half passes complete each other"


def test_a_mixture_without_weights_is_every_record_once() -> None:
    parts = {"x": synthetic(33, seed=1), "y": synthetic(44, seed=2)}
    with Loader(Mix(parts), transforms=TINY, batch_size=8, shuffle=True) as loader:
        assert sorted(indices(loader)) == list(range(77))
        keys = loader.keys(next(iter(loader)))
        assert {key.split("/")[0] for key in keys} <= {"x", "y"}


SAMPLED = {
    "mixture": (three(), {}),
    "balanced": (synthetic(600, classes=7), {"sampling": "class_balanced"}),
    "shares": (
        synthetic(600, classes=2),
        {"sampling": {"class-0": 1, "class-1": 4}, "samples_per_epoch": 500},
    ),
    "weights": (synthetic(600), {"weights": np.linspace(0, 1, 600), "samples_per_epoch": 900}),
    "blocked mixture": (
        Mix({"a": synthetic(500, block_records=50), "b": synthetic(90, block_records=7)}, repeat={"b": 3}),
        {},
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_resume_at_any_place_and_world_size_delivers_the_same_rest(name: str) -> None:
    source, options = SAMPLED[name]
    options = {**options, "transforms": TINY, "seed": 9, "shuffle": True}
    random = seeds()
    with Loader(source, batch_size=32, **options) as loader:
        whole = {(epoch, p): row for epoch in range(2) for p, row in row_digests(loader).items()}
        total = loader.num_samples
    for _ in range(12 if GATE else 4):
        stop, worlds, size = (
            random.randrange(1, 2 * total // 32),
            random.choice([1, 2, 3, 5]),
            random.choice([7, 32, 50]),
        )
        with Loader(source, batch_size=32, **options) as loader:
            taken: dict[tuple[int, int], str] = {}
            batches = ((epoch, batch) for epoch in range(2) for batch in loader)
            for _, (epoch, batch) in zip(range(stop), batches, strict=False):
                taken |= {(epoch, p): row for p, row in row_digests([batch]).items()}
            token = loader.state_dict()
        for rank in range(worlds):
            with Loader(source, batch_size=size, rank=rank, world_size=worlds, **options) as loader:
                loader.load_state_dict(token)
                for epoch in range(loader.epoch, 2):
                    taken |= {(epoch, p): row for p, row in row_digests(loader).items()}
        assert taken == whole, (stop, worlds, size)


def test_classes_are_drawn_in_their_shares() -> None:
    for name, expected in (("balanced", [86] * 7), ("shares", [100, 400])):
        source, options = SAMPLED[name]
        with Loader(source, transforms=TINY, batch_size=50, **options) as loader:
            labels = np.concatenate([batch["label"] for batch in loader])
        assert np.bincount(labels).tolist() == expected


def test_weights_draw_each_record_as_often_as_they_say() -> None:
    weights = np.zeros(50)
    weights[[3, 30, 40]] = 1, 2, 0.5
    with Loader(
        synthetic(50), transforms=TINY, batch_size=10, weights=weights, samples_per_epoch=70
    ) as loader:
        assert Counter(indices(loader)) == {3: 20, 30: 40, 40: 10}


def test_a_token_of_other_weights_is_refused() -> None:
    with Loader(three(), transforms=TINY, batch_size=10) as loader:
        next(iter(loader))
        token = loader.state_dict()
    other = Mix(three()._parts, weights={"a": 1, "b": 1, "c": 1}, samples_per_epoch=1000)
    with (
        Loader(other, transforms=TINY, batch_size=10) as loader,
        pytest.raises(Exception, match="the order differs"),
    ):
        loader.load_state_dict(token)


def test_a_bad_record_is_replaced_by_one_of_its_own_part(tmp_path: Path) -> None:
    parts = {"good": synthetic(100, seed=1), "bad": synthetic(100, seed=2, corrupt_rate=0.3)}
    with Loader(Mix(parts), transforms=TINY, batch_size=20, shuffle=True, error_budget=200) as loader:
        substituted = 0
        for batch in loader:
            flags = batch["substituted"]
            assert (batch["part"][flags] == 1).all()
            assert ((batch["index"] >= 100) == (batch["part"] == 1)).all()
            substituted += int(flags.sum())
    assert 10 < substituted < 60


def test_mistakes_are_named() -> None:
    parts = {"a": synthetic(10), "b": synthetic(10)}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (lambda: Mix(parts, weights={"a": 1}), {}, "no weight for part 'b'"),
        (lambda: Mix(parts, weights={"a": 1, "b": 1, "x": 1}), {}, r"weights\['x'\]"),
        (lambda: Mix(parts, weights={"a": 1, "b": 1}, repeat={"a": 2}), {}, "exclude each other"),
        (lambda: Mix(parts, weights={"a": 1, "b": -1}), {}, r"weights\['b'\] is -1"),
        (lambda: parts["a"], {"sampling": "balanced"}, "class_balanced"),
        (lambda: synthetic(50, classes=2), {"sampling": {"class-0": 1}}, "no share for class"),
        (lambda: parts["a"], {"weights": [1.0] * 9}, "one number for each of 10 records"),
        (
            lambda: parts["a"],
            {"samples_per_epoch": 3},
            "goes with sampling=, weights=, repeats= or per_class=",
        ),
        (lambda: parts["a"], {"label": "x"}, r"give it to Source\(...\)"),
        (lambda: Mix(parts, repeat={"a": 3}), {"sampling": "class_balanced"}, "leave one of them out"),
    ]
    for make, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            Loader(make(), transforms=TINY, **options)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Mix(["a", "b"]), "have names"),
        (lambda: Mix({"a": Mix({"b": "x"})}), "part 'a' is a mixture"),
        (lambda: Mix({"a": ("x", 3)}), "not int"),
        (lambda: Mix({"a": "x"}, weights={"a": math.nan}), "weights\\['a'\\] is nan"),
        (lambda: Mix({"a": "x"}, repeat={"a": "often"}), "'often'; a number"),
        (lambda: Source([3]), "not int"),
        (lambda: Source([b"x"]), "not bytes"),
        (
            lambda: Loader("synthetic://?count=3", transforms=TINY, weights=["a", "b", "c"]),
            "one number per record",
        ),
        (lambda: Loader("synthetic://?count=3", transforms=TINY, sampling={"a": math.inf}), "finite"),
        (lambda: Loader("", transforms=TINY), "empty"),
    ],
)
def test_what_is_no_source_and_no_number_is_named(make: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make()
