"""The end of a run: its results, its bottleneck, and pictures of the model's inputs and mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint
from .batches import LabelledBatch
from .precision import Precision

if TYPE_CHECKING:
    from fuelrail.torch import Loader

    from .trainer import Trainer

#: The number of held-out images shown: those with the highest loss.
WORST = 24


@dataclass(frozen=True)
class Look:
    """A model's results by class: `confusion[truth, said]` counts images. `worst` has the images with the highest
    loss, with true class, predicted class, and the prediction's score."""

    confusion: torch.Tensor
    worst: list[tuple[torch.Tensor, int, int, float]]


@torch.no_grad()
def look(
    model: nn.Module,
    loader: Iterable[LabelledBatch],
    classes: int,
    precision: Precision,
    device: torch.device,
) -> Look:
    """Iterates over a loader once more, for the pictures."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    worst: list[tuple[float, int, torch.Tensor, int, int, float]] = []
    seen = 0
    model.eval()
    for batch in loader:
        images, labels = batch
        kept = ~torch.as_tensor(batch["substituted"]).bool().cpu()
        if not bool(kept.any()):
            continue
        images, labels = images.to(device), labels.to(device)
        with precision.autocast():
            logits = model(images).float()
        losses = F.cross_entropy(logits, labels, reduction="none").cpu()
        scores, said = logits.softmax(dim=1).cpu().max(dim=1)
        labels = labels.cpu()
        confusion.index_put_(
            (labels[kept], said[kept]), torch.ones(int(kept.sum()), dtype=torch.int64), accumulate=True
        )
        order = losses.masked_fill(~kept, -1.0).argsort(descending=True)[: min(WORST, int(kept.sum()))]
        for row in order.tolist():
            # The running number, so that equal losses are never compared by their images.
            seen += 1
            found = images[row].detach().cpu().clone(), int(labels[row]), int(said[row]), float(scores[row])
            worst.append((-float(losses[row]), seen, *found))
        worst = sorted(worst, key=lambda each: each[:2])[:WORST]
    return Look(confusion, [each[2:] for each in worst])


def report(
    trainer: Trainer,
    loader: Loader,
    shown: tuple[torch.Tensor, list[int]] | None,
    out: Path,
    title: str,
) -> None:
    """Prints the end of a run in a few lines: accuracy, bottleneck, files. Called on all ranks."""
    if trainer.ranks.rank == 0:
        _say(trainer, loader)
    try:
        _draw(trainer, loader, shown, out, title)
    except ImportError:
        if trainer.ranks.rank == 0:
            print("the pictures need matplotlib: pip install matplotlib")
    if trainer.ranks.rank > 0:
        return
    from .page import write_page

    print(f"page: {write_page(out, title)[0]}")
    if (out / "best.pt").exists():
        print(f"weights: {out / 'best.pt'}")


def _say(trainer: Trainer, loader: Loader) -> None:
    last = trainer.history[-1] if trainer.history else {}
    if last.get("val_rows"):
        top1, top5, best = last["val_top1"], last["val_top5"], trainer.best or 0.0
        print(
            f"held-out accuracy: top-1 {top1:.2%}, top-5 {top5:.2%} on {last['val_rows']:,} images "
            f"(best epoch: {best:.2%})"
        )
        if last["val_left_out"]:
            print(f"not counted: {last['val_left_out']} held-out images that could not be read")
    if trainer.total_pace.images:
        print(f"speed: {trainer.total_pace.text()}")
    print(loader.stats()["verdict"]["text"])


def _draw(
    trainer: Trainer, loader: Loader, shown: tuple[torch.Tensor, list[int]] | None, out: Path, title: str
) -> None:
    from .pictures import draw_confusion, draw_contact_sheet, draw_curves

    found, step = _look_again(trainer, out)
    if trainer.ranks.rank > 0:
        return
    classes = loader.classes

    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    draw_curves(out / "metrics.jsonl", out / "curve.png", title)
    print(f"curve: {out / 'curve.png'}")
    if shown is not None:
        images, labels = shown
        names = [name(label) for label in labels]
        draw_contact_sheet(images, names, out / "samples.png", f"{title}: as the model saw them")
        print(f"samples: {out / 'samples.png'}")
    if found is None:
        return
    if found.worst:
        names = [
            f"{name(truth)}\n{name(said)} {sure:.0%}" if truth != said else f"{name(truth)}\n{sure:.0%} sure"
            for _, truth, said, sure in found.worst
        ]
        images = torch.stack([each[0] for each in found.worst])
        said = f"{title}: held-out images it is furthest from (truth, then what it says), step {step}"
        draw_contact_sheet(images, names, out / "worst.png", said)
        print(f"worst: {out / 'worst.png'}")
    names = [name(label) for label in range(len(found.confusion))]
    draw_confusion(found.confusion, names, out / "confusion.png", f"{title}: held-out images, step {step}")
    print(f"confusion: {out / 'confusion.png'}{_most_confused(found.confusion, names)}")


def _look_again(trainer: Trainer, out: Path) -> tuple[Look | None, int]:
    """Evaluates the best model on the held-out data, each rank its share; also returns its step."""
    if trainer.val_loader is None or not trainer.history:
        return None, 0
    step = trainer.step
    if (out / "best.pt").exists():
        best = checkpoint.load(out / "best.pt")
        trainer.averaged.load_state_dict(best["ema"] or best["model"])
        step = best["step"]
    classes = trainer.describe["num_classes"]
    found = look(trainer.averaged, trainer.val_loader, classes, trainer.precision, trainer.device)
    counts = trainer.ranks.sum([float(each) for each in found.confusion.flatten().tolist()])
    return Look(torch.tensor(counts).reshape(classes, classes).long(), found.worst), step


def _most_confused(confusion: torch.Tensor, names: Sequence[str]) -> str:
    """The pair of classes confused most often, if there is one."""
    wrong = confusion.clone().fill_diagonal_(0)
    if int(wrong.sum()) == 0:
        return ""
    truth, said = divmod(int(wrong.argmax()), len(names))
    share: Any = wrong[truth, said] / confusion[truth].sum()
    return f" (most often: {names[truth]} taken for {names[said]}, {float(share):.0%} of them)"
