"""Data-parallel ranks: together they see what one rank would, each sample once, and all the same number of batches."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError
from support import AUGMENT, GATE, TINY, Loader, digests, indices, row_digests

SAMPLES = 100_003 if GATE else 2_003
SOURCE = f"synthetic://?count={SAMPLES}&width=8&height=8"


def ranks(source: object, world: int, **options: Any) -> list[Any]:
    """A loader per rank."""
    return [Loader(source, rank=rank, world_size=world, **options) for rank in range(world)]


def close(loaders: list[Any]) -> None:
    for loader in loaders:
        loader.close()


def interleave(parts: list[np.ndarray]) -> np.ndarray:
    """Row j of a global batch is row j // W of rank j mod W."""
    total = sum(len(part) for part in parts)
    return np.stack([parts[row % len(parts)][row // len(parts)] for row in range(total)])


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_four_ranks_together_are_the_global_batches_of_one(
    images: Path, batch_size: int, drop_last: bool
) -> None:
    options = {"transforms": AUGMENT, "shuffle": True, "seed": 3, "drop_last": drop_last}
    four = ranks(images, 4, batch_size=batch_size, **options)
    with Loader(images, batch_size=4 * batch_size, **options) as one:
        assert {len(loader) for loader in four} == {len(one)}
        for _ in range(2):
            fields = ("image", "label", "index", "position", "substituted")
            expected: dict[str, list[np.ndarray]] = {field: [] for field in fields}
            found: dict[str, list[np.ndarray]] = {field: [] for field in fields}
            batches = 0
            for whole, *parts in zip(one, *four, strict=True):
                counts = [part.rows for part in parts]
                assert max(counts) - min(counts) <= 1
                # Ranks first in line get the odd rows of a tail.
                assert counts == sorted(counts, reverse=True)
                for field in fields:
                    expected[field].append(whole[field])
                    found[field].append(interleave([part[field] for part in parts]))
                batches += 1
                # The last step is 61 mod 4 samples short of one for each rank, which the one before it gives.
                is_shared = batch_size > 1 and not drop_last and batches >= len(one) - 1
                assert sum(counts) == whole.rows or is_shared
                assert counts[-1] > 0 or batch_size == 1
                assert len({part.position for part in parts}) == 1
            for field in fields:
                assert np.array_equal(np.concatenate(found[field]), np.concatenate(expected[field])), field
            assert (
                batches == len(one) == (61 // (4 * batch_size) if drop_last else -(-61 // (4 * batch_size)))
            )
    close(four)


def test_a_rank_without_rows_in_the_tail_still_gets_an_empty_batch() -> None:
    # 5 samples, 4 ranks, a row each: the tail has one row, for rank 0.
    loaders = ranks("synthetic://?count=5", 4, batch_size=1, transforms=TINY)
    for rank, loader in enumerate(loaders):
        batches = list(loader)
        assert [batch.rows for batch in batches] == [1, 1 if rank == 0 else 0]
        assert batches[1]["image"].shape == (batches[1].rows, 3, 8, 8)
        assert batches[1]["label"].shape == (batches[1].rows,)
        # And the next epoch comes as usual.
        assert [batch.rows for batch in loader] == [1, 1 if rank == 0 else 0]
    close(loaders)


def test_more_ranks_than_samples_share_what_there_is() -> None:
    loaders = ranks("synthetic://?count=3", 5, batch_size=2, transforms=TINY)
    rows = [[batch.rows for batch in loader] for loader in loaders]
    assert rows == [[1], [1], [1], [0], [0]]
    close(loaders)


def test_a_torch_rank_without_rows_gets_empty_tensors() -> None:
    torch = pytest.importorskip("torch")
    from fuelrail.torch import Loader as TorchLoader

    with TorchLoader("synthetic://?count=5", rank=3, world_size=4, batch_size=1, transforms=TINY) as loader:
        images, labels = list(loader)[-1]
        assert images.shape == (0, 3, 8, 8) and labels.shape == (0,) and labels.dtype == torch.int64


@pytest.mark.deadline(240)
@pytest.mark.parametrize("world", [1, 2, 4] if not GATE else [1, 2, 3, 4, 6, 8, 12])
def test_every_sample_comes_exactly_once_per_epoch_over_all_ranks(world: int) -> None:
    loaders = ranks(SOURCE, world, batch_size=64, shuffle=True, transforms=TINY, num_workers=1)
    for _ in range(3):
        seen: Counter[int] = Counter()
        rows = []
        for loader in loaders:
            before = seen.total()
            for batch in loader:
                seen.update(batch["index"].tolist())
            rows.append(seen.total() - before)
        assert len(seen) == seen.total() == SAMPLES
        assert max(rows) - min(rows) <= 1
    close(loaders)


@pytest.mark.parametrize("world", [1, 4])
def test_drop_last_leaves_out_less_than_a_global_batch(world: int) -> None:
    loaders = ranks(
        SOURCE, world, batch_size=16, drop_last=True, shuffle=True, transforms=TINY, num_workers=1
    )
    batches = [list(loader) for loader in loaders]
    assert {batch.rows for rank in batches for batch in rank} == {16}
    seen = [index for rank in batches for index in indices(rank)]
    assert len(set(seen)) == len(seen) == SAMPLES // (16 * world) * 16 * world
    close(loaders)


def test_world_and_batch_size_may_change_at_every_resume(images: Path, rng: random.Random) -> None:
    options = {"transforms": AUGMENT, "shuffle": True, "seed": 11}
    with Loader(images, batch_size=16, **options) as loader:
        expected = row_digests(loader)
    for _ in range(50 if GATE else 6):
        token, seen, plan = None, {}, []
        while True:
            world = rng.choice([1, 2, 3, 4, 6, 8, 12])
            batch_size = rng.randint(1, 9)
            # The last stretch goes to the end.
            steps = rng.randint(0, 3) if len(plan) < 12 else 1_000
            plan.append((world, batch_size, steps))
            loaders = ranks(images, world, batch_size=batch_size, num_workers=1, **options)
            if token is not None:
                for loader in loaders:
                    loader.load_state_dict(token)
            iterators = [iter(loader) for loader in loaders]
            ended = False
            for _ in range(steps):
                batches = [next(iterator, None) for iterator in iterators]
                ended = batches[0] is None
                if ended:
                    assert batches == [None] * world
                    break
                rows = row_digests(batches)
                assert not seen.keys() & rows.keys(), f"delivered twice: {plan}"
                seen |= rows
                token = loaders[0].state_dict()
                assert all(loader.state_dict() == token for loader in loaders), "the same on every rank"
            close(loaders)
            if ended:
                break
        assert seen == expected, plan


@pytest.mark.parametrize(("rank", "world"), [(4, 4), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match="world_size"):
        Loader(SOURCE, rank=rank, world_size=world, transforms=TINY)


def test_negative_ranks_and_sizes_are_refused_by_name() -> None:
    for wrong in (
        {"rank": -1},
        {"world_size": -1},
        {"batch_size": -1},
        {"batch_size": 0},
        {"batch_size": 2.5},
    ):
        with pytest.raises((ConfigError, TypeError, ValueError, OverflowError), match=next(iter(wrong))):
            Loader(SOURCE, transforms=TINY, **wrong)


def test_drop_last_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop_last"):
        Loader("synthetic://?count=9", batch_size=10, drop_last=True, transforms=TINY)


def test_ranks_that_read_at_different_speeds_agree(images: Path, rng: random.Random) -> None:
    options = {"transforms": AUGMENT, "shuffle": True, "batch_size": 4}
    with Loader(images, **options | {"batch_size": 8}) as one:
        whole = [row_digests([batch]) for batch in one]
    fast, slow = ranks(images, 2, **options)
    parts = [row_digests([batch]) for batch in fast]
    assert digests(fast), "a rank may be an epoch ahead"
    for at, batch in enumerate(slow):
        assert parts[at] | row_digests([batch]) == whole[at]
    close([fast, slow])
