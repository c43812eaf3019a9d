"""Ranks by themselves: what launchers say is taken, and the processes of a job on a node have one daemon together."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, World, from_env, ranks
from support import (
    QUICK_TRAINING,
    SLACK,
    TINY,
    Footprint,
    Loader,
    Script,
    long_form,
    mpirun,
    state_of,
    wait_until,
)

SOURCE = "synthetic://?count=203&width=8&height=8"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests say themselves who started them, and hear what is said once in each of them."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "TORCHELASTIC_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setattr(ranks, "_said", set())


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


# What launchers say ------------------------------------------------------------------------------------------

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
PMI = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}


@pytest.mark.parametrize(
    "said", [TORCHRUN, SLURM, OPEN_MPI, PMI], ids=["torchrun", "slurm", "openmpi", "pmi"]
)
def test_the_variables_of_every_launcher_are_taken(said: dict[str, str]) -> None:
    world = ranks.from_variables(said)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (5, 8, 1, 4)
    assert world.told_by.split()[0] in said and world.job


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (0, 1)),
        # A shell or notebook in an allocation is none of its tasks, nor is the batch script.
        ({name: SLURM[name] for name in SLURM if name != "SLURM_STEP_ID"}, (0, 1)),
        (SLURM | {"SLURM_STEP_ID": "4294967291"}, (0, 1)),
        (SLURM | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        # The step counts what runs; the allocation may have been asked for more.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "6"}, (5, 6)),
        # mpirun starts its helpers by srun, one a node, and ranks inherit what these were told.
        (SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"} | OPEN_MPI, (5, 8)),
        (SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"} | PMI, (5, 8)),
        # torchrun in a step, and one process of torchrun's in a step of several.
        (SLURM | TORCHRUN | {"RANK": "2"}, (2, 8)),
        (SLURM | {"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": " ", "WORLD_SIZE": ""}, (0, 1)),
        (SLURM | {"PMIX_RANK": "5"}, (5, 8)),
    ],
)
def test_the_launcher_that_started_this_very_process_is_believed(
    said: dict[str, str], expected: tuple[int, int]
) -> None:
    world = ranks.from_variables(said)
    assert (world.rank, world.size) == expected


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"RANK": "1"}, r"RANK=1 is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4"}, r"WORLD_SIZE=4 is set and RANK is not"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, r"RANK=4 is not below WORLD_SIZE=4"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, r"RANK='one' is no whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, r"RANK='-1' is no whole number"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, r"number 4 of 4 on this node"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, r"process 5 of 8.*of 9"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}, r"SLURM_PROCID=3 is set and SLURM_NTASKS is not"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, r"OMPI_COMM_WORLD_SIZE is not"),
        ({"PMI_RANK": "9", "PMI_SIZE": "8"}, r"PMI_RANK=9 is not below PMI_SIZE=8"),
        ({"PMIX_RANK": "1"}, r"PMIX_RANK=1 .*of how many"),
    ],
)
def test_variables_that_contradict_themselves_are_an_error_that_names_them(
    said: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named):
        Loader(SOURCE, transforms=TINY)
    # What is said outright needs nobody else's word.
    with Loader(SOURCE, transforms=TINY, rank=1, world_size=2) as loader:
        assert len(loader) == 102


def test_what_is_half_said_is_completed_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"rank": 1}, {"world_size": 4}, {"replication": 2}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            Loader(SOURCE, transforms=TINY, **wrong)
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="world_size=3"):
        Loader(SOURCE, transforms=TINY, world_size=3)
    for given in ({}, {"world_size": 4}, {"rank": 1}, {"rank": None, "world_size": "auto"}):
        with Loader(SOURCE, transforms=TINY, **given) as loader:
            assert next(iter(loader))["position"].tolist() == [1], given


def test_what_was_taken_is_said_once_and_so_is_a_share_of_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "fuelrail"):
        for given in ({}, {"rank": 0, "world_size": 1}) * 2:
            Loader(SOURCE, batch_size=2, transforms=TINY, **given).close()
    said = [record for record in caplog.records if "(from RANK and WORLD_SIZE)" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO", "WARNING"]
    assert said[0].getMessage() == "rank 1 of 4 (from RANK and WORLD_SIZE)"
    assert "each process gets all samples" in said[1].getMessage()


def group(rank: int, size: int) -> SimpleNamespace:
    """torch, as far as a process group is looked for."""
    distributed = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: size > 0,
        get_rank=lambda: rank,
        get_world_size=lambda: size,
    )
    return SimpleNamespace(distributed=distributed)


def test_a_loader_that_was_made_before_the_process_group_is_refused_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        Loader(SOURCE, transforms=TINY) as loader,
        Loader(SOURCE, transforms=TINY, rank=0, world_size=1) as whole,
    ):
        next(iter(loader))
        monkeypatch.setitem(sys.modules, "torch", group(0, 0))
        next(iter(loader))
        monkeypatch.setitem(sys.modules, "torch", group(1, 2))
        assert (from_env().rank, from_env().size, from_env().told_by) == (1, 2, "torch.distributed")
        with pytest.raises(ConfigError, match=r"rank 0 of 1 \(from no launcher\).* rank 1 of 2 .*after the"):
            iter(loader)
        # It was told to deliver everything.
        next(iter(whole))


def mesh(names: Sequence[str], shape: Sequence[int], at: Sequence[int] | None) -> SimpleNamespace:
    """A DeviceMesh."""
    return SimpleNamespace(
        shape=tuple(shape), mesh_dim_names=tuple(names), get_coordinate=lambda: at and list(at)
    )


def test_a_mesh_says_whose_rows_by_its_data_dimensions() -> None:
    def seat(mesh: object, dims: list[str] | None = None) -> tuple[int, int]:
        seat = ranks.seat("auto", "auto", mesh, dims, 1)
        return seat.rank, seat.world_size

    whole = mesh(("replicate", "shard", "tp"), (2, 3, 4), (1, 2, 3))
    assert seat(whole, ["replicate", "shard"]) == (5, 6)
    assert seat(whole, ["shard"]) == (2, 3)
    assert seat(mesh(("dp",), (4,), (3,))) == (3, 4)
    for wrong, dims, named in [
        (whole, None, r"'replicate', 'shard', 'tp'.*data_dims"),
        (whole, ["dp"], r"data_dims=.*replicate, shard, tp"),
        (mesh(("dp",), (4,), None), None, "not in mesh="),
        ("dp", None, "DeviceMesh"),
        (None, ["dp"], "mesh="),
    ]:
        with pytest.raises(ConfigError, match=named):
            seat(wrong, dims)
    with pytest.raises(ConfigError, match="leave rank="):
        Loader(SOURCE, transforms=TINY, mesh=whole, rank=1, world_size=2)


# The end of an epoch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "size", "batch_size", "rows"),
    [
        (9, 4, 2, [[2, 1, 1, 1], [1, 1, 1, 1]]),
        (13, 4, 3, [[3, 2, 2, 2], [1, 1, 1, 1]]),
        (14, 4, 3, [[3, 3, 2, 2], [1, 1, 1, 1]]),
        (16, 4, 3, [[3, 3, 3, 3], [1, 1, 1, 1]]),
        (4, 4, 8, [[1, 1, 1, 1]]),
        # There is nothing to give.
        (5, 4, 1, [[1, 1, 1, 1], [1, 0, 0, 0]]),
        (3, 4, 8, [[1, 1, 1, 0]]),
    ],
)
def test_a_tail_is_shared_so_that_no_rank_has_an_empty_batch(
    samples: int, size: int, batch_size: int, rows: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    counts = []
    for rank in range(size):
        options = {"batch_size": batch_size, "transforms": TINY, "num_workers": 1}
        with Loader(f"synthetic://?count={samples}", rank=rank, world_size=size, **options) as loader:
            batches = list(loader)
            assert len(batches) == len(loader)
            counts.append([batch.rows for batch in batches])
            seen += [position for batch in batches for position in batch["position"].tolist()]
    assert [list(step) for step in zip(*counts, strict=True)] == rows
    assert sorted(seen) == list(range(samples))
    warned = [record for record in caplog.records if "batch of 0 rows" in record.getMessage()]
    assert len(warned) == any(0 in step for step in rows)


# One daemon for a job ----------------------------------------------------------------------------------------

#: A rank that does what it is told, line by line: makes Loaders, goes on, ends.
RANK = """
    import logging, time
    from pathlib import Path
    from fuelrail import FuelrailError
    from fuelrail.numpy import Loader
    from support import TINY

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    state = json.loads(sys.argv[3]) if len(sys.argv) > 3 else None
    os.sched_setaffinity(0, options.pop("cpus", os.sched_getaffinity(0)))

    def wait(name):
        while not (folder / name).exists():
            time.sleep(0.005)

    try:
        with Loader(options.pop("source", "synthetic://?count=203&width=8&height=8"),
                    **{"transforms": TINY, "batch_size": 4, "shuffle": True} | options) as loader:
            if state is not None:
                loader.load_state_dict(state)
            say({"daemon": loader.daemon_pid, "steps": len(loader), "threads": loader.stats()["threads"]})
            wait("attached")
            for number, batch in enumerate(loader):
                say({"rows": batch["index"].tolist(), "pixels": int(batch["image"].sum()), "state": loader.state_dict()})
                if number == 2:
                    wait("go")
    except FuelrailError as error:
        say({"error": type(error).__name__, "text": str(error)})
