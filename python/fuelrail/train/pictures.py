"""The pictures of a run: its curves, images with captions, and the confusion matrix. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .metrics import read_metrics

#: ImageNet's channel means and standard deviations, of pixels in [0, 1], as in `Normalize` of `fuelrail train`.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_INK, _FAINT, _GRAY, _BLUE, _ORANGE = "#1c1e21", "#c9ced6", "#8a929e", "#2b6cb0", "#c2571a"
#: Width of eight pictures side by side, in inches.
_WIDTH, _DPI = 10.8, 130


def draw_curves(metrics: Path, target: Path, title: str) -> None:
    """Draws loss and accuracy over epochs from a metrics file into `target` (PNG). Raises ImportError without
    matplotlib."""
    records = read_metrics(metrics)
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    figure.suptitle(title, color=_INK, fontsize=12)
    _draw_learning(left, right, records)
    for axes in (left, right):
        _legend_below(axes)
    _write(figure, target)


def draw_overview(
    metrics: Path, target: Path, title: str, below: str = "", sheet: Path | None = None
) -> None:
    """Draws a whole run into `target`, a PNG or an SVG: loss, accuracy, speed, waiting for data, queue depths; then the
    picture `sheet`, pixel by pixel, and the text `below`. Raises ImportError without matplotlib."""
    pyplot = _pyplot()
    records = read_metrics(metrics)
    picture = None
    if sheet is not None and sheet.exists():
        picture = pyplot.imread(sheet)
    shown = 0.0 if picture is None else picture.shape[0] / picture.shape[1] * _WIDTH
    written = 0.0 if not below else 0.25 + 0.155 * (below.count("\n") + 1)
    heights = [6.9, shown, written]
    figure = pyplot.figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(3, 1, height_ratios=[max(each, 1e-3) for each in heights], hspace=0)
    parts[0].suptitle(title, color=_INK, fontsize=13)
    upper, lower = parts[0].subfigures(2, 1, height_ratios=[3.6, 3.1], hspace=0)
    loss, accuracy = upper.subplots(1, 2)
    _draw_learning(loss, accuracy, records)
    speed, fed, queue = lower.subplots(1, 3)
    _draw_feeding(speed, fed, queue, records)
    for axes in (loss, accuracy):
        _legend_below(axes)
    for axes in (fed, queue):
        _legend_below(axes, 0.22)
    if picture is not None:
        axes = parts[1].add_axes((0, 0, 1, 1))
        axes.imshow(picture, aspect="auto", interpolation="none")
        axes.axis("off")
    if below:
        parts[2].text(
            0.02, 0.94, below, family="monospace", fontsize=8, va="top", color=_INK, linespacing=1.35
        )
    _write(figure, target)


def _draw_learning(left: Any, right: Any, records: list[dict[str, Any]]) -> None:
    """Loss and held-out accuracy over epochs."""
    steps = [record for record in records if record["event"] == "step" and record.get("loss") is not None]
    epochs = [record for record in records if record["event"] == "epoch"]
    measured = [record for record in epochs if record.get("val_top1") is not None]
    per_epoch = _steps_per_epoch(records)
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
    trained = [record for record in epochs if record.get("train_loss") is not None]
    left.plot(
        [record["epoch"] + 1 for record in trained],
        [record["train_loss"] for record in trained],
        color=_BLUE,
        marker=".",
        label=f"train{smoothed}",
    )
    if measured:
        held_out = [record["epoch"] + 1 for record in measured]
        left.plot(
            held_out, [record["val_loss"] for record in measured], color=_ORANGE, marker=".", label="held out"
        )
        _draw_accuracy(right, held_out, measured)
    else:
        right.text(0.5, 0.5, "nothing was held out", ha="center", va="center", color=_INK)
        right.set_yticks([])
    left.set_title("cross entropy", fontsize=10)
    left.set_ylim(bottom=0)
    right.set_ylabel("%")
    for axes in (left, right):
        _plain_axes(axes)


def _draw_accuracy(axes: Any, held_out: list[int], measured: list[dict[str, Any]]) -> None:
    top1 = [100 * record["val_top1"] for record in measured]
    top5 = [100 * record["val_top5"] for record in measured]
    axes.plot(held_out, top5, color=_FAINT, marker=".", label="top-5")
    axes.plot(held_out, top1, color=_ORANGE, marker=".", label="top-1")
    best = max(range(len(top1)), key=top1.__getitem__)
    ring = {"markersize": 9, "markerfacecolor": "none", "color": _INK, "clip_on": False}
    axes.plot([held_out[best]], [top1[best]], "o", **ring)
    axes.set_title(f"held-out accuracy, best {top1[best]:.1f}% after epoch {held_out[best]}", fontsize=10)
    axes.set_ylim(min(0.95 * min(top1), 90), 100.5)


def _draw_feeding(speed: Any, fed: Any, queue: Any, records: list[dict[str, Any]]) -> None:
    """Images per second, time by stage, and ready batches, over epochs; every figure covers one line's steps."""
    lines = [record for record in records if record["event"] == "step" and "images_per_s" in record]
    per_epoch = _steps_per_epoch(records)
    at = [record["step"] / per_epoch for record in lines]

    def of(name: str, times: float = 1.0) -> list[float]:
        return [times * (record.get(name) or 0.0) for record in lines]

    marker = "." if len(lines) < 30 else ""
    speed.plot(at, of("images_per_s"), color=_BLUE, linewidth=1.2, marker=marker)
    speed.set_title("images/s", fontsize=10)
    speed.set_ylim(bottom=0)
    mean = sum(of("fed", 100)) / max(1, len(lines))
    fed.plot(at, of("fed", 100), color=_BLUE, linewidth=1.2, marker=marker, label="fed")
    fed.plot(at, of("data_wait", 100), color=_ORANGE, linewidth=1.2, marker=marker, label="data wait")
    fed.plot(at, of("copy", 100), color=_GRAY, linewidth=1.2, marker=marker, label="copy")
    fed.set_title(f"share of time in %: fed {mean:.1f}" if lines else "share of time", fontsize=10)
    fed.set_ylim(-2, 102)
    queue.set_title("queue depth", fontsize=10)
    if any("queued" in record for record in lines):
        queue.plot(
            at, of("queued"), color=_BLUE, linewidth=1.2, marker=marker, label="images before a decoder"
        )
        queue.set_ylim(bottom=0)
        ready = queue.twinx()
        ready.plot(at, of("ring_full", 100), color=_ORANGE, linewidth=1.2, marker=marker)
        ready.set_ylim(-2, 102)
        ready.tick_params(colors=_ORANGE, labelsize=8)
        for side in ("top", "left", "bottom"):
            ready.spines[side].set_visible(False)
        ready.spines["right"].set_color(_ORANGE)
        queue.plot([], [], color=_ORANGE, label="all batches ready, % of time")
    else:
        queue.text(0.5, 0.5, "this loader does not say", ha="center", va="center", transform=queue.transAxes)
    for axes in (speed, fed, queue):
        _plain_axes(axes)


def _steps_per_epoch(records: list[dict[str, Any]]) -> float:
    epochs = [record for record in records if record["event"] == "epoch"]
    if epochs:
        return float(epochs[0]["step"] / (epochs[0]["epoch"] + 1))
    return float(max((record["step"] for record in records), default=0) or 1)


def _plain_axes(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#eceef1")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


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
            # Small pictures are shown as squares, not with a blur that was never in the batch.
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


def _legend_below(axes: Any, drop: float = 0.14) -> None:
    """Puts the legend below the axes, where there are no curves."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -drop), ncols=3, fontsize=8)


def _write(figure: Any, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=_DPI)
    _pyplot().close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _shorten(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
