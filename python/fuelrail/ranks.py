"""Finds this process's rank in its job from the launcher's variables, and its rows of each batch.

```
 torch.distributed, jax.distributed ─┐
 RANK (torchrun), OMPI_*, PMI_*, ────┼─▶ World ──┬─▶ Seat: whose rows of each global batch (mesh=, replication=)
 SLURM_* of a job step               ─┘          └─▶ Node: the daemon that the job's processes here have together
```

Nothing here imports torch or jax: a process that is part of a process group has imported them.

MPI's variables come before Slurm's: mpirun starts its own helpers with srun, one on each node, and the ranks inherit
their Slurm variables. Slurm's are used only in a job step. A batch script, and a notebook or shell in an allocation,
also see the allocation's tasks, but are not one of them: they would silently train on a part of the data.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuelrail.checks import shown
from fuelrail.errors import ConfigError

logger = logging.getLogger("fuelrail")

_REMEDY = "correct that, or give the Loader rank= and world_size="


@dataclass(frozen=True)
class World:
    """This process's place in its job, from the launcher. A single process is rank 0 of 1."""

    rank: int = 0
    """number of this process."""
    size: int = 1
    """how many there are."""
    local_rank: int | None = None
    """its number among those of this node, where it is known."""
    local_size: int | None = None
    """how many are on this node, where it is known."""
    told_by: str = ""
    """who says so: "torch.distributed", or the names of variables. Empty where nobody does."""
    job: str | None = None
    """what the job's processes on this node have in common and no other job has, where it is known."""

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} (from {self.told_by or 'no launcher'})"


@dataclass(frozen=True)
class _Launcher:
    """The variables of a launcher. The job's name differs between jobs that run at once on a node."""

    rank: str
    size: str
    local_rank: str
    local_size: str
    job: tuple[str, ...]

    def told(self, said: Mapping[str, str]) -> World | None:
        if self.rank not in said and self.size not in said:
            return None
        for name, other in ((self.rank, self.size), (self.size, self.rank)):
            if name not in said:
                raise ConfigError(f"{other}={said[other]} is set and {name} is not: {_REMEDY}")
        return _world(
            said,
            (self.rank, _number(said, self.rank)),
            (self.size, _number(said, self.size)),
            _number(said, self.local_rank) if self.local_rank in said else None,
            _number(said, self.local_size) if self.local_size in said else None,
            self.job,
        )


_TORCHRUN = _Launcher(
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
)
_OPEN_MPI = _Launcher(
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
)
_PMI = _Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ())

#: Slurm's step numbers from here on are not job steps: batch script, interactive shell, external.
_NO_STEPS = 0xFFFF_FFF0


def from_env() -> World:
    """This process's rank and the world size, as `rank="auto"` finds them.

    From torch.distributed (or jax.distributed) if it is initialised; else from the environment variables of torchrun,
    Open MPI, PMI or Slurm. Raises `fuelrail.ConfigError` if these are inconsistent.
    """
    return _initialised() or from_variables(os.environ)


def from_variables(environment: Mapping[str, str]) -> World:
    """The world according to the launchers' variables."""
    said = {name: value.strip() for name, value in environment.items() if value.strip()}
    # The variables that init_process_group uses take precedence, even for a single process.
    if (world := _TORCHRUN.told(said)) is not None:
        return world
    found = []
    for told in (_OPEN_MPI.told, _PMI.told, _slurm):
        if (world := told(said)) is not None:
            # A single Slurm task may be an mpirun with many ranks.
            if world.size > 1:
                return world
            found.append(world)
    if not found and "PMIX_RANK" in said:
        raise ConfigError(
            f"PMIX_RANK={said['PMIX_RANK']} says that this is one of several processes, and no variable says of how "
            "many: give the Loader rank= and world_size="
        )
    return found[0] if found else World()


def _initialised() -> World | None:
    """The world according to an initialised process group."""
    told_by, rank, size = max(_of_torch(), _of_jax(), key=lambda told: told[2])
    if not size:
        return None
    try:
        launched = from_variables(os.environ)
    except ConfigError:
        launched = World()
    if (launched.rank, launched.size) == (rank, size):
        return World(rank, size, launched.local_rank, launched.local_size, told_by, launched.job)
    job = _named(os.environ, _TORCHRUN.job) or _parent()
    return World(rank, size, None, None, told_by, job and f"{size} {job}")


def _of_torch() -> tuple[str, int, int]:
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return "", 0, 0
    return "torch.distributed", int(distributed.get_rank()), int(distributed.get_world_size())


