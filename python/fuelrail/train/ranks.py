"""The ranks of one training run, and the messages between them before each batch.

Gradients travel in DistributedDataParallel. The messages here are exchanged on the CPU (gloo, even with nccl), so that
they never wait for an accelerator: before each batch, every rank says whether it has one, its number of rows and its
samples, how long it waited, and whether it was told to stop. So all ranks stop, save and end an epoch at the same step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from fuelrail.ranks import World


class Elsewhere(ValueError):
    """An error that rank 0 has already reported."""


@dataclass
class Ranks:
    """This process among the ranks of a run; a single process is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    _group: Any = None

    @classmethod
    def found(cls) -> Ranks:
        """The ranks of the process group, or this process alone if there is none."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def share(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of every rank, by rank; each rank gives the same count of whole numbers."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine, group=self._group)
        return [each.tolist() for each in theirs]

    def gather(self, value: Any) -> list[Any]:
        """A plain value from every rank, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return [float(each) for each in total.tolist()]

    def first(self, work: Callable[[], Any]) -> Any:
        """The result of `work` on rank 0, returned on all ranks; if it raises ValueError or OSError there, `Elsewhere`
        here."""
        value, error = None, None
        if self.rank == 0:
            try:
                value = work()
            except (ValueError, OSError) as raised:
                error = raised
        said, value = self.gather((None if error is None else str(error), value))[0]
        if error is not None:
            raise error
        if said is not None:
            raise Elsewhere(said)
        return value

    def wait(self) -> None:
        """A barrier: returns when every rank has called it."""
        if self.size > 1:
            dist.barrier(group=self._group)


@contextlib.contextmanager
def joined(place: World, device_type: str) -> Iterator[None]:
    """A context that joins torch's process group, at the launcher's address.

    If there is none (srun, mpirun) and all ranks are on this machine, they meet at a local port derived from the job's
    name. Raises ValueError if they are on several machines and no address is known.
    """
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        if (place.local_size or place.size) < place.size:
            raise ValueError(
                f"rank {place.rank} of {place.size}: the ranks are on several machines and do not know where to meet; "
                "set MASTER_ADDR to the first machine's name and MASTER_PORT to a free port, or start them by torchrun"
            )
        seed = sum(byte * 31**at for at, byte in enumerate((place.job or "").encode()))
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(20_000 + seed % 10_000))
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=place.rank, world_size=place.size)
    try:
        yield
    finally:
        dist.destroy_process_group()