"""


#: A rank of MPI's, which ends when the other has its rows, too.
OF_MPI = """
    import json, os, sys, time
    from pathlib import Path
    from fuelrail import from_env
    from fuelrail.numpy import Loader, transforms as T

    world = from_env()
    with Loader("synthetic://?count=203&width=8&height=8", transforms=[T.Resize((8, 8))], batch_size=4) as loader:
        rows = [index for batch in loader for index in batch["index"].tolist()]
        told = {"world": str(world), "daemon": loader.daemon_pid, "rows": rows}
        made = Path(sys.argv[1], f"{world.rank}.json")
        made.with_suffix(".new").write_text(json.dumps(told))
        made.with_suffix(".new").rename(made)
        while not all(Path(sys.argv[1], f"{rank}.json").exists() for rank in range(world.size)):
            time.sleep(0.005)
"""


class Job:
    """Processes that were told by torchrun's variables that they are ranks of one job."""

    def __init__(
        self, folder: Path, footprint: Footprint, size: int, *, state: Any = None, **each: Any
    ) -> None:
        self.folder = folder
        folder.mkdir()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": size}
        variables = place | {"LOCAL_WORLD_SIZE": size} | each.pop("variables", {})
        options = [{name: each[name][rank] for name in each} for rank in range(size)]
        self.ranks = [
            Script(
                RANK,
                folder,
                json.dumps(options[rank]),
                *([json.dumps(state)] if state is not None else []),
                footprint=footprint,
                variables=variables | {"RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in range(size)
        ]

    def attaches(self) -> list[dict[str, Any]]:
        """What each rank says of its Loader; then they take three batches, and wait."""
        told = [rank.hears() for rank in self.ranks]
        (self.folder / "attached").touch()
        return told

    def goes_on(self) -> None:
        (self.folder / "go").touch()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.__exit__()


@contextmanager
def jobs(*made: Job) -> Iterator[None]:
    with ExitStack() as stack:
        for job in made:
            stack.enter_context(job)
        yield


def indices(told: Sequence[dict[str, Any]]) -> Counter[int]:
    return Counter(index for one in told for index in one.get("rows", ()))


def once(count: int = 203) -> Counter[int]:
    return Counter(range(count))


def test_the_ranks_of_a_job_have_one_daemon_and_each_sample_once(
    tmp_path: Path, footprint: Footprint, images: Path
) -> None:
    with Job(tmp_path / "job", footprint, 4, source=[str(images)] * 4) as job:
        told = job.attaches()
        assert len({one["daemon"] for one in told}) == 1
        daemons = [pid for pid, command in footprint.processes().items() if "serve" in command]
        assert daemons == [told[0]["daemon"]]
        # All cores but one for each rank, however many ranks there are.
        with Loader(SOURCE, transforms=TINY) as alone:
            cores = alone.stats()["threads"]
        assert {one["threads"] for one in told} == {max(1, cores - 4)}
        job.goes_on()
        said = [rank.rest() for rank in job.ranks]
        assert [rank.ends() for rank in job.ranks] == [0] * 4
        assert indices([one for rank in said for one in rank]) == once(61)
        assert {len(rank) for rank in said} == {told[0]["steps"]}
        assert all(len({one["state"]["position"] for one in step}) == 1 for step in zip(*said, strict=True))
        lines = "".join(rank.stderr for rank in job.ranks)
        # What the daemon found is said by one of them.
        assert lines.count("61 records") == 1, lines
    footprint.is_clean()


def test_the_daemon_works_on_the_cores_of_all_ranks_however_these_are_bound(
    tmp_path: Path, footprint: Footprint
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core can be shared by binding to it only")
    with Job(tmp_path / "job", footprint, 2, cpus=[cores[:1], cores[1:2]]) as job:
        daemon = job.attaches()[0]["daemon"]

        def allowed() -> set[frozenset[int]]:
            workers = [
                int(task.name)
                for task in Path(f"/proc/{daemon}/task").iterdir()
                if (task / "comm").read_text().startswith("fuelrail-work")
            ]
            return {frozenset(os.sched_getaffinity(worker)) for worker in workers}

        wait_until(lambda: allowed() == {frozenset(cores[:2])}, SLACK, "workers may run on both cores")
        job.goes_on()
        assert indices([one for rank in job.ranks for one in rank.rest()]) == once()
    footprint.is_clean()


def test_two_jobs_at_once_do_not_meet(tmp_path: Path, footprint: Footprint) -> None:
    first, second = (
        Job(tmp_path / name, footprint, 2, seed=[seed] * 2) for name, seed in (("a", 1), ("b", 2))
    )
    with jobs(first, second):
        told = [job.attaches() for job in (first, second)]
        assert len({one["daemon"] for one in told[0]}) == len({one["daemon"] for one in told[1]}) == 1
        assert told[0][0]["daemon"] != told[1][0]["daemon"]
        for job in (first, second):
            job.goes_on()
            assert indices([one for rank in job.ranks for one in rank.rest()]) == once()
    footprint.is_clean()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_a_rank_that_is_killed_takes_no_other_with_it_nor_the_daemon(
    tmp_path: Path, footprint: Footprint
) -> None:
    with Job(tmp_path / "job", footprint, 4) as job:
        daemon = job.attaches()[0]["daemon"]
        # The one that started the daemon, with all of its process group.
        victim = next(rank for rank in job.ranks if rank.pid == parent(daemon))
        before = [victim.hears() for _ in range(3)]
        victim.signal(signal.SIGKILL, group=True)
        victim.ends()
        # What schedulers send to all processes of a job is for the ranks.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            os.kill(daemon, number)
        job.goes_on()
        said = [rank.rest() for rank in job.ranks if rank is not victim]
        assert [rank.ends() for rank in job.ranks if rank is not victim] == [0] * 3
        assert not any("error" in one for rank in said for one in rank)
        seen = indices([*before, *(one for rank in said for one in rank)])
        assert max(seen.values()) == 1 and once() - seen
    footprint.is_clean()


def test_the_daemon_of_rays_workers_is_no_child_of_the_one_that_started_it(
    tmp_path: Path, footprint: Footprint
) -> None:
    """When a worker of Ray ends, Ray kills the worker's children."""
    with Job(tmp_path / "job", footprint, 3, variables={"RAY_RAYLET_PID": 1}) as job:
        (daemon,) = {one["daemon"] for one in job.attaches()}
        assert parent(daemon) not in {rank.pid for rank in job.ranks}
        job.goes_on()
        assert indices([one for rank in job.ranks for one in rank.rest()]) == once()
    footprint.is_clean()


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_the_ranks_of_mpirun_have_one_daemon_and_each_sample_once(
    tmp_path: Path, footprint: Footprint, mpi: str
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(OF_MPI))
    done = subprocess.run(
        [*mpirun(mpi), "-n", "2", sys.executable, str(script), str(tmp_path)],
        env=footprint.environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0]["daemon"] == told[1]["daemon"]
    assert all(re.match(r"rank \d of 2 \(from (OMPI|PMI)_", one["world"]) for one in told), told
    assert Counter(index for one in told for index in one["rows"]) == once()
    footprint.is_clean()


def test_a_daemon_that_is_killed_is_an_error_on_all_ranks_and_a_resume_is_exact(
    tmp_path: Path, footprint: Footprint
) -> None:
    with Job(tmp_path / "job", footprint, 2) as job:
        daemon = job.attaches()[0]["daemon"]
        before = [rank.hears() for rank in job.ranks for _ in range(3)]
        state = before[-1]["state"]
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: state_of(daemon) is None, SLACK, "the daemon is dead")
        job.goes_on()
        for rank in job.ranks:
            told = rank.rest()
            assert told[-1]["error"] == "DaemonDied" and "load the state" in told[-1]["text"], told[-1]
            # What was finished before is delivered all the same, and is not what the state has.
    footprint.is_clean()
    seen = indices(before)
    # One goes on alone, for a while; then two again.
    for number, size in enumerate((1, 2)):
        with Job(tmp_path / f"again-{number}", footprint, size, state=state) as job:
            job.attaches()
            if size == 1:
                told = [job.ranks[0].hears() for _ in range(3)]
                state = told[-1]["state"]
                job.ranks[0].signal(signal.SIGKILL)
            else:
                job.goes_on()
                told = [one for rank in job.ranks for one in rank.rest()]
            seen += indices(told)
        footprint.is_clean()
    assert seen == once()


def test_ranks_of_a_replica_get_the_same_rows(tmp_path: Path, footprint: Footprint) -> None:
    with Job(tmp_path / "job", footprint, 4, replication=[2] * 4, num_workers=[1] * 4) as job:
        assert {one["steps"] for one in job.attaches()} == {26}
        job.goes_on()
        said = [rank.rest() for rank in job.ranks]
    assert said[0] == said[1] and said[2] == said[3]
    assert indices(said[0]) + indices(said[2]) == once()
    footprint.is_clean()


@pytest.mark.parametrize(
    ("each", "named"),
    [
        ({"seed": [1, 2]}, r"seed is \d here, \d there"),
        ({"batch_size": [4, 8]}, r"batch_size is \d here, \d there"),
        (
            {"source": ["synthetic://?count=9", "synthetic://?count=8"]},
            r"count=\d.* here, .*count=\d.* there",
        ),
    ],
)
def test_ranks_that_disagree_hear_about_what(
    each: dict[str, list[Any]], named: str, tmp_path: Path, footprint: Footprint
) -> None:
    with Job(tmp_path / "job", footprint, 2, **each) as job:
        told = [rank.hears() for rank in job.ranks]
        refused = [one for one in told if "error" in one]
        assert [one["error"] for one in refused] == ["ConfigError"], told
        assert re.search(named, refused[0]["text"]), refused
        for gate in ("attached", "go"):
            (job.folder / gate).touch()
        for rank in job.ranks:
            rank.ends()
    footprint.is_clean()


@pytest.mark.parametrize("variables", [{}, {"RAY_RAYLET_PID": 1}], ids=["child", "orphan"])
def test_a_daemon_that_cannot_start_is_an_error_on_all_ranks_in_its_own_words(
    tmp_path: Path, footprint: Footprint, variables: dict[str, Any]
) -> None:
    broken = tmp_path / "broken"
    orphan = '[ "$2" = --job ] || { exec 3<&0; "$0" serve --job <&3 & exit 0; }'
    broken.write_text(f"#!/bin/sh\n{orphan}\nsleep 0.2\necho 'no such luck' >&2\nexit 3\n")
    broken.chmod(0o755)
    with Job(tmp_path / "job", footprint, 3, variables={"FUELRAIL_BINARY": broken, **variables}) as job:
        for rank in job.ranks:
            told = rank.hears()
            assert told["error"] == "EnvironmentFailure", told
            assert "could not start" in told["text"] and "no such luck" in told["text"], told
            # The status of an orphan is told to nobody.
            assert ("exit status 3" in told["text"]) == (not variables), told
    footprint.is_clean()


def test_loaders_that_come_and_go_start_one_daemon_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | {"RANK": "1", "MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    options = {"transforms": TINY, "batch_size": 8}
    pids = set()
    for _ in range(20):
        with Loader(SOURCE, **options) as loader, Loader(SOURCE, **options) as other:
            assert loader.daemon_pid == other.daemon_pid
            pids.add(loader.daemon_pid)
    # The last one that ends takes its daemon with it, which this process has waited for.
    assert len(pids) > 1
    for pid in pids:
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), SLACK, "nothing is left of it")


DDP = """
    import json, logging, sys
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from fuelrail.torch import Loader, transforms as T

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(192, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    told = {"epochs": [], "losses": []}
    chain = [T.RandomResizedCrop(8), T.Normalize(*T.IMAGENET)]
    with Loader(sys.argv[1], transforms=chain, batch_size=5, shuffle=True) as loader:
        told["daemon"] = loader.daemon_pid
        for epoch in range(2):
            seen = []
            for batch in loader:
                images, labels = batch
                loss = torch.nn.functional.cross_entropy(model(images.flatten(1)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen += batch["index"].tolist()
                told["losses"].append(loss.item())
            told["epochs"].append(seen)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    with Loader(sys.argv[1], transforms=chain, batch_size=5, mesh=mesh["dp"]) as loader:
        told["replica"] = [mesh.get_coordinate(), next(iter(loader))["index"].tolist()]
    Path(sys.argv[2], f"{dist.get_rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()
"""


def test_a_ddp_script_that_never_mentions_rank_trains_each_sample_once(
    images: Path, tmp_path: Path, footprint: Footprint
) -> None:
    pytest.importorskip("torch")
    script, out = tmp_path / "ddp.py", tmp_path / "out"
    script.write_text(textwrap.dedent(DDP))
    out.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    torchrun += ["--log-dir", str(tmp_path / "logs")]
    done = subprocess.run(
        [*torchrun, str(script), str(images), str(out)],
        env=footprint.environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((out / f"{rank}.json").read_text()) for rank in range(4)]
    assert len({one["daemon"] for one in told}) == 1
    for epoch in range(2):
        assert Counter(index for one in told for index in one["epochs"][epoch]) == once(61)
    # 61 samples are three steps of 20 and one more, which is shared.
    assert {len(one["losses"]) for one in told} == {8}
    assert np.isfinite([loss for one in told for loss in one["losses"]]).all()
    replicas = {tuple(coordinate): rows for coordinate, rows in (one["replica"] for one in told)}
    assert replicas[0, 0] == replicas[0, 1] and replicas[1, 0] == replicas[1, 1]
    assert not set(replicas[0, 0]) & set(replicas[1, 0])
    footprint.is_clean()


@pytest.mark.parametrize("mpi", ["openmpi", pytest.param("mpich", marks=long_form)])
def test_mpirun_makes_one_training_in_one_folder(
    images: Path, tmp_path: Path, footprint: Footprint, mpi: str
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "run"
    settings = ["--data", str(images), "--out", str(out), "--epochs", "1", "--batch-size", "8", "--log-ids"]
    done = subprocess.run(
        [*mpirun(mpi), "-n", "2", sys.executable, "-m", "fuelrail", "train", *settings, *QUICK_TRAINING],
        env=footprint.environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out accuracy") == 1 and "steps of 16 (2 ranks)" in done.stdout, done.stdout
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seen = Counter(index for line in told if line["event"] == "ids" for index in line["ids"])
    (held_out,) = (line["val_rows"] for line in told if line["event"] == "epoch")
    assert seen == once(61 - held_out)
    footprint.is_clean()


def test_worlds_are_shown_by_who_told_of_them() -> None:
    assert str(World()) == "rank 0 of 1 (from no launcher)"
