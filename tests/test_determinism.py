"""Same seed, same bytes: whatever the number of threads, the queues, the delays, the way of reading, or a resume."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import AUGMENT, GATE, Loader, T, digest, digests, indices

EPOCHS = 2
BATCH = 7
OPTIONS = {
    "transforms": AUGMENT,
    "batch_size": BATCH,
    "shuffle": True,
    "seed": 5,
    "max_sample_bytes": 16 << 20,
}

SETTINGS = {
    "8 threads": {"num_workers": 8},
    "3 threads": {"num_workers": 3},
    "io_uring": {"num_workers": 8, "read_backend": "io_uring"},
    "threads that read": {"num_workers": 8, "read_backend": "threads"},
    "one batch ahead": {"num_workers": 8, "prefetch_factor": 1},
    "four batches ahead": {"num_workers": 3, "prefetch_factor": 4},
    "one file in flight": {"num_workers": 8, "read_ahead_bytes": 1},
    "few bytes in flight": {"num_workers": 3, "prefetch_factor": 4, "read_ahead_bytes": 40_000},
}

SYNTHETIC = "synthetic://?count=180&width=70&height=50&width_max=160&format=jpeg"

DELAYS = {
    "stragglers": "&straggler_every=9&straggler_ms=40",
    "slow reads": "&delay_us=2000",
    "slow reads and stragglers": "&delay_us=300&straggler_every=20&straggler_ms=100",
    "reads that fail at first": "&flaky_rate=0.2",
}


def run(source: object, **changes: Any) -> list[list[str]]:
    """Digests of all batches of two epochs."""
    with Loader(source, **(OPTIONS | changes)) as loader:
        return [digests(loader) for _ in range(EPOCHS)]


@pytest.fixture(scope="module")
def alone(images: Path) -> list[list[str]]:
    """One thread, files read one after another: what everything else is compared with."""
    return run(images, num_workers=1, read_backend="threads", prefetch_factor=1, read_ahead_bytes=1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_batches_are_bit_identical_with(setting: str, images: Path, alone: list[list[str]]) -> None:
    assert run(images, **SETTINGS[setting]) == alone


def test_both_read_backends_are_what_they_say(images: Path) -> None:
    used = {}
    for backend in ("io_uring", "threads"):
        with Loader(images, transforms=AUGMENT, batch_size=9, read_backend=backend) as loader:
            assert sum(batch.rows for batch in loader) == 61
            used[backend] = loader.stats()["read"]["backend"]
    assert used["threads"] == "threads"
    # Containers often forbid io_uring; the fallback is said in the log and in the figures.
    assert used["io_uring"] in ("io_uring", "threads")


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("threads", [1, 8])
def test_injected_delays_change_no_byte(delays: str, threads: int) -> None:
    assert run(SYNTHETIC + DELAYS[delays], num_workers=threads, prefetch_factor=3) == run(
        SYNTHETIC, num_workers=1
    )


def test_a_slow_record_does_not_hold_up_the_work_on_later_batches() -> None:
    source = "synthetic://?count=400&straggler_every=40&straggler_ms=300"
    with Loader(source, transforms=[T.Resize((8, 8))], batch_size=4, prefetch_factor=16) as loader:
        positions = [position for batch in loader for position in batch["position"].tolist()]
    assert positions == list(range(400)), "and yet they come in order"


def test_another_run_of_the_same_process_and_another_framework_give_the_same(
    images: Path, alone: list[list[str]]
) -> None:
    pytest.importorskip("torch")
    from fuelrail.torch import Loader as TorchLoader

    assert run(images) == alone
    with TorchLoader(images, **OPTIONS) as loader:
        assert [[digest(batch) for batch in loader] for _ in range(EPOCHS)] == alone


def test_a_resume_at_any_position_gives_the_same_rest(
    images: Path, alone: list[list[str]], rng: random.Random
) -> None:
    batches = len(alone[0])
    stops = range(batches + 1) if GATE else sorted({*rng.sample(range(batches + 1), 4), 0, batches})
    for epoch in range(EPOCHS):
        for stop in stops:
            with Loader(images, num_workers=8, **OPTIONS) as loader:
                loader.set_epoch(epoch)
                seen = digests(itertools.islice(loader, stop))
                token = loader.state_dict() if stop else None
            with Loader(images, num_workers=3, **OPTIONS) as loader:
                loader.set_epoch(epoch)
                if token:
                    loader.load_state_dict(token)
                assert seen + digests(loader) == alone[epoch], f"epoch {epoch}, stopped after {stop} batches"


@pytest.mark.deadline(200)
def test_many_random_settings_agree(images: Path, alone: list[list[str]], rng: random.Random) -> None:
    for _ in range(200 if GATE else 6):
        setting = {
            "num_workers": rng.randint(1, 12),
            "prefetch_factor": rng.randint(1, 8),
            "read_ahead_bytes": int(2 ** rng.uniform(0, 22)),
            "read_backend": rng.choice(["auto", "io_uring", "threads"]),
        }
        assert run(images, **setting) == alone, setting


# What must differ ------------------------------------------------------------------------------------------------------


def test_epochs_differ_in_order_and_in_pixels(images: Path) -> None:
    with Loader(images, **OPTIONS) as loader:
        first, second = list(loader), list(loader)
        assert indices(first) != indices(second)
        assert sorted(indices(first)) == sorted(indices(second)) == list(range(61))

        def rows(batches: list[Any]) -> dict[int, np.ndarray]:
            return {i: row for b in batches for i, row in zip(b["index"].tolist(), b["image"], strict=True)}

        one, two = rows(first), rows(second)
        assert not any(np.array_equal(one[index], two[index]) for index in one)


def test_another_seed_gives_another_order_and_other_pixels(images: Path, alone: list[list[str]]) -> None:
    other = run(images, seed=6)
    assert not set(itertools.chain(*other)) & set(itertools.chain(*alone))


def test_the_default_seed_is_a_constant(images: Path) -> None:
    def order() -> Iterator[int]:
        with Loader(images, transforms=AUGMENT, batch_size=BATCH, shuffle=True) as loader:
            yield from indices(loader)

    assert list(order()) == list(order()) != list(range(61))


def test_without_shuffle_the_order_is_the_folders_own_and_augmentation_still_varies(images: Path) -> None:
    with Loader(images, **OPTIONS | {"shuffle": False}) as loader:
        first, second = list(loader), list(loader)
        assert indices(first) == indices(second) == list(range(61))
        assert digests(first) != digests(second)
        keys = [key for batch in first for key in loader.keys(batch)]
        assert [key.split("/")[0] for key in keys] == sorted(key.split("/")[0] for key in keys)
        assert [loader.classes[label] for b in first for label in b["label"]] == [
            key.split("/")[0] for key in keys
        ]
