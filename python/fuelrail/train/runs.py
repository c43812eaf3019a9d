"""The model of a finished or current run, ready for use.

run = load_run("runs/first")
loader = Loader("photos", transforms=run.transforms(), batch_size=64)
for batch in loader:
    scores = run.model(batch["image"]).softmax(1)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint
from .checkpoint import Checkpoints
from .data import val_transforms
from .models import build_model


@dataclass(frozen=True)
class Run:
    """A trained model: in evaluation mode, with the names of its classes (empty if labels were numbers), the side of
    its images, and `describe`, the training's arguments."""

    model: nn.Module
    classes: list[str]
    size: int
    path: Path
    step: int
    describe: dict[str, Any]

    def transforms(self) -> list[Any]:
        """The preprocessing of its images, for a Loader: the same as in evaluation."""
        from fuelrail import transforms as T

        return val_transforms(T, self.size)

    def name(self, label: int) -> str:
        """The name of a class, by its number."""
        return self.classes[label] if label < len(self.classes) else str(label)


def load_run(run: str | os.PathLike[str], device: str | torch.device = "cpu") -> Run:
    """The model of a `fuelrail train` run: best.pt of its folder, else the latest checkpoint; or from one file.

    With `--ema-decay`, it is the evaluated average. Raises ValueError if there is no checkpoint.
    """
    path = _file(Path(run))
    state = checkpoint.load(path)
    describe = state["describe"]
    if "model" not in describe or "num_classes" not in describe:
        raise ValueError(
            f"{path} does not say which model it is of: it was made by a script; build that model and give it "
            'torch.load(...)["model"]'
        )
    model = build_model(describe["model"], describe["num_classes"])
    model.load_state_dict(state["ema"] or state["model"])
    return Run(
        model.eval().to(device), list(state["classes"]), describe["size"], path, state["step"], describe
    )


@torch.no_grad()
def predict(run: Run, loader: Any, top: int = 5) -> Iterator[dict[str, Any]]:
    """For every record of a loader: its key, the most likely class, its probability (0 to 1), and the `top` classes."""
    device = next(run.model.parameters()).device
    for batch in loader:
        if not batch.rows:
            continue
        scores = run.model(batch["image"].to(device)).float().softmax(dim=1)
        best = scores.topk(min(top, scores.shape[1]), dim=1)
        rows = zip(loader.keys(batch), best.indices.tolist(), best.values.tolist(), strict=True)
        for key, labels, values in rows:
            named = [[run.name(label), round(value, 6)] for label, value in zip(labels, values, strict=True)]
            yield {"key": key, "label": named[0][0], "score": named[0][1], "top": named}


def _file(run: Path) -> Path:
    if run.is_file():
        return run
    if (run / "best.pt").is_file():
        return run / "best.pt"
    if newest := Checkpoints(run).paths():
        return newest[0]
    raise ValueError(f"{run}: there is no run here: neither best.pt nor checkpoints/step-*.pt")
