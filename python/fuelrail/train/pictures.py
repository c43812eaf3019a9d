"""The pictures a run leaves: its curves, images with a line under each, and what is taken for what. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .metrics import read_metrics

#: ImageNet's channel means and standard deviations, of pixels in [0, 1]; what `Normalize` of `fuelrail train`
#: uses.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_INK, _FAINT, _BLUE, _ORANGE = "#1c1e21", "#c9ced6", "#2b6cb0", "#c2571a"


def draw_curves(metrics: Path, target: Path, title: str) -> None:
    """Draws loss and accuracy over epochs from a metrics file into `target` (PNG). Raises ImportError without
    matplotlib."""
    records = read_metrics(metrics)
    steps = [record for record in records if record["event"] == "step" and record.get("loss") is not None]
    epochs = [record for record in records if record["event"] == "epoch"]
    measured = [record for record in epochs if record.get("val_top1") is not None]
    per_epoch = epochs[0]["step"] / (epochs[0]["epoch"] + 1) if epochs else max(len(steps), 1)

    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title, color=_INK, fontsize=12)
    left.plot(
        [record["step"] / per_epoch for record in steps],
        [record["loss"] for record in steps],
        color=_FAINT,
        linewidth=1,
        label="train, as logged",
    )
    # The held-out loss is plain cross entropy; with smoothed targets the training loss cannot get as low.
    recipe: dict[str, Any] = next((record["recipe"] for record in records if record["event"] == "run"), {})
    smoothed = f", targets smoothed by {recipe['label_smoothing']:g}" if recipe.get("label_smoothing") else ""
    ends = [record["epoch"] + 1 for record in epochs]
    left.plot(
        ends,
        [record["train_loss"] for record in epochs],
        color=_BLUE,
        marker=".",
        label=f"train{smoothed}",
    )
    if measured:
        held_out = [record["epoch"] + 1 for record in measured]
        left.plot(
            held_out, [record["val_loss"] for record in measured], color=_ORANGE, marker=".", label="held out"
        )
        top1 = [100 * record["val_top1"] for record in measured]
        top5 = [100 * record["val_top5"] for record in measured]
        right.plot(held_out, top5, color=_FAINT, marker=".", label="top-5")
        right.plot(held_out, top1, color=_ORANGE, marker=".", label="top-1")
        best = max(range(len(top1)), key=top1.__getitem__)
        right.plot(
            [held_out[best]],
            [top1[best]],
            "o",
            markersize=9,
            markerfacecolor="none",
            color=_INK,
            clip_on=False,
        )
        right.set_title(
            f"held-out accuracy, best {top1[best]:.1f}% after epoch {held_out[best]}", fontsize=10
        )
        right.set_ylim(min(0.95 * min(top1), 90), 100.5)
        _legend_below(right)
    else:
        right.text(0.5, 0.5, "nothing was held out", ha="center", va="center", color=_INK)
    left.set_title("cross entropy", fontsize=10)
    left.set_ylim(bottom=0)
    _legend_below(left)
    right.set_ylabel("%")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#eceef1")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _write(figure, target)


def draw_contact_sheet(images: torch.Tensor, names: Sequence[str], target: Path, title: str) -> None:
    """Draws normalised `images` (N, 3, H, W) with a name or two lines over each as a grid into `target` (PNG).

    Raises ImportError without matplotlib.
    """
    pixels = (
        images.detach().float().cpu() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    )
    pixels = pixels.clamp(0, 1).permute(0, 2, 3, 1)
    columns = min(8, max(1, len(pixels)))
    lines = max((name.count("\n") for name in names), default=0)
    rows = -(-len(pixels) // columns)
    figure, grid = _pyplot().subplots(
        rows,
        columns,
        figsize=(1.35 * columns, (1.52 + 0.15 * lines) * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(title, color=_INK, fontsize=11)
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        if place < len(pixels):
            # Small pictures are shown as the squares they are, not as a blur that was never in the batch.
            axes.imshow(
                pixels[place].numpy(), interpolation="nearest" if pixels.shape[1] < 64 else "antialiased"
            )
            shown = "\n".join(map(_shorten, names[place].split("\n")))
            axes.set_title(shown, fontsize=8, color=_INK, pad=3)
    _write(figure, target)


def draw_confusion(confusion: torch.Tensor, names: Sequence[str], target: Path, title: str) -> None:
    """Draws counts `confusion[truth, said]` as shares of each truth into `target` (PNG). Raises ImportError without
    matplotlib."""
    shares = 100 * confusion.double() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    count = len(names)
    side = min(14.0, 3.0 + 0.42 * count)
    figure, axes = _pyplot().subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_title(title, fontsize=10, color=_INK)
    axes.set_xlabel("what the model says")
    axes.set_ylabel("truth")
    if count <= 40:
        axes.set_xticks(range(count), [_shorten(name) for name in names], rotation=90, fontsize=8)
        axes.set_yticks(range(count), [_shorten(name) for name in names], fontsize=8)
    if count <= 20:
        for truth, said in (confusion > 0).nonzero().tolist():
            share = float(shares[truth, said])
            ink = "white" if share > 55 else _INK
            axes.text(said, truth, f"{share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    _write(figure, target)


def _legend_below(axes: Any) -> None:
    """Where no curve is."""
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8)


def _write(figure: Any, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    _pyplot().close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _shorten(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
