"""Tokens: every one of them restores exactly the rest of its run, and no other is accepted."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fuelrail import FuelrailError, TokenError
from support import AUGMENT, GATE, TINY, Loader, T, digests, indices

OPTIONS: dict[str, Any] = {"transforms": AUGMENT, "batch_size": 7, "shuffle": True, "seed": 9}
SOURCE = "synthetic://?count=50&width=20&height=20"
BATCHES = 8


def open_loader(source: Any = SOURCE, **changes: Any) -> Any:
    return Loader(source, **(OPTIONS | changes))


@pytest.fixture(scope="module")
def unbroken() -> list[list[str]]:
    """Batches of epochs 0 to 3 of a run without a stop."""
    with open_loader() as loader:
        return [digests(loader) for _ in range(4)]


def continue_from(token: dict[str, Any]) -> list[list[str]]:
    """What a new process would see in this epoch and the next."""
    with open_loader() as loader:
        loader.load_state_dict(token)
        return [digests(loader), digests(loader)]


# Every place -----------------------------------------------------------------------------------------------------------


def test_a_token_taken_at_every_step_restores_the_same_rest(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        for epoch in range(2):
            for step, _ in enumerate(loader, start=1):
                rest, following = continue_from(loader.state_dict())
                assert rest == unbroken[epoch][step:], f"epoch {epoch}, step {step}"
                assert following == unbroken[epoch + 1]


def test_a_token_at_the_start_is_the_whole_epoch(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        assert continue_from(loader.state_dict()) == unbroken[:2]
        iter(loader)
        assert continue_from(loader.state_dict()) == unbroken[:2], "an iterator that gave nothing yet"


def test_a_token_after_the_last_batch_gives_an_epoch_that_ends_at_once(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        for _ in loader:
            token = loader.state_dict()
        assert (token["epoch"], token["position"]) == (0, 50)
        assert continue_from(token) == [[], unbroken[1]]
        # After StopIteration it is the next epoch's.
        token = loader.state_dict()
        assert (token["epoch"], token["position"]) == (1, 0)
        assert continue_from(token) == [unbroken[1], unbroken[2]]


def test_with_drop_last_the_end_is_behind_the_last_full_batch() -> None:
    with open_loader(drop_last=True) as loader:
        for _ in loader:
            token = loader.state_dict()
        assert token["position"] == 49
        loader.load_state_dict(token)
        assert list(loader) == []
        assert len(list(loader)) == len(loader) == 7


def test_chains_of_resumes_are_one_run(unbroken: list[list[str]], rng: random.Random) -> None:
    for _ in range(50 if GATE else 5):
        token = None
        seen: list[list[str]] = [[], [], []]
        stops = []
        while token is None or token["epoch"] < 3:
            with open_loader(num_workers=rng.randint(1, 4), prefetch_factor=rng.randint(1, 4)) as loader:
                if token is not None:
                    loader.load_state_dict(token)
                    if rng.random() < 0.3:
                        # Read nothing: saved again, it is the same place.
                        assert loader.state_dict() == token
                        continue
                epoch = loader.epoch
                iterator = iter(loader)
                for _ in range(rng.randint(0, BATCHES)):
                    batch = next(iterator, None)
                    if batch is None:
                        break
                    seen[epoch] += digests([batch])
                token = json.loads(json.dumps(loader.state_dict()))
                stops.append((token["epoch"], token["position"]))
        assert seen == unbroken[:3], stops


def test_tokens_are_small_plain_json_of_constant_size(images: Path) -> None:
    sizes = set()
    for source in (SOURCE, images, "synthetic://?count=1000000000000"):
        with open_loader(source) as loader:
            for epoch in (0, 1):
                loader.set_epoch(epoch)
                for _ in itertools.islice(loader, 3):
                    token = loader.state_dict()
                    assert json.loads(json.dumps(token)) == token
                    sizes.add(len(json.dumps(token)))
    # Only the digits of the numbers in it vary.
    assert max(sizes) < 4096 and max(sizes) - min(sizes) < 32


def test_the_token_counts_rows_handed_out_not_rows_prefetched() -> None:
    with open_loader(prefetch_factor=6) as loader:
        iterator = iter(loader)
        assert loader.state_dict()["position"] == 0
        for step in range(1, 8):
            next(iterator)
            assert loader.state_dict()["position"] == 7 * step


# Within one loader -----------------------------------------------------------------------------------------------------


def test_loading_in_the_middle_of_an_epoch_ends_the_old_iterator_with_an_error(
    unbroken: list[list[str]],
) -> None:
    with open_loader() as loader:
        iterator = iter(loader)
        next(iterator)
        token = loader.state_dict()
        next(iterator)
        loader.load_state_dict(token)
        with pytest.raises(FuelrailError, match="load_state_dict"):
            next(iterator)
        assert loader.state_dict() == token, "the failed call moved nothing"
        assert digests(loader) == unbroken[0][1:]


def test_loading_twice_without_reading_is_loading_the_second(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        tokens = []
        for _ in loader:
            tokens.append(loader.state_dict())
        loader.load_state_dict(tokens[5])
        loader.load_state_dict(tokens[1])
        loader.load_state_dict(tokens[1])
        assert digests(loader) == unbroken[0][2:]


def test_a_new_iter_ends_the_old_iterator(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        with pytest.raises(FuelrailError, match="later iter"):
            next(old)
        assert digests(new) == unbroken[1], "each iter() is the next epoch"


def test_an_epoch_left_early_is_over() -> None:
    with open_loader() as loader:
        next(iter(loader))
        assert loader.epoch == 0
        assert next(iter(loader)).epoch == 1
        assert loader.state_dict()["epoch"] == 1


def test_an_ended_iterator_stays_ended() -> None:
    with open_loader() as loader:
        iterator = iter(loader)
        list(iterator)
        assert list(iterator) == []
        assert next(iter(loader)).epoch == 1


def test_set_epoch_to_the_loaded_epoch_keeps_the_loaded_position(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        loader.set_epoch(2)
        iterator = iter(loader)
        next(iterator), next(iterator)
        token = loader.state_dict()
    with open_loader() as loader:
        loader.load_state_dict(token)
        loader.set_epoch(2)
        assert loader.epoch == 2
        assert digests(loader) == unbroken[2][2:]


def test_set_epoch_to_another_epoch_starts_it_at_0_and_says_so(
    unbroken: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with open_loader() as loader:
        next(iter(loader))
        token = loader.state_dict()
    with open_loader() as loader, caplog.at_level(logging.INFO, "fuelrail"):
        loader.load_state_dict(token)
        loader.set_epoch(1)
        assert digests(loader) == unbroken[1]
    assert any("epoch 1 begins at 0" in record.getMessage() for record in caplog.records)


def test_set_epoch_in_the_middle_of_an_epoch_ends_its_iterator(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        iterator = iter(loader)
        next(iterator)
        loader.set_epoch(0)
        with pytest.raises(FuelrailError, match="set_epoch"):
            next(iterator)
        assert digests(loader) == unbroken[0]
        with pytest.raises(ValueError, match="-1"):
            loader.set_epoch(-1)


@pytest.mark.parametrize("with_set_epoch", [False, True])
def test_the_idiom_for_epochs_visits_each_once_across_a_resume(
    with_set_epoch: bool, unbroken: list[list[str]]
) -> None:
    def train(token: dict[str, Any] | None, steps: float) -> tuple[list[list[str]], dict[str, Any] | None]:
        seen: list[list[str]] = [[] for _ in range(4)]
        with open_loader() as loader:
            if token:
                loader.load_state_dict(token)
            for epoch in range(loader.epoch, 4):
                if with_set_epoch:
                    loader.set_epoch(epoch)
                for batch in loader:
                    assert batch.epoch == epoch == loader.epoch
                    seen[epoch] += digests([batch])
                    steps -= 1
                    if steps == 0:
                        return seen, loader.state_dict()
        return seen, None

    for steps in (1, BATCHES - 1, BATCHES, BATCHES + 1, 2 * BATCHES + 3):
        before, token = train(None, steps)
        after, _ = train(token, float("inf"))
        assert [a + b for a, b in zip(before, after, strict=True)] == unbroken


def test_what_is_left_of_an_epoch_is_known(unbroken: list[list[str]]) -> None:
    with open_loader() as loader:
        assert len(loader) == BATCHES
        iterator = iter(loader)
        assert iterator.__length_hint__() == BATCHES
        next(iterator)
        token = loader.state_dict()
        loader.load_state_dict(token)
        rest = iter(loader)
        assert rest.__length_hint__() == BATCHES - 1
        assert len(loader) == BATCHES, "an epoch is as long as ever"


def test_a_failed_run_can_be_resumed_behind_what_was_delivered(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    with Loader(folder, **OPTIONS) as loader:
        expected = digests(loader)
    with Loader(folder, **OPTIONS) as loader:
        iterator = iter(loader)
        next(iterator)
        moved = folder / loader.keys(list(Loader(folder, **OPTIONS))[6])[0]
        moved.rename(tmp_path / "away")
        seen = []
        with pytest.raises(OSError, match=moved.name):
            for batch in iterator:
                seen += digests([batch])
        token = loader.state_dict()
        assert seen == expected[1 : len(seen) + 1]
        # The file comes back; the same loader goes on without a gap.
        (tmp_path / "away").rename(moved)
        loader.load_state_dict(token)
        assert seen + digests(loader) == expected[1:]


# Refusals --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token() -> dict[str, Any]:
    """From the middle of epoch 0."""
    with open_loader() as loader:
        next(iter(loader))
        return loader.state_dict()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 10}, "seed differs.*9.*10"),
        ({"shuffle": False}, "order differs.*shuffle"),
        ({"on_error": "drop"}, "order differs.*on_error"),
        ({"transforms": [*AUGMENT[:-1]]}, "pixels differ.*transforms"),
        ({"dtype": "f16"}, "pixels differ.*dtype"),
        ({"source": SOURCE + "&seed=1"}, "dataset differs"),
        ({"source": "synthetic://?count=51&width=20&height=20"}, "dataset differs.*50 samples.*51 samples"),
    ],
)
def test_a_token_of_another_run_is_refused_with_the_difference(
    changes: dict[str, Any], reason: str, token: dict[str, Any]
) -> None:
    with open_loader(**changes) as loader:
        with pytest.raises(TokenError, match=reason):
            loader.load_state_dict(token)
        # Nothing happened: not "start at 0", and not half of it.
        assert loader.state_dict()["position"] == 0
        assert len(list(loader)) == BATCHES


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 3},
        {"num_workers": 5},
        {"prefetch_factor": 5},
        {"layout": "nhwc"},
        {"drop_last": True},
        {"rank": 1, "world_size": 2},
        {"read_backend": "threads", "read_ahead_bytes": 1000},
        {"quarantine": "/tmp/never-written.jsonl"},
        {"source": SOURCE + "&delay_us=10"},
    ],
)
def test_what_is_no_part_of_the_run_may_change(changes: dict[str, Any], token: dict[str, Any]) -> None:
    with open_loader(**changes) as loader:
        loader.load_state_dict(token)
        assert next(iter(loader)).position == 7


def test_other_pixels_are_allowed_by_name(token: dict[str, Any]) -> None:
    with open_loader() as loader:
        expected = indices(loader)[7:]
    with open_loader(transforms=TINY) as loader:
        with pytest.raises(TokenError, match="allow"):
            loader.load_state_dict(token)
        loader.load_state_dict(token, allow=["pixels"])
        assert indices(loader) == expected
        with pytest.raises(ValueError, match="order"):
            loader.load_state_dict(token, allow=["order"])
    with open_loader(transforms=TINY, seed=10) as loader, pytest.raises(TokenError, match="seed"):
        loader.load_state_dict(token, allow=["pixels"])


def test_another_or_changed_folder_is_refused_but_a_moved_one_is_not(tmp_path: Path, images: Path) -> None:
    with Loader(images, **OPTIONS) as loader:
        next(iter(loader))
        token = loader.state_dict()
        expected = digests(loader)
    moved = tmp_path / "elsewhere"
    shutil.copytree(images, moved)
    with Loader(moved, **OPTIONS) as loader:
        loader.load_state_dict(token)
        loader.set_epoch(1)
        assert digests(loader) == expected
    victim = next(moved.rglob("*.png"))
    changes = {
        "larger": lambda: victim.write_bytes(victim.read_bytes() + b"x"),
        "renamed": lambda: victim.rename(victim.with_stem("renamed")),
        "removed": (lambda: victim.with_stem("renamed").unlink()),
    }
    for what, change in changes.items():
        change()
        with Loader(moved, **OPTIONS) as loader, pytest.raises(TokenError, match="dataset differs"):
            loader.load_state_dict(token)
            pytest.fail(f"a folder with a {what} file was accepted")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all entries of nested dictionaries."""
    if not isinstance(value, dict):
        return [path]
    return [path] * bool(path) + [leaf for key in value for leaf in leaves(value[key], (*path, key))]


