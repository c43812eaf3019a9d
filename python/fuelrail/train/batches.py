"""What a trainer needs of a loader: `fuelrail.torch.Loader` has all of it, and a loader of your own can.

Evaluation needs less: anything that can be iterated over and gives such batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch


class LabelledBatch(Protocol):
    """Unpacks into images (N, C, H, W) and labels (N,)."""

    def __iter__(self) -> Iterator[torch.Tensor]: ...

    def __getitem__(self, name: str, /) -> torch.Tensor:
        """By name: "index", the record numbers of the rows, and "substituted", whether a row is of another record."""
        ...


class BatchSource(Protocol):
    """Batches epoch by epoch, and a state to go on from."""

    def __iter__(self) -> Iterator[LabelledBatch]:
        """The rest of the epoch under way, or the next one."""
        ...

    def __len__(self) -> int:
        """Batches per epoch; TypeError where epochs have no length (`Recipe.steps_per_epoch` gives them one)."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one when none is."""
        ...

    @property
    def endless(self) -> bool:
        """Whether iterating never ends; all epochs of the recipe are then of one iteration."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows of a full batch, which the default learning rate is scaled to."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Class names, or none; a checkpoint is of the classes it was trained with."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands after the batch in hand, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Goes on from such a state; ValueError where it is of another run."""
        ...

    def checkpoint_saved(self, state: dict[str, Any], /) -> None:
        """Told when a checkpoint with this state is safely stored; may do nothing."""
        ...


def lacking(loader: object) -> list[str]:
    """The parts of a `BatchSource` that an object does not have."""
    parts = [name for name in vars(BatchSource) if not name.startswith("_")]
    return [name for name in parts if not hasattr(loader, name)]
