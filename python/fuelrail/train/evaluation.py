"""Accuracy over a loader, every row counted once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .batches import LabelledBatch
from .metrics import IdChain
from .precision import Precision
from .ranks import Ranks


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: mean cross entropy, top-1 and top-5 in [0, 1], and the number of rows.

    `left_out` counts rows whose record could not be read and was substituted by another: counting the
    substitute would weigh that record twice.
    """

    loss: float
    top1: float
    top5: float
    rows: int
    left_out: int = 0


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[LabelledBatch],
    *,
    precision: Precision,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Runs `model` in evaluation mode over one epoch of `loader` and returns the figures, weighted by rows.

    Batches are fuelrail batches: `images, labels = batch`, and `batch["substituted"]`. A batch may have no
    rows. Labels are class numbers (N,), or shares (N, classes), of which the largest counts as correct. With
    fewer than five classes, top-5 counts all of them. The model's mode is restored. With several `ranks`, the figures
    are over all rows together, whether each measures its share or all of them.
    """
    modes = {module: module.training for module in model.modules()}
    ranks, ids = ranks or Ranks(), IdChain()
    model.eval()
    # Sums stay on the device until the end: reading one would wait for the accelerator after every batch.
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    left_out = 0
    try:
        for batch in loader:
            images, labels = batch
            if ranks.size > 1:
                ids.add(torch.as_tensor(batch["index"]).tolist())
            kept = ~torch.as_tensor(batch["substituted"]).bool().cpu()
            left_out += int((~kept).sum())
            if not bool(kept.any()):
                continue
            images, labels = images.to(device), labels.to(device)
            with precision.autocast():
                logits = model(images)
            sums += _sums(logits.float(), labels, kept.to(device))
    finally:
        for module, training in modes.items():
            module.training = training
    loss, top1, top5, rows = sums.tolist()
    if ranks.size > 1 and len(set(ranks.gather(ids.state))) > 1:
        loss, top1, top5, rows, left = ranks.sum([loss, top1, top5, rows, left_out])
        left_out = int(left)
    if rows == 0:
        nan = float("nan")
        return Evaluation(nan, nan, nan, 0, left_out)
    return Evaluation(loss / rows, top1 / rows, top5 / rows, int(rows), left_out)


def _sums(logits: torch.Tensor, labels: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    logits, labels = logits[kept], labels[kept]
    loss = F.cross_entropy(logits, labels, reduction="sum").double()
    meant = labels.argmax(dim=1) if labels.ndim == 2 else labels
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == meant[:, None]
    rows = torch.tensor(len(labels), dtype=torch.float64, device=logits.device)
    return torch.stack([loss, ranked[:, 0].sum().double(), ranked.any(dim=1).sum().double(), rows])


def training_mode(model: nn.Module) -> None:
    """Training mode, except for norms with frozen weights: their running statistics are frozen, too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if norm and own and not any(each.requires_grad for each in own):
            module.eval()