def _of_jax() -> tuple[str, int, int]:
    jax = sys.modules.get("jax")
    is_initialised = getattr(getattr(jax, "distributed", None), "is_initialized", None)
    if jax is None or is_initialised is None or not is_initialised():
        return "", 0, 0
    return "jax.distributed", int(jax.process_index()), int(jax.process_count())


def _slurm(said: Mapping[str, str]) -> World | None:
    if "SLURM_PROCID" not in said or _number(said, "SLURM_STEP_ID", _NO_STEPS) >= _NO_STEPS:
        return None
    # The step has the number of running tasks; SLURM_NTASKS may be the allocation's.
    size = next(
        (name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") if name in said), None
    )
    if size is None:
        raise ConfigError(f"SLURM_PROCID={said['SLURM_PROCID']} is set and SLURM_NTASKS is not: {_REMEDY}")
    # The allocation's may differ from the running tasks.
    tasks = said.get("SLURM_STEP_TASKS_PER_NODE", "")
    return _world(
        said,
        ("SLURM_PROCID", _number(said, "SLURM_PROCID")),
        (size, _number(said, size)),
        _number(said, "SLURM_LOCALID") if "SLURM_LOCALID" in said else None,
        _on_node(tasks, _number(said, "SLURM_NODEID", 0)),
        ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    )


def _on_node(tasks: str, node: int) -> int | None:
    """Tasks on a node, from "4(x2),3": four on each of the first two nodes, three on the third."""
    each = [
        int(found[1])
        for part in tasks.split(",")
        if (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()))
        for _ in range(min(int(found[2] or 1), 1 << 20))
    ]
    return each[node] if node < len(each) else None


