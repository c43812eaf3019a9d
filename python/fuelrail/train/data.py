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
VAL_NAMES = ("val", "validation", "valid")
#: Measured once, at the end: if a checkpoint is chosen on it, its accuracy no longer predicts that on new images.
TEST_NAMES = ("test", "testing")
#: Held out if nothing else is.
FRACTION = 0.1
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


def find_data(data: str, val: str | None, val_fraction: float | None) -> Places:
    """Decides what to train on and what to hold out: for a folder as in `find_folders`; otherwise `val`, or
    `val_fraction` by a hash of each key (None: 0.1 if nothing is given); for a stream only `val`. ValueError if two of
    these are given.
    """
    if val is not None and val_fraction is not None:
        raise ValueError(
            f"--val {val} and --val-fraction {val_fraction}: what is held out is said twice; leave out one"
        )
    if Path(data).is_dir() and (val is None or Path(val).is_dir()):
        return find_folders(Path(data), None if val is None else Path(val), val_fraction)
    if val is not None:
        return Places(data, val, None, None, f"held out: {val}")
    if data.startswith("kafka://"):
        if val_fraction is not None:
            raise ValueError(
                f"--val-fraction {val_fraction}: a stream has no parts; name what to measure on by --val"
            )
        return Places(data, None, None, None, "nothing held out (--val names what to measure on)")
    return _split(data, val_fraction)


def find_folders(data: Path, val: Path | None, val_fraction: float | None) -> Places:
    """Decides what to train on and what to hold out.

    In this order: the `val` given; a `val_fraction` given, of the training images; `data/train` with `data/val` (or
    validation, valid); a `data` called train with such a folder next to it; else a tenth of the training images, chosen
    by a hash of each key (so an image stays on its side when others are added). A test folder is not used.
    """
    if val is not None:
        return Places(data, val, None, None, f"held out: {val}")
    inner = _first(data, TRAIN_NAMES)
    around = data if inner is not None else data.parent
    others = inner is not None or data.name.lower() in TRAIN_NAMES
    beside = _first(around, VAL_NAMES) if others else None
    test = _first(around, TEST_NAMES) if others else None
    train = inner if inner is not None and (beside or test) else data
    if beside is not None and val_fraction is None:
        on = f"training on {train}, " if train != data else ""
        return Places(train, beside, None, None, f"{on}held out: {beside}")
    unused = "; ".join(f"{each} is not used" for each in (beside, test) if each is not None)
    return _split(train, val_fraction, unused)


def _split(data: str | Path, val_fraction: float | None, unused: str = "") -> Places:
    fraction = FRACTION if val_fraction is None else val_fraction
    if not 0 < fraction < 1:
        raise ValueError(f"--val-fraction {fraction}: must be between 0 and 1")
    border = f"{100 * (1 - fraction):g}%"
    how = f"held out: {fraction:.0%} of {data} by key hash" + (f" ({unused})" if unused else "")
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
    rank: int = 0,
    world_size: int = 1,
) -> tuple[frames.Loader, frames.Loader | None]:
    """The training and the validation loader (None if nothing is held out), with the same class numbers.
    `options` are the training source's; the validation source gets only `image` and `label` of them.

    Errors are the loader's own (SourceError, ConfigError). If the second cannot be opened, the first is closed.
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "device": device,
        "layout": layout,
        "on_error": on_error,
        "rank": rank,
        "world_size": world_size,
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
