"""A loader without a daemon: fuelrail.torch.Loader's interface and token rules over tensors in memory."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch


class FakeBatch:
    """Unpacks to (images, labels); indexes by field name."""

    def __init__(self, fields: dict[str, torch.Tensor]) -> None:
        self.fields = fields

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.fields["image"], self.fields["label"]))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.fields[name]


class FakeLoader:
    """`count` pictures of one bright square each; its place says the class. Order is pure in (seed, epoch).

    `rank_rows` makes the last batch of an epoch that short (0: a batch without rows, as a rank can get in the
    tail). `delay` seconds pass per batch. `fail_at` raises at that batch of every epoch. Of `world_size` ranks each has
    every so many rows of a global batch.
    """

    def __init__(
        self,
        count: int = 64,
        batch_size: int = 8,
        *,
        seed: int = 0,
        shuffle: bool = True,
        tail_rows: int | None = None,
        delay: float = 0.0,
        fail_at: int | None = None,
        substituted: tuple[int, ...] = (),
        size: int = 16,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.tail_rows, self.delay, self.fail_at, self.substituted = tail_rows, delay, fail_at, substituted
        self.classes = ["top", "bottom", "left", "right", "centre", "corner"]
        self.size = size
        self.epoch, self._position = 0, 0

    endless = False

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[FakeBatch]:
        order = list(range(self.count))
        if self.shuffle:
            random.Random(self.seed * 1000 + self.epoch).shuffle(order)
        while self._position < len(self):
            at = self._position
            if self.fail_at == at:
                raise OSError("the fake daemon died")
            time.sleep(self.delay)
            whole = self.batch_size * self.world_size
            rows = order[at * whole : (at + 1) * whole][self.rank :: self.world_size]
            if self.tail_rows is not None and at == len(self) - 1:
                rows = rows[: self.tail_rows]
            self._position = at + 1
            yield self._batch(rows)
        self.epoch, self._position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self._position, "seed": self.seed}

    def load_state_dict(self, token: dict[str, Any]) -> None:
        if token["seed"] != self.seed:
            raise ValueError(f"the token is of seed {token['seed']}, this loader has {self.seed}")
        self.epoch, self._position = token["epoch"], token["position"]

    def checkpoint_saved(self, token: dict[str, Any]) -> None:
        pass

    def stats(self) -> dict[str, Any]:
        return {"verdict": {"stage": "train", "text": "Bottleneck: the training step"}}

    def close(self) -> None:
        pass

    def _batch(self, rows: list[int]) -> FakeBatch:
        images = torch.zeros(len(rows), 3, self.size, self.size)
        labels = torch.tensor([row % len(self.classes) for row in rows], dtype=torch.int64)
        half, end = self.size // 2, self.size
        corners = [
            (0, half // 2),
            (half, 0),
            (half // 2, 0),
            (half // 2, half),
            (half // 2, half // 2),
            (0, 0),
        ]
        for image, row, label in zip(images, rows, labels.tolist(), strict=True):
            top, left = corners[label]
            noise = torch.Generator().manual_seed(row)
            image += 0.3 * torch.randn(image.shape, generator=noise)
            image[:, top : min(top + half, end), left : min(left + half, end)] += 1.0
        return FakeBatch(
            {
                "image": images,
                "label": labels,
                "index": torch.tensor(rows, dtype=torch.int64),
                "substituted": torch.tensor([row in self.substituted for row in rows], dtype=torch.bool),
            }
        )


def as_a_rank(script: str, out: str, environment: dict[str, str], said: str) -> None:
    """Runs a script as one process of several: with that environment, and what it says in the file `said`."""
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1), os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = ["script", out]
    exec(compile(script, "script", "exec"), {"__name__": "script"})


def run_here(
    capsys: pytest.CaptureFixture[str], *arguments: object, command: str = "train"
) -> tuple[int, str, str]:
    """A command in this process, where starting torch would take longest: exit code, stdout and stderr."""
    from fuelrail.train import applying, cli

    given = [str(argument) for argument in arguments]
    try:
        code = cli.main(given) if command == "train" else applying.main(command, given)
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err