def _number(said: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in said and default is not None:
        return default
    if not (said[name].isascii() and said[name].isdecimal()):
        raise ConfigError(f"{name}={shown(said[name])} is no whole number: {_REMEDY}")
    return int(said[name])


def _world(
    said: Mapping[str, str],
    rank: tuple[str, int],
    size: tuple[str, int],
    local_rank: int | None,
    local_size: int | None,
    job: tuple[str, ...],
) -> World:
    told_by = f"{rank[0]} and {size[0]}"
    if rank[1] >= size[1]:
        raise ConfigError(f"{rank[0]}={rank[1]} is not below {size[0]}={size[1]}: {_REMEDY}")
    for here, least in ((local_size, local_rank), (size[1], local_size and local_size - 1)):
        if here is not None and least is not None and least >= here:
            raise ConfigError(
                f"{told_by} say process {rank[1]} of {size[1]}, and it would be number {local_rank} of {local_size} on "
                f"this node: {_REMEDY}"
            )
    name = _named(said, job) or _parent()
    return World(rank[1], size[1], local_rank, local_size, told_by, name and f"{size[1]} {name}")


def _named(said: Mapping[str, str], names: Sequence[str]) -> str | None:
    """Those of these variables that are set, as one text."""
    return " ".join(f"{name}={said[name]}" for name in names if said.get(name)) or None


def _parent() -> str | None:
    """The process that started this one; the same for all ranks started side by side."""
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(") ")[2].split()[19]
    except (OSError, IndexError):
        return None
    # The parent of all orphans identifies nothing.
    return f"child of {parent} since {began}" if parent > 1 else None


# Rows and node of a Loader ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seat:
    """The rank whose rows of each global batch a Loader delivers, and the job of its process."""

    rank: int
    world_size: int
    world: World
    #: Whether rank and world size come from the job.
    is_auto: bool
    #: Whether the other processes of the job make the same Loader for their rows.
    is_of_all: bool

    def check(self) -> None:
        """Raises ConfigError if a process group initialised meanwhile has a different rank or size."""
        now = _initialised() if self.is_auto else None
        if now is not None and (now.rank, now.size) != (self.world.rank, self.world.size):
            raise ConfigError(
                f"this Loader was made as {self.world}, and now this process is {now}: make the Loader after the "
                "process group is initialised, or give it rank= and world_size="
            )

    @property
    def job(self) -> str | None:
        """The job whose processes on this node share a daemon; None if this process has its own."""
        return self.world.job if self.world.size > 1 and self.world.local_size != 1 else None

    @property
    def is_first_here(self) -> bool:
        """Whether this process logs and shows progress for its node."""
        return self.job is None or not (
            self.world.rank if self.world.local_rank is None else self.world.local_rank
        )

    @contextmanager
    def member(self) -> Iterator[tuple[int, int, int, int | None]]:
        """Numbers the Loaders of each process that attach; one that fails is not counted."""
        process = (self.world.rank, self.world.size, self.world.local_size or 1)
        if not self.is_of_all:
            yield (*process, None)
            return
        key = (os.getpid(), self.job or "")
        with _lock:
            number = _made[key] = _made.get(key, -1) + 1
        try:
            yield (*process, number)
        except BaseException:
            with _lock:
                if _made[key] == number:
                    _made[key] -= 1
            raise


_lock = threading.Lock()
#: The number of the last Loader of each process and job, counted from 0.
_made: dict[tuple[int, str], int] = {}
_said: set[tuple[int, str]] = set()


def seat(
    rank: int | Literal["auto"],
    world_size: int | Literal["auto"],
    mesh: Any,
    data_dims: Sequence[str] | None,
    replication: int,
) -> Seat:
    """The seat from a Loader's arguments, or from the job if they are "auto"."""
    if mesh is not None:
        return _of_mesh(rank, world_size, mesh, data_dims, replication)
    if data_dims is not None:
        raise ConfigError("data_dims= names dimensions of mesh=; give that, too")
    is_auto = world_size == "auto" or (rank == "auto" and world_size != 1)
    if is_auto:
        world = from_env()
        own, size = _completed(rank, world_size, world)
        if world.size > 1:
            _once(logging.INFO, str(world))
    else:
        own, size = 0 if rank == "auto" else rank, 1 if world_size == "auto" else world_size
        try:
            world = from_env()
        except ConfigError:
            world = World()
        if size == 1 and world.size > 1:
            _once(
                logging.WARNING,
                f"world_size=1 is given, and this process is {world}: each process gets all samples. Leave rank= and "
                "world_size= out to split them",
            )
    if size % replication:
        raise ConfigError(f"replication={replication} does not divide the {size} ranks into replicas")
    is_of_all = (own, size) == (world.rank, world.size)
    return Seat(own // replication, size // replication, world, is_auto, is_of_all)


def _completed(
    rank: int | Literal["auto"], world_size: int | Literal["auto"], world: World
) -> tuple[int, int]:
    """Rank and world size, if at most one of them is given."""
    if world_size == "auto":
        if rank == "auto":
            return world.rank, world.size
        if rank >= world.size:
            raise ConfigError(f"rank={rank} is not below the {world.size} of {world}: give world_size=, too")
        return rank, world.size
    if rank == "auto":
        if world_size != world.size:
            raise ConfigError(f"world_size={world_size} is given without rank=, and this process is {world}")
        return world.rank, world_size
    return rank, world_size


def _of_mesh(
    rank: object, world_size: object, mesh: Any, data_dims: Sequence[str] | None, replication: int
) -> Seat:
    if rank != "auto" or world_size != "auto" or replication != 1:
        raise ConfigError("mesh= says whose rows they are: leave rank=, world_size= and replication= out")
    try:
        sizes = [int(size) for size in mesh.shape]
        names = list(mesh.mesh_dim_names or ())
        coordinate = mesh.get_coordinate()
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"mesh= takes a torch DeviceMesh; {shown(mesh)} was given ({error})") from None
    if data_dims is None and len(sizes) > 1:
        known = ", ".join(map(repr, names)) or "no names"
        raise ConfigError(
            f"mesh= has {len(sizes)} dimensions ({known}): say which of them split the data, like "
            'data_dims=("dp",) or mesh=mesh["dp"]'
        )
    for name in data_dims or ():
        if name not in names:
            raise ConfigError(
                f"data_dims={shown(list(data_dims or ()))}: the mesh has {', '.join(names) or 'no names'}"
            )
    if coordinate is None:
        raise ConfigError("this process is not in mesh=; make the Loader where it is used")
    position, total = 0, 1
    for at, size in enumerate(sizes):
        if data_dims is None or names[at] in data_dims:
            position, total = position * size + int(coordinate[at]), total * size
    world = from_env()
    _once(logging.INFO, f"{world}; of the data, {position} of {total}")
    return Seat(position, total, world, True, True)


def warn_of_empty_batches(batching: Mapping[str, Any]) -> None:
    """Warns once that ranks get a batch without rows at the end of every epoch."""
    samples, ranks = batching["len"], batching["world_size"]
    if samples is None or batching["drop_last"] or (batching["batch_size"] > 1 and samples >= ranks):
        return
    if left := samples % ranks:
        samples = "1 sample" if left == 1 else f"{left} samples"
        _once(
            logging.WARNING,
            f"the last step of an epoch has {samples} for {ranks} ranks: the others get a batch of 0 rows, and the mean "
            "of no losses is nan. drop_last=True leaves that step out",
        )


def _once(level: int, text: str) -> None:
    """Once per process."""
    if (key := (os.getpid(), text)) not in _said:
        _said.add(key)
        logger.log(level, "%s", text)
