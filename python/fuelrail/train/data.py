"""From an address (a folder, shards, a table, a stream) to the two loaders of `fuelrail train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuelrail import torch as frames

#: Folder names that mean "train on this" and "measure on this", in the order they are looked for.
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
AUGMENTS = ("standard", "strong", "none")


@dataclass(frozen=True)
class Places:
    """Where training and validation images come from: addresses, or paths. A split is a part by key hash, or
    None; without `val` nothing is held out.
    """

    train: str | Path
    val: str | Path | None
    train_split: str | None
    val_split: str | None
    how: str


def find_data(data: str, val: str | None, val_fraction: float) -> Places:
    """Decides what is trained on and what is held out: of a folder as `find_folders` says, of anything else `val`,
    or `val_fraction` by a hash of each key; of a stream only what `val` names.
    """
    if Path(data).is_dir() and (val is None or Path(val).is_dir()):
        return find_folders(Path(data), None if val is None else Path(val), val_fraction)
    if val is not None:
        return Places(data, val, None, None, f"held out: {val}")
    if data.startswith("kafka://"):
        return Places(data, None, None, None, "nothing held out (--val names what to measure on)")
    return _split(data, val_fraction)


def find_folders(data: Path, val: Path | None, val_fraction: float) -> Places:
    """Decides what is trained on and what is held out.

    In this order: the `val` given; `data/train` with `data/val` (or validation, valid, test); a `data` called
    train with such a folder beside it; else `val_fraction` of `data`, chosen by a hash of each key (so a
    picture stays on its side when others are added).
    """
    if val is not None:
        return Places(data, val, None, None, f"held out: {val}")
    inner = _first(data, TRAIN_NAMES)
    if inner is not None and (beside := _first(data, VAL_NAMES)) is not None:
        return Places(inner, beside, None, None, f"training on {inner}, held out: {beside}")
    if data.name.lower() in TRAIN_NAMES and (beside := _first(data.parent, VAL_NAMES)) is not None:
        return Places(data, beside, None, None, f"held out: {beside}")
    return _split(data, val_fraction)


def _split(data: str | Path, val_fraction: float) -> Places:
    if not 0 < val_fraction < 1:
        raise ValueError(f"--val-fraction {val_fraction}: must be between 0 and 1")
    border = f"{100 * (1 - val_fraction):g}%"
    how = f"held out: {val_fraction:.0%} of {data} by key hash"
    return Places(data, data, f"train[:{border}]", f"train[{border}:]", how)


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
    Loader: type[frames.Loader],
    T: Any,
    places: Places,
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
    options: Mapping[str, Any],
) -> tuple[frames.Loader, frames.Loader | None]:
    """The training and the validation loader (None where nothing is held out), with one numbering of the
    classes. `options` are the training source's; of these the validation source has `image` and `label`.

    Errors are the loader's own (SourceError, ConfigError). When the second cannot be opened the first is
    closed.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "device": device,
        "layout": layout,
        "on_error": on_error,
    }
    train = Loader(
        str(places.train),
        transforms=train_transforms(T, size, augment, flip, min_scale),
        shuffle=True,
        seed=seed,
        split=places.train_split,
        quarantine=str(quarantine),
        source_options=dict(options),
        **common,
    )
    if places.val is None:
        return train, None
    shared = {"image", "label"} if places.val != places.train else set(options)
    try:
        val = Loader(
            str(places.val),
            transforms=val_transforms(T, size),
            classes=train.classes or None,
            split=places.val_split,
            source_options={key: value for key, value in options.items() if key in shared - {"classes"}},
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
