"""The order from outside, repeated augmentation, and so many records of each class in a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuelrail import ConfigError, Mix, Source, TokenError
from support import AUGMENT, TINY, Loader, indices, row_digests, seeds

SMALL = "&width=16&height=16"


def source(count: int = 60, **options: Any) -> Source:
    return Source(f"synthetic://?count={count}{SMALL}", **options)


def given(order: Any, count: int = 60, **options: Any) -> Any:
    return Loader(source(count), order=order, transforms=TINY, **{"batch_size": 8, **options})


# An order from outside ------------------------------------------------------------------------------------------------


def test_an_order_is_followed_however_it_is_given(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).permutation(60)[:45]
    np.save(tmp_path / "order.npy", numbers)
    np.save(tmp_path / "turned.npy", np.asfortranarray(np.stack([numbers, numbers[::-1]])))
    for order in (
        numbers,
        numbers.tolist(),
        tuple(numbers.tolist()),
        list(numbers),
        numbers.astype(np.uint8),
        numbers.astype(">i4"),
        torch.from_numpy(numbers),
        (int(number) for number in numbers),
        tmp_path / "order.npy",
        str(tmp_path / "order.npy"),
        [numbers, numbers[::-1]],
        tmp_path / "turned.npy",
    ):
        with given(order) as loader:
            assert indices(loader) == numbers.tolist()
            assert (loader.num_samples, len(loader)) == (45, 6)


def test_one_row_is_for_every_epoch_and_several_are_one_for_each() -> None:
    rows = [[5, 4, 3], [7, 7, 1], [0, 59, 2]]
    with given(rows[0], batch_size=2) as loader:
        assert [indices(loader) for _ in range(3)] == [rows[0]] * 3
    with given(rows, batch_size=2) as loader:
        assert [indices(loader) for _ in range(3)] == rows
        with pytest.raises(ConfigError, match="order has the records of 3 epochs, and this would be epoch 3"):
            next(iter(loader))
        loader.set_epoch(1)
        assert indices(loader) == rows[1], "it goes on with an epoch that there is"


def test_a_record_that_comes_again_is_augmented_anew() -> None:
    with Loader(source(), order=[3] * 12 + [4], transforms=AUGMENT, batch_size=13) as loader:
        (batch,) = list(loader)
    pixels = {batch["image"][row].tobytes() for row in range(12)}
    assert len(pixels) == 12 and batch["index"].tolist() == [3] * 12 + [4]


def test_ranks_share_an_order_and_drop_last_cuts_it() -> None:
    numbers = [*range(50), 0, 1, 2]
    ranks = []
    for rank in range(2):
        with given(numbers, batch_size=4, rank=rank, world_size=2, drop_last=True) as loader:
            assert len(loader) == 6
            ranks.append(indices(loader))
    merged = [number for pair in zip(*ranks, strict=True) for number in pair]
    assert merged == numbers[:48]


def test_the_numbers_of_a_part_count_its_own_records(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,score\n" + "".join(f"{at},{at / 10}\n" for at in range(10)))
    table: dict[str, Any] = {"fields": ["id"], "label": None, "batch_size": 10}
    with Loader(path, where="score > 0.45", order=[4, 0, 0], **table) as loader:
        assert next(iter(loader))["id"].tolist() == [9, 5, 5]
    with pytest.raises(ConfigError, match=r"\[1\] is 5; the source has the records 0 to 4"):
        Loader(path, where="score > 0.45", order=[4, 5], **table)


def test_a_token_of_another_order_is_refused_and_says_so() -> None:
    with given([1, 2, 3, 4], batch_size=2) as loader:
        next(iter(loader))
        token = loader.state_dict()
    with given(np.array([1, 2, 3, 4], np.int16), batch_size=2) as loader:
        loader.load_state_dict(token)
        assert indices(loader) == [3, 4]
    for other in ([1, 2, 4, 3], [1, 2, 3], [[1, 2, 3, 4]], None):
        with given(other, batch_size=2) as loader, pytest.raises(TokenError, match="order differs"):
            loader.load_state_dict(token)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([1, 2, 60], r"order= the number at \[2\] is 60; the source has the records 0 to 59"),
        ([[1, 2], [60, 1]], r"\[1, 0\] is 60"),
        ([1, -1, 2], r"order\[1\] is -1; records are numbered from 0 on"),
        (np.array([[1, 2], [3, -7]]), r"\[1, 1\] is -7"),
        ([[1, 2], [3]], r"order\[1\] has 1 records and order\[0\] has 2"),
        ([1.0, 2.0], r"order\[0\] is 1.0; record numbers are whole numbers"),
        (np.array([1.0, 2.0]), r"an array of float64 was given; convert it with .astype"),
        (torch.tensor([1.0]), "an array of float32 was given"),
        (np.array([True, False]), "numpy.flatnonzero"),
        ([True, False], r"order\[0\] is True"),
        ([], "order= is empty"),
        ([[], []], "order= is empty"),
        (np.zeros((2, 0), int), "order= is empty"),
        (np.zeros((1, 1, 1), int), r"shape \(1, 1, 1\)"),
        (np.int64(3), r"shape \(\)|was given"),
        (7, "7 was given"),
        ("order.npz", "there is no such file"),
        ({1, 2}, "it has no order"),
        ({0: 1}, "was given"),
        (b"\x01\x02", "was given"),
        ([1, "2"], r"order\[1\] is '2'"),
        ([1, None], r"order\[1\] is None"),
        ([1, [2]], r"order\[0\] is 1, and other items are rows"),
        ([1 << 70], "is 1180591620717411303424"),
        (np.array(["a"]), "an array of <U1"),
        (lambda epoch: [epoch], "not a function: call it for each epoch"),
        (np.array([1, 1 << 63], np.uint64), r"\[1\] is 9223372036854775808"),
    ],
)
def test_what_is_no_order_is_named_with_its_place(order: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        given(order)
    assert "order" in str(refused.value) and "sampling" not in str(refused.value)


def test_what_does_not_go_with_an_order_is_named(tmp_path: Path) -> None:
    for options, said in (
        ({"shuffle": True}, "order= and shuffle=True exclude each other"),
        ({"weights": [1.0] * 60}, "weights= and order= exclude each other"),
        ({"sampling": "class_balanced"}, "sampling= and order= exclude each other"),
        ({"repeats": 2}, "repeats= and order= exclude each other"),
        ({"per_class": 2}, "per_class= and order= exclude each other"),
        ({"samples_per_epoch": 3}, "the length of an epoch is that of order="),
        ({"drop_last": True, "batch_size": 9}, "drop_last leaves no batch"),
    ):
        with pytest.raises(ConfigError, match=said):
            given([1, 2, 3], **options)
    (tmp_path / "text.npy").write_text("1, 2, 3")
    with pytest.raises(ConfigError, match=r"order=: .*/text.npy: "):
        given(tmp_path / "text.npy")
    mix = Mix({"a": source(10), "b": source(20)}, weights={"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="leave one of them out"):
        Loader(mix, order=[1], transforms=TINY)
    with Loader(
        Mix({"a": source(10), "b": source(20)}), order=[29, 0], transforms=TINY, batch_size=2
    ) as loader:
        assert indices(loader) == [29, 0]


def test_a_bad_record_is_replaced_by_one_of_the_order() -> None:
    bad = Source(f"synthetic://?count=200{SMALL}&corrupt_rate=0.3")
    wanted = list(range(0, 200, 2))
    with Loader(bad, order=wanted, transforms=TINY, batch_size=20, error_budget=200) as loader:
        batches = list(loader)
        found = indices(batches)
        assert sum(int(batch["substituted"].sum()) for batch in batches) > 5
    assert set(found) <= set(wanted) and len(found) == len(wanted)


# Every way to make an order, resumed anywhere -------------------------------------------------------------------------

ORDERS: dict[str, dict[str, Any]] = {
    "given": {"order": np.random.default_rng(3).integers(0, 60, 150)},
    "given for each epoch": {"order": np.random.default_rng(4).integers(0, 60, (2, 150))},
    "repeats": {"repeats": 3, "shuffle": True},
    "repeats, shortened": {"repeats": 4, "samples_per_epoch": 60, "shuffle": True},
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_resume_at_any_place_and_world_size_delivers_the_same_rest(name: str) -> None:
    options = {"transforms": AUGMENT, "seed": 9, **ORDERS[name]}
    random = seeds()
    with Loader(source(), batch_size=16, **options) as loader:
        whole = {(epoch, p): row for epoch in range(2) for p, row in row_digests(loader).items()}
        steps = 2 * len(loader)
    for _ in range(3):
        stop, worlds, size = random.randrange(1, steps), random.choice([1, 2, 3]), random.choice([5, 16])
        taken: dict[tuple[int, int], str] = {}
        with Loader(source(), batch_size=16, **options) as loader:
            batches = ((epoch, batch) for epoch in range(2) for batch in loader)
            for _, (epoch, batch) in zip(range(stop), batches, strict=False):
                taken |= {(epoch, p): row for p, row in row_digests([batch]).items()}
            token = loader.state_dict()
        for rank in range(worlds):
            with Loader(source(), batch_size=size, rank=rank, world_size=worlds, **options) as loader:
                loader.load_state_dict(token)
                for epoch in range(loader.epoch, 2):
                    taken |= {(epoch, p): row for p, row in row_digests(loader).items()}
        assert taken == whole, (stop, worlds, size)


# Repeated augmentation ------------------------------------------------------------------------------------------------


def test_repeats_are_neighbours_with_their_own_augmentation_spread_over_ranks() -> None:
    options: dict[str, Any] = {"repeats": 3, "shuffle": True, "transforms": AUGMENT, "seed": 2}
    with Loader(source(), batch_size=18, **options) as loader:
        assert loader.num_samples == 180
        batches = list(loader)
    found = indices(batches)
    assert found[::3] == found[1::3] == found[2::3] and sorted(found[::3]) == list(range(60))
    first = batches[0]["image"]
    assert len({first[row].tobytes() for row in range(18)}) == 18
    with Loader(source(), batch_size=18, shuffle=True, transforms=TINY, seed=2) as loader:
        assert indices(loader) == found[::3], "the order is that of shuffle alone"
    ranks = []
    for rank in range(3):
        with Loader(source(), batch_size=6, rank=rank, world_size=3, **options) as loader:
            ranks.append(indices(loader))
    assert ranks[0] == ranks[1] == ranks[2], "each rank has one view of each record"


def test_an_epoch_can_be_as_long_as_timms_sampler_has_it() -> None:
    with Loader(
        source(), repeats=3, samples_per_epoch=48, shuffle=True, transforms=TINY, batch_size=12
    ) as loader:
        counts = Counter(indices(loader))
        assert len(counts) == 16 and set(counts.values()) == {3}
        assert Counter(indices(loader)) != counts, "another part of the records in the next epoch"


def test_what_repeats_cannot_be_is_named() -> None:
    for options, said in (
        ({"repeats": 0}, "repeats= takes a whole number from 1"),
        ({"repeats": 2.5}, "repeats= takes a whole number"),
        (
            {"repeats": 3, "samples_per_epoch": 181},
            "samples_per_epoch= is 181, which is not between 1 and 180",
        ),
        ({"repeats": 3, "weights": [1.0] * 60}, "weights= and repeats= exclude each other"),
    ):
        with pytest.raises(ConfigError, match=said):
            Loader(source(), transforms=TINY, **options)
    with Loader(source(), repeats=3, transforms=TINY) as loader:
        token = loader.state_dict()
    with (
        Loader(source(), repeats=2, transforms=TINY) as loader,
        pytest.raises(TokenError, match="repeats differs"),
    ):
        loader.load_state_dict(token)


# So many of each class ------------------------------------------------------------------------------------------------


def per_class(**options: Any) -> Any:
    return Loader(
        source(200, classes=12), transforms=AUGMENT, seed=6, **{"per_class": 4, "batch_size": 16, **options}
    )


def test_every_batch_has_different_classes_with_so_many_records_of_each() -> None:
    with per_class() as loader:
        assert (loader.num_samples, len(loader)) == (192, 12)
        seen: Counter[int] = Counter()
        for _ in range(3):
            for batch in loader:
                assert sorted(Counter(batch["label"].tolist()).values()) == [4] * 4
                assert len(set(batch["index"].tolist())) == 16, "of one record once"
                seen.update(batch["index"].tolist())
    assert len(seen) > 190 and max(seen.values()) <= 7


def test_every_rank_has_whole_classes_and_any_number_of_ranks_resumes() -> None:
    with per_class() as loader:
        whole = {(epoch, p): row for epoch in range(2) for p, row in row_digests(loader).items()}
    taken: dict[tuple[int, int], str] = {}
    for rank in range(2):
        with per_class(rank=rank, world_size=2) as loader:
            assert len(loader) == 6
            for _, batch in zip(range(3), loader, strict=False):
                assert sorted(Counter(batch["label"].tolist()).values()) == [4] * 4
                taken |= {(0, p): row for p, row in row_digests([batch]).items()}
            token = loader.state_dict()
    for rank in range(3):
        with per_class(rank=rank, world_size=3) as loader:
            loader.load_state_dict(token)
            for epoch in range(loader.epoch, 2):
                taken |= {(epoch, p): row for p, row in row_digests(loader).items()}
    assert taken == whole


def test_what_does_not_go_per_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id\n" + "".join(f"{at}\n" for at in range(10)))
    for options, said in (
        ({"per_class": 3}, "per_class= is 3, which does not divide the batch_size of 16"),
        ({"per_class": 1}, "needs 16 classes in each batch, and the source has 12"),
        ({"per_class": 0}, "per_class= takes a whole number from 1"),
        ({"world_size": 50, "rank": 0}, "per_class= has whole batches only, and leaves no batch"),
        ({"sampling": "class_balanced"}, "sampling= and per_class= exclude each other"),
    ):
        with pytest.raises(ConfigError, match=said):
            per_class(**options)
    with pytest.raises(ConfigError, match="needs labels"):
        Loader(tmp_path / "rows.csv", fields=["id"], label=None, per_class=2, batch_size=4)
    with per_class() as loader:
        token = loader.state_dict()
    with per_class(batch_size=8) as loader, pytest.raises(TokenError, match="per_class differs"):
        loader.load_state_dict(token)


# Folds ----------------------------------------------------------------------------------------------------------------


def test_folds_are_disjoint_and_cover_and_their_complements_are_the_rest() -> None:
    def keys(split: str | None) -> set[str]:
        with Loader(source(300, split=split), transforms=TINY, batch_size=50) as loader:
            return {key for batch in loader for key in loader.keys(batch)}

    folds = [keys(f"fold {fold}/5") for fold in range(1, 6)]
    whole = keys(None)
    assert set.union(*folds) == whole and sum(map(len, folds)) == 300
    for fold, held in enumerate(folds, 1):
        assert keys(f"not fold {fold}/5") == whole - held
    assert keys("train[80%:]") == folds[0], "the same hash as that of the other splits"


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("fold 0/5", "folds are counted from 1"),
        ("fold 6/5", "folds are counted from 1"),
        ("fold 1/1", "2 to 1000 folds"),
        ("fold 2 of 5", "with a bar between"),
        ("kfold 2/5", "not understood"),
        ("fold 1.5/5", "not understood"),
        ("val fold 2/5", 'no part "val"'),
    ],
)
def test_a_fold_that_is_not_understood_is_refused_with_an_example(split: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Loader(source(split=split), transforms=TINY)
    assert '"fold 2/5"' in str(refused.value)