def test_a_token_with_any_entry_changed_missing_or_added_is_refused(token: dict[str, Any]) -> None:
    with open_loader() as loader:
        for path in leaves(token):
            for change in ("remove", "number", "text", "none", "list"):
                mutated = copy.deepcopy(token)
                at = mutated
                for key in path[:-1]:
                    at = at[key]
                value = at.pop(path[-1])
                if change != "remove":
                    new = {"number": 12345, "text": "x", "none": None, "list": [value]}[change]
                    at[path[-1]] = new
                with pytest.raises(TokenError):
                    loader.load_state_dict(mutated)
                    pytest.fail(f"accepted with {path}: {change}")
        for extra in ({"more": 1}, {"identity": token["identity"] | {"more": 1}}):
            with pytest.raises(TokenError, match="more"):
                loader.load_state_dict(token | extra)
        for moved in ({"position": 8}, {"position": 0}, {"epoch": 1}):
            with pytest.raises(TokenError, match="changed"):
                loader.load_state_dict(token | moved)
        loader.load_state_dict(token)


def test_mutated_and_cut_bytes_of_a_saved_token_are_refused(
    token: dict[str, Any], rng: random.Random
) -> None:
    text = json.dumps(token)
    with open_loader() as loader:
        for _ in range(10_000 if GATE else 500):
            if rng.random() < 0.3:
                damaged = text[: rng.randrange(len(text))]
            else:
                at = rng.randrange(len(text))
                damaged = text[:at] + chr(rng.randrange(32, 127)) + text[at + 1 :]
            try:
                state = json.loads(damaged)
            except ValueError:
                continue
            if state == token:
                continue
            with pytest.raises(TokenError):
                loader.load_state_dict(state)
                pytest.fail(f"accepted: {damaged}")


