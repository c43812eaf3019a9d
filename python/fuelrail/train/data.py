"""From a folder of class folders to the two loaders of `fuelrail train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Folder names that mean "train on this" and "measure on this", in the order they are looked for.
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
AUGMENTS = ("standard", "strong", "none")


@dataclass(frozen=True)
class Folders:
    """Where training and validation images come from; a split is a part of a folder by key hash, or None."""

    train: Path
    val: Path
    train_split: str | None
    val_split: str | None
    how: str


def find_folders(data: Path, val: Path | None, val_fraction: float) -> Folders:
    """Decides what is trained on and what is held out.

    In this order: the `val` given; `data/train` with `data/val` (or validation, valid, test); a `data` called
    train with such a folder beside it; else `val_fraction` of `data`, chosen by a hash of each key (so a
    picture stays on its side when others are added).
    """
    if val is not None:
        return Folders(data, val, None, None, f"held out: {val}")
    inner = _first(data, TRAIN_NAMES)
    if inner is not None and (beside := _first(data, VAL_NAMES)) is not None:
        return Folders(inner, beside, None, None, f"training on {inner}, held out: {beside}")
    if data.name.lower() in TRAIN_NAMES and (beside := _first(data.parent, VAL_NAMES)) is not None:
        return Folders(data, beside, None, None, f"held out: {beside}")
    if not 0 < val_fraction < 1:
        raise ValueError(f"--val-fraction {val_fraction}: must be between 0 and 1")
    border = f"{100 * (1 - val_fraction):g}%"
    how = f"held out: {val_fraction:.0%} of {data} by key hash"
    return Folders(data, data, f"train[:{border}]", f"train[{border}:]", how)


def train_transforms(T: Any, size: int, augment: str, flip: bool, min_scale: float) -> list[Any]:
    """The training chain: a random crop resized to `size`, a flip, for "strong" colour and erasing."""
    chain: list[Any]
    if augment == "none":
        chain = _centre(T, size)
    else:
        chain = [T.RandomResizedCrop(size, scale=(min_scale, 1.0))]
        if flip:
            chain.append(T.RandomHorizontalFlip())
        if augment == "strong":
            chain.append(T.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05))
    chain.append(T.Normalize(*T.IMAGENET))
    if augment == "strong":
        chain.append(T.RandomErasing(p=0.25))
    return chain


def val_transforms(T: Any, size: int) -> list[Any]:
    """The validation chain: the shorter edge to 256/224 of `size`, the centre, Normalize."""
    return [*_centre(T, size), T.Normalize(*T.IMAGENET)]


def open_loaders(
    Loader: Callable[..., Any],
    T: Any,
    folders: Folders,
    *,
    size: int,
    batch_size: int,
    augment: str,
    flip: bool,
    min_scale: float,
    seed: int,
    device: str | None,
    num_workers: int | None,
    layout: str,
    on_error: str,
    quarantine: Path,
) -> tuple[Any, Any]:
    """The training and the validation loader, with one numbering of the classes.

    Errors are the loader's own (SourceError, ConfigError). When the second cannot be opened the first is
    closed.
    """
    common = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "device": device,
        "layout": layout,
        "on_error": on_error,
    }
    train = Loader(
        str(folders.train),
        transforms=train_transforms(T, size, augment, flip, min_scale),
        shuffle=True,
        seed=seed,
        split=folders.train_split,
        quarantine=str(quarantine),
        **common,
    )
    try:
        val = Loader(
            str(folders.val),
            transforms=val_transforms(T, size),
            classes=train.classes,
            split=folders.val_split,
            quarantine=str(quarantine.with_name(f"{quarantine.stem}-val{quarantine.suffix}")),
            **common,
        )
    except BaseException:
        train.close()
        raise
    return train, val


def _centre(T: Any, size: int) -> list[Any]:
    return [T.Resize(round(size * 256 / 224)), T.CenterCrop(size)]


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)
