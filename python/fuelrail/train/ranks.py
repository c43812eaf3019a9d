"""The ranks of one training: who takes part, and what they tell each other between batches.

Gradients travel in DistributedDataParallel. Here is the small talk, on the CPU (gloo, also beside nccl), so that it
never waits for an accelerator: before each batch every rank says whether it has one, of how many rows, of which
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
    """What rank 0 has said already."""


@dataclass
class Ranks:
    """This process among the ranks of a run; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    _group: Any = None

    @classmethod
    def found(cls) -> Ranks:
        """The ranks of the process group that there is, or this process alone."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))

    def share(self, numbers: Sequence[int]) -> list[list[int]]:
        """What every rank says, by rank: as many whole numbers of each."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64)
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(theirs, mine, group=self._group)
        return [each.tolist() for each in theirs]

    def gather(self, value: Any) -> list[Any]:
        """A plain value of every rank, by rank."""
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
        """What `work` returns on rank 0, on all ranks; where it raises ValueError or OSError there, `Elsewhere` here."""
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
        """Returns when every rank has come here."""
        if self.size > 1:
            dist.barrier(group=self._group)


@contextlib.contextmanager
def joined(place: World, device_type: str) -> Iterator[None]:
    """Makes this process one of the ranks while inside: torch's process group, by the address the launcher gave.

    Where it gave none (srun, mpirun) and all ranks are on this machine they meet here, at a port made of the job's name.
    Raises ValueError where they are on several and no address is known.
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
