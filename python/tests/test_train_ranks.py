"""Several ranks train one model: real processes over gloo, against a loader without a daemon."""

# ruff: noqa: E402  (importorskip comes before the imports that need what it looks for)
from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import textwrap
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="fuelrail.train needs torch")
if not torch.distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

from fuelrail.train.checkpoint import Checkpoints
from fuelrail.train.metrics import read_metrics
from train_fakes import as_a_rank

#: What every rank runs before the test's own lines.
BEGIN = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from torch import nn
from train_fakes import FakeLoader
from fuelrail.train import Recipe, Trainer

out, rank, size = sys.argv[1], int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if size > 1:
    dist.init_process_group("gloo")

def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 6),
    )

def loader(count, rows, **more):
    return FakeLoader(count, rows // size, rank=rank, world_size=size, **more)

def trainer(train, val=None, **settings):
    own = {name: settings.pop(name) for name in ("resume", "evaluate") if name in settings}
    usual = {"epochs": 2, "precision": "fp32", "log_every": 1, "log_ids": True, "lr": 0.1}
    return Trainer(model(), train, val, Recipe(**{**usual, **settings}), out=out, device="cpu", **own)
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


#: Processes fork from one that has torch already: starting it anew for each rank would take most of the time.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fuelrail.train.trainer", "torch._dynamo"])


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """It has a folder among the temporary ones, which goes before these are looked at for the last time."""
    forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()
    multiprocessing.util._run_finalizers(-100)


def start(out: Path, body: str, size: int) -> list[Any]:
    """That many ranks, as a launcher starts them."""
    script = BEGIN + textwrap.dedent(body)
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    found = []
    for rank in range(size):
        said = out.with_name(f"{out.name}-rank{rank}.txt")
        environment = {**common, "RANK": str(rank)}
        found.append(CONTEXT.Process(target=as_a_rank, args=(script, str(out), environment, str(said))))
        found[-1].said = said
        found[-1].start()
    return found


def ends(processes: list[Any]) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    found = []
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        found.append((process.exitcode, process.said.read_text()))
    return found


def run(out: Path, body: str, size: int) -> None:
    for code, errors in ends(start(out, body, size)):
        assert code == 0, errors


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out / "metrics.jsonl") if line["event"] == event]


def ids(out: Path) -> list[tuple[int, list[int]]]:
    return [(line["step"], line["ids"]) for line in lines(out, "ids")]


def newest(out: Path) -> dict[str, Any]:
    found = Checkpoints(out).newest()
    assert found is not None
    return found[1]


def test_two_ranks_are_one_rank_of_the_same_global_batch(tmp_path: Path):
    """49 rows in global batches of 16: the last one has one row, so a rank has none. Then the same accumulated: the
    epoch's last step has two batches of its three."""
    body = """
    trainer(loader(49, 16), loader(18, 6, shuffle=False), clip_norm=1.0, ema_decay=0.9).fit()
    out += "-accumulated"
    trainer(loader(65, 16), loader(18, 6, shuffle=False), accumulate=3).fit()
    """
    for name, size in (("one", 1), ("two", 2)):
        run(tmp_path / name, body, size)
    for suffix in ("", "-accumulated"):
        one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
        assert ids(one) == ids(two) and len(ids(one)) == (4 if suffix else 8)
        states = [newest(out) for out in (one, two)]
        for part in ("model", "ema") if not suffix else ("model",):
            for name, value in states[0][part].items():
                assert torch.allclose(value, states[1][part][name], atol=1e-5), (part, name)
        for event, names in (
            ("step", ("loss", "lr", "gradient_norm")),
            ("epoch", ("train_loss", "val_loss")),
        ):
            for mine, theirs in zip(lines(one, event), lines(two, event), strict=True):
                assert [theirs[name] for name in names] == pytest.approx(
                    [mine[name] for name in names], rel=1e-3
                )
        assert [line["val_rows"] for line in lines(two, "epoch")] == [18, 18]
        assert lines(one, "end")[0]["ids"] == lines(two, "end")[0]["ids"]


