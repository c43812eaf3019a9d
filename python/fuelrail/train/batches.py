"""What a trainer needs from a loader. `fuelrail.torch.Loader` provides all of it, and your own loader can, too.

Evaluation needs less: any iterable of such batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch


class LabelledBatch(Protocol):
    """Unpacks into images (N, C, H, W) and labels (N,)."""

    def __iter__(self) -> Iterator[torch.Tensor]: ...

    def __getitem__(self, name: str, /) -> torch.Tensor:
        """By name: "index", the record numbers of the rows, and "substituted", whether a row holds another record."""
        ...


class BatchSource(Protocol):
    """Batches epoch by epoch, and a state to resume from."""

    def __iter__(self) -> Iterator[LabelledBatch]:
        """The rest of the current epoch, or the next one."""
        ...

    def __len__(self) -> int:
        """Batches per epoch; TypeError if epochs have no length (`Recipe.steps_per_epoch` sets one)."""
        ...

    @property
    def epoch(self) -> int:
        """The current epoch, or the next one if none has started."""
        ...

    @property
    def endless(self) -> bool:
        """Whether iteration never ends; all epochs of the recipe then come from one iteration."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows of a full batch; the default learning rate is scaled to it."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Class names, or none; a checkpoint belongs to the classes it was trained with."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the current batch, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Resumes from such a state; ValueError if it belongs to another run."""
        ...

    def checkpoint_saved(self, state: dict[str, Any], /) -> None:
        """Called when a checkpoint with this state is safely stored; may do nothing."""
        ...


def lacking(loader: object) -> list[str]:
    """The parts of a `BatchSource` that an object does not have."""
    parts = [name for name in vars(BatchSource) if not name.startswith("_")]
    return [name for name in parts if not hasattr(loader, name)]
