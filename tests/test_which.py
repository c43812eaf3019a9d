"""`fuelrail which` names the samples of a run's batches."""

import json
import subprocess
from pathlib import Path

import pytest
from fuelrail.loader import binary
from fuelrail.numpy import Loader
from fuelrail.numpy import transforms as T


def which(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(binary()), "which", *arguments], capture_output=True, text=True, timeout=60)


def rows(*arguments: str) -> list[dict[str, object]]:
    done = which(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_batches_before_and_after_a_state_are_named(images: Path, tmp_path: Path) -> None:
    loader = Loader(images, transforms=[T.CenterCrop(8)], batch_size=4, shuffle=True, seed=3)
    batches = iter(loader)
    next(batches)
    before = next(batches)
    state = tmp_path / "state.json"
    state.write_text(json.dumps(loader.state_dict()))
    after = next(batches)
    known = [str(images), "--state", str(state), "--batch-size", "4"]
    assert [row["key"] for row in rows(*known)] == loader.keys(after)
    assert [row["key"] for row in rows(*known, "--before")] == loader.keys(before)
    assert [row["position"] for row in rows(*known)] == after["position"].tolist()
    assert [row["label"] for row in rows(*known)] == after["label"].tolist()
    assert [row["key"] for row in rows(*known, "--world-size", "2")][:4] == loader.keys(after)


def test_a_place_without_a_state_is_named_too(images: Path) -> None:
    loader = Loader(images, transforms=[T.CenterCrop(8)], batch_size=6)
    first = next(iter(loader))
    named = rows(str(images), "--no-shuffle", "--count", "6")
    assert [row["key"] for row in named] == loader.keys(first)
    last = rows(str(images), "--no-shuffle", "--position", str(loader.num_samples - 1), "--count", "5")
    assert len(last) == 1, "the epoch ends"
    table = which(str(images), "--no-shuffle", "--count", "2")
    assert str(named[0]["key"]) in table.stdout and "position" in table.stdout.splitlines()[0]


def test_mistakes_are_named(images: Path, tmp_path: Path) -> None:
    loader = Loader(images, transforms=[T.CenterCrop(8)], batch_size=4, shuffle=True, seed=3)
    state = tmp_path / "state.json"
    state.write_text(json.dumps(loader.state_dict()))
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for arguments, reason in [
        ([str(images), "--state", str(state), "--seed", "4"], "the seed differs"),
        ([str(images), "--state", str(state), "--no-shuffle"], "the order differs"),
        ([str(images), "--state", str(state), "--before"], "before the first batch of its epoch"),
        ([str(images), "--state", str(broken)], "not a fuelrail loader state"),
        ([str(images), "--state", str(tmp_path / "none.json")], "none.json"),
        ([str(images), "--position", "1000000"], "is after the last"),
        ([str(images), "--count", "0"], "--count 0"),
    ]:
        done = which(*arguments)
        assert done.returncode == 1 and reason in done.stderr, done.stderr
    assert which(str(images), "--before").returncode == 2


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_epoch_has_its_order(images: Path, epoch: int) -> None:
    loader = Loader(images, transforms=[T.CenterCrop(8)], batch_size=5, shuffle=True)
    loader.set_epoch(epoch)
    batch = next(iter(loader))
    named = rows(str(images), "--epoch", str(epoch), "--count", "5")
    assert [row["key"] for row in named] == loader.keys(batch)