def test_a_run_goes_from_two_ranks_to_one_and_back_without_losing_a_sample(tmp_path: Path):
    body = """
    run = trainer(loader(72, 16), save_every=1000, resume=True)
    for step in run.steps():
        step.train()
        if step.number == STOP and rank == size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
    """
    whole = tmp_path / "whole"
    run(whole, body.replace("STOP", "99"), 1)
    parts = tmp_path / "parts"
    for stop, size in (("2", 2), ("6", 1), ("99", 2)):
        for code, errors in ends(start(parts, body.replace("STOP", stop), size)):
            assert code == (0 if stop == "99" else 143), errors
    assert ids(parts) == ids(whole) and len(ids(whole)) == 10
    for name, value in newest(whole)["model"].items():
        assert torch.allclose(value, newest(parts)["model"][name], atol=1e-5), name


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path):
    body = """
    run = trainer(loader(6400, 16, delay=0.02), save_every=1000)
    try:
        run.fit()
    except SystemExit as stopped:
        print("stopped", run.step, stopped.code, file=sys.stderr)
        raise
    """
    processes = start(tmp_path, body, 2)
    deadline = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").exists() or not lines(tmp_path, "ids"):
        assert time.monotonic() < deadline and processes[0].is_alive()
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    found = ends(processes)
    assert [code for code, _ in found] == [143, 143], found
    said = [errors.splitlines()[-1] for _, errors in found]
    assert said[0] == said[1] and said[0].startswith("stopped ")
    assert newest(tmp_path)["step"] == int(said[0].split()[1])


@pytest.mark.parametrize("how", ["fails", "dies"])
def test_a_rank_that_fails_or_dies_ends_the_others_after_a_checkpoint(tmp_path: Path, how: str):
    body = """
    run = trainer(loader(640, 16, fail_at=3 if rank == 1 and HOW == "fails" else None), save_every=1000)
    for step in run.steps():
        step.train()
        if step.number == 3 and rank == 1 and HOW == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    found = ends(start(tmp_path, body.replace("HOW", repr(how)), 2))
    assert found[0][0] == 1 and found[1][0] == (1 if how == "fails" else -signal.SIGKILL), found
    # What a rank hears first of another's death depends on where it stood.
    assert how == "dies" or "rank 1 failed after step 3" in found[0][1]
    if how == "fails":
        assert "the fake daemon died" in found[1][1]
        assert newest(tmp_path)["step"] == 3


def test_ranks_that_do_not_mean_the_same_run_are_told_what_differs(tmp_path: Path):
    body = """
    for wrong in (
        lambda: trainer(loader(64, 16, seed=rank)),
        lambda: trainer(loader(64, 16 if rank else 32)),
        lambda: trainer(loader(64, 16), lr=0.1 * (rank + 1)),
        lambda: trainer(FakeLoader(64, 8)).fit(),
    ):
        try:
            wrong()
        except ValueError as error:
            print("refused:", error, file=sys.stderr)
    """
    for code, errors in ends(start(tmp_path, body, 2)):
        refused = [line for line in errors.splitlines() if line.startswith("refused:")]
        assert code == 0 and len(refused) == 4, errors
        assert "differ in loader.seed: rank 0 has 0, rank 1 has 1" in refused[0]
        assert "differ in batch_size: rank 0 has 16, rank 1 has 8" in refused[1]
        assert "differ in recipe.lr: rank 0 has 0.1, rank 1 has 0.2" in refused[2]
        assert "ranks 0 and 1 read the same rows" in refused[3]


def test_the_wait_for_data_is_the_longest_of_any_rank(tmp_path: Path):
    run(tmp_path, "trainer(loader(64, 16, delay=0.1 if rank else 0.0), epochs=1).fit()", 2)
    waits = [line["data_wait"] * 16 / line["images_per_s"] for line in lines(tmp_path, "step")]
    assert min(waits) > 0.09, "rank 0 itself waits for no data"