def test_things_that_are_no_token_are_refused_with_the_reason(token: dict[str, Any]) -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    no_tokens = [
        None,
        {},
        [],
        3,
        "text",
        json.dumps(token),
        {"epoch": 1},
        {"model": {}},
        [token],
        b"bytes",
        {1, 2},
    ]
    with open_loader() as loader:
        for thing in [*no_tokens, object(), circular, {"fuelrail": object()}, {"fuelrail": float("nan")}]:
            with pytest.raises(TokenError, match="state"):
                loader.load_state_dict(thing)
                pytest.fail(f"accepted: {thing!r}")


def test_a_token_of_a_future_version_says_so(token: dict[str, Any]) -> None:
    with open_loader() as loader, pytest.raises(TokenError, match="version 2"):
        loader.load_state_dict(token | {"fuelrail": 2})


def test_a_state_travels_through_torch_save(tmp_path: Path, unbroken: list[list[str]]) -> None:
    torch = pytest.importorskip("torch")
    with open_loader() as loader:
        next(iter(loader))
        torch.save({"loader": loader.state_dict()}, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert continue_from(state["loader"])[0] == unbroken[0][1:]


def test_substitutes_are_the_same_after_a_resume() -> None:
    source = "synthetic://?count=60&corrupt_rate=0.15"
    options = {"transforms": [T.RandomResizedCrop(16)], "batch_size": 7, "shuffle": True, "error_budget": 60}
    with Loader(source, **options) as loader:
        expected = digests(loader)
        assert loader.stats()["substituted"] > 3
    for stop in range(0, 9, 2):
        with Loader(source, **options) as loader:
            seen = digests(itertools.islice(loader, stop))
            token = loader.state_dict()
        with Loader(source, **options) as loader:
            loader.load_state_dict(token)
            assert seen + digests(loader) == expected
