"""`fuelrail train`: from images, wherever they are, to a trained model.

    fuelrail train --data photos --model resnet18 --size 224 --epochs 20 --batch-size 64 --out runs/photos
    torchrun --nproc-per-node 8 -m fuelrail train …        one model on eight devices, one run folder

Leaves in --out: metrics.jsonl, checkpoints/, best.pt, run.html and run.png, curve.png, samples.png, worst.png,
confusion.png, quarantine.jsonl (refused records). Exit codes: 0 trained, 1 the run failed, 2 a wrong argument or folder,
130, 143 and 138 stopped by ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import first
from .data import Places, find_data, open_loaders
from .options import (
    add_device,
    add_loading,
    chosen_device,
    fail,
    positive,
    quiet_pipe,
    share,
    short_parser,
)

if TYPE_CHECKING:
    import torch

    from fuelrail.ranks import World
    from fuelrail.torch import Loader

    from .trainer import Trainer

#: Images per step, unless the dataset is tiny.
BATCH = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `fuelrail train` with `argv` (without the program's name); returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("fuelrail train: interrupted before the first step", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return quiet_pipe()


def _main(arguments: argparse.Namespace) -> int:
    alone = os.environ.get("RANK", "0") == "0"
    try:
        first.check(arguments)
        if "torch" not in sys.modules and alone:
            # It takes seconds, up to many on a cold disk.
            print("fuelrail train: loading torch", file=sys.stderr, flush=True)
        import torch  # noqa: F401  (first here, so that a broken one is one line)
    except (ImportError, ValueError) as error:
        return fail("train", error, 2)
    from fuelrail import ConfigError, FuelrailError, SourceError, TokenError
    from fuelrail.ranks import from_env

    from .ranks import Elsewhere, joined
    from .step import Stopped

    with contextlib.ExitStack() as opened:
        try:
            told = from_env()
            place = told if told.size > 1 else None
            device = _device(arguments.device, place)
            if place is not None:
                opened.enter_context(joined(place, device.type))
            trainer, loader = _open(arguments, device, place, opened)
        except BrokenPipeError:
            raise
        except Elsewhere:
            return 2
        except (ConfigError, SourceError, TokenError, ValueError, OSError) as error:
            return fail("train", error, 2)
        except FuelrailError as error:
            return fail("train", error, 1)
        try:
            _run(trainer, loader, arguments)
        except Stopped as stopped:
            if trainer.ranks.rank == 0:
                print(f"{stopped}; continue with --resume", file=sys.stderr)
            return 128 + stopped.signum
        except KeyboardInterrupt:
            print("stopped after the last step; the run itself is saved", file=sys.stderr)
            return 130
        except BrokenPipeError:
            raise
        except (FuelrailError, FloatingPointError, OneLabel, OSError) as error:
            return fail("train", error, 1)
        except RuntimeError as error:
            if trainer.ranks.size == 1:
                raise
            return fail("train", error, 1)
    return 0


class OneLabel(Exception):
    """All labels are the same, so nothing can be learned."""

    def __init__(self, label: object) -> None:
        super().__init__(
            f"every label is {label}, so there is nothing to learn: choose the labels with --source-option label=… "
            "(`fuelrail inspect` counts them)"
        )


def _open(
    arguments: argparse.Namespace,
    device: torch.device,
    place: World | None,
    opened: contextlib.ExitStack,
) -> tuple[Trainer, Loader]:
    """Prepares everything that a wrong argument can break: recipe, model, folders, run folder. Prints what will be
    trained.
    """
    from . import precision
    from .models import build_model, check_size
    from .trainer import Trainer

    recipe = _recipe(arguments)
    half = precision.choose(recipe.precision, device).half
    places = find_data(arguments.data, arguments.val, arguments.val_fraction)
    # A wrong name or size is reported before any folder is read.
    check_size(arguments.model, arguments.size)
    # NHWC bytes are torch's channels_last as they are; the trainer uses that order exactly in these cases.
    layout = "nhwc" if half or device.type == "cuda" else "nchw"
    train, val = _loaders(arguments, places, device, layout, place)
    opened.enter_context(train)
    if val is not None:
        opened.enter_context(val)
    classes = _classes(train, arguments)
    _seed_everything(arguments.seed)
    model = build_model(arguments.model, classes)
    said = _begin_with(model, arguments)
    trainer = Trainer(
        model,
        train,
        val,
        recipe,
        out=arguments.out,
        resume=arguments.resume,
        device=device,
        batch_transform=_mixing(arguments, classes),
        trackers=() if arguments.track == "none" else arguments.track,
        describe=_describe(arguments, places, classes, train.batch_size),
    )
    if trainer.ranks.rank == 0:
        chosen, ranks = trainer.precision, trainer.ranks.size
        size, steps = arguments.size, trainer.steps_per_epoch
        batch = train.batch_size * ranks * recipe.accumulate
        shared = f" ({ranks} ranks)" if ranks > 1 else ""
        print(
            f"{arguments.model} on {arguments.data}: {classes} classes, {size} x {size}, "
            f"{steps} step{'' if steps == 1 else 's'} of {batch}{shared} per epoch, {device.type} {chosen.name} "
            f"({chosen.reason}); {places.how}"
        )
        print("".join(f"{line}\n" for line in said), end="", flush=True)
    return trainer, train


def _loaders(
    arguments: argparse.Namespace, places: Places, device: torch.device, layout: str, place: World | None
) -> tuple[Loader, Loader | None]:
    """The loaders of this rank. Without --batch-size, a tiny dataset gets smaller batches; otherwise its epoch would
    be only a step or two."""
    from fuelrail.torch import Loader
    from fuelrail.torch import transforms as T

    rank, ranks = (place.rank, place.size) if place is not None else (0, 1)
    options = {
        "size": arguments.size,
        "augment": arguments.augment,
        "flip": not arguments.no_flip,
        "min_scale": arguments.min_scale,
        "seed": arguments.seed,
        "device": str(device) if device.type == "cuda" else None,
        "num_workers": arguments.num_workers,
        "layout": layout,
        "on_error": arguments.on_error,
        "quarantine": arguments.out / f"quarantine{f'-rank{rank}' if rank else ''}.jsonl",
        "options": dict(arguments.source_option),
        "rank": rank,
        "world_size": ranks,
    }
    train, val = open_loaders(Loader, T, places, batch_size=arguments.batch_size or BATCH, **options)
    try:
        samples = train.num_samples
    except TypeError:
        return train, val
    small = _small_batch(samples, ranks)
    try:
        # A batch larger than the dataset is a typo: the learning rate would be scaled to it.
        if arguments.batch_size is not None and arguments.batch_size * ranks > samples:
            each = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise ValueError(
                f"--batch-size {arguments.batch_size}{each}: there are only {samples:,} training images; use at most "
                f"{max(1, samples // ranks)}"
            )
        if arguments.batch_size is not None or small == BATCH:
            return train, val
    except BaseException:
        _close(train, val)
        raise
    _close(train, val)
    return open_loaders(Loader, T, places, batch_size=small, **options)


def _small_batch(samples: int, ranks: int) -> int:
    """A power of two, at most `BATCH`, that gives about eight or more steps per epoch."""
    wanted = max(1, samples // (8 * ranks))
    return min(BATCH, max(4, 1 << (wanted.bit_length() - 1)), max(1, samples // ranks))


def _close(*loaders: Loader | None) -> None:
    for loader in loaders:
        if loader is not None:
            loader.close()


def _classes(train: Loader, arguments: argparse.Namespace) -> int:
    """The number of classes; ValueError if it is unknown, or if there is only one class."""
    if not train.labelled:
        raise ValueError(
            f"--data {arguments.data}: it has no labels to train on; say where they are (--source-option label=...)"
        )
    classes = arguments.num_classes or len(train.classes)
    if classes == 0:
        raise ValueError(
            f"--data {arguments.data}: its labels are numbers without names: give the number of classes "
            '(--num-classes N), or their names (--source-option \'classes=["cat", "dog"]\')'
        )
    if len(train.classes) == 1:
        raise ValueError(f"--data {arguments.data}: {OneLabel(train.classes[0])}")
    return classes


def _begin_with(model: torch.nn.Module, arguments: argparse.Namespace) -> list[str]:
    """Loads weights of another training run and freezes parameters; returns a line about each."""
    from .finetune import freeze, load_weights

    said = []
    if arguments.init is not None:
        said.append(f"weights of {arguments.init}: {load_weights(model, arguments.init)}")
    for pattern in arguments.freeze:
        said.append(f"frozen: {len(freeze(model, pattern))} parameters ({pattern})")
    return said


def _mixing(arguments: argparse.Namespace, classes: int) -> Any:
    """MixUp, CutMix, or one of them per batch."""
    if not arguments.mixup and not arguments.cutmix:
        return None
    from fuelrail.torch import Mixup

    # Smoothing is the loss's, as without mixing.
    return Mixup(
        arguments.mixup,
        arguments.cutmix,
        label_smoothing=0.0,
        num_classes=classes,
        seed=arguments.seed,
    )


def _device(name: str | None, place: World | None) -> torch.device:
    """The requested device; with several ranks on one machine, each has its own GPU."""
    import torch

    device = chosen_device(name)
    if place is not None and device.type == "cuda" and device.index is None:
        own = place.rank if place.local_rank is None else place.local_rank
        device = chosen_device(f"cuda:{own}")
        torch.cuda.set_device(device)
    return device


def _run(trainer: Trainer, loader: Loader, arguments: argparse.Namespace) -> None:
    shown = None
    labels: set[int] | None = set()
    for step in trainer.steps():
        if shown is None:
            # Copies: a view would hold the batch's slot for the whole run.
            shown = step.images[:32].detach().clone(), step.batch["label"][:32].tolist()
        if labels is not None:
            if step.epoch > 0 and len(labels) == 1 and trainer.history:
                raise OneLabel(labels.pop())
            labels.update(step.batch["label"].tolist())
            # Two are enough; then nobody looks again.
            labels = None if len(labels) > 1 else labels
        step.train()
    if labels is not None and len(labels) == 1:
        raise OneLabel(labels.pop())
    from .report import report

    title = f"{arguments.model} on {Path(arguments.data).name}"
    report(trainer, loader, shown, arguments.out, title)


def _recipe(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from .recipe import Recipe

    known = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in vars(arguments).items() if name in known})


def _describe(arguments: argparse.Namespace, places: Places, classes: int, batch_size: int) -> dict[str, Any]:
    named = (
        "model",
        "data",
        "val",
        "size",
        "augment",
        "min_scale",
        "seed",
        "init",
        "freeze",
        "mixup",
        "cutmix",
    )
    described = {name: _plain(getattr(arguments, name)) for name in named}
    held_out = None if places.val is None else [str(Path(places.val).absolute()), places.val_split]
    if places.val is not None and "://" in str(places.val):
        held_out = [str(places.val), places.val_split]
    return {**described, "batch_size": batch_size, "num_classes": classes, "held_out": held_out}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _seed_everything(seed: int) -> None:
    """The global generators: initial weights and dropout. The loader takes the seed itself."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# Options --------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = short_parser(
        "train", "Train an image classifier on a folder of class folders, or on any other source."
    )
    parser.epilog = (
        "Stop with ctrl-C; continue with the same command and --resume. On several GPUs or machines: "
        "torchrun --nproc-per-node N -m fuelrail train ..."
    )
    _data_options(parser.add_argument_group("data"))
    add = parser.add_argument
    add("--model", default="resnet18", help="small_cnn, or the name of a torchvision model")
    add("--init", type=Path, help="begin with the weights of this file: .safetensors, .pth, or a checkpoint")
    add(
        "--freeze",
        action="append",
        default=[],
        metavar="backbone|PATTERN",
        help="do not train these: backbone (all but the last layer), or parameter names like layer1.*; can be repeated",
    )
    add("--out", type=Path, required=True, help="run folder: metrics, checkpoints, pictures")
    add("--resume", action="store_true", help="resume from the latest checkpoint in --out, if there is one")
    add("--epochs", type=positive, default=10, help="passes over the data")
    add("--steps-per-epoch", type=positive, help="for streams: number of steps that count as one epoch")
    add("--seed", type=int, default=0, help="seed of the order, the augmentation and the initial weights")
    add_device(parser)
    _recipe_options(parser.add_argument_group("recipe"))
    _record_options(parser.add_argument_group("records"))
    return parser


def _data_options(data: argparse._ArgumentGroup) -> None:
    add = data.add_argument
    add(
        "--data",
        required=True,
        help="folder of class folders, or one with train/ and val/; or shards, a table, a bucket, a kafka:// topic",
    )
    add(
        "--val",
        help="validation data (default: a val folder next to the training folder, else a split of --data)",
    )
    add("--num-classes", type=positive, help="number of classes, if labels are numbers without names")
    add(
        "--val-fraction",
        type=share,
        help="share of the training data to hold out (default: 0.1 if there is no validation folder)",
    )
    add("--size", type=positive, default=224, help="side of the model's input images in pixels")
    add(
        "--batch-size",
        type=positive,
        help="images per batch, on each rank (default: 64; fewer if there are not many images)",
    )
    add(
        "--augment",
        choices=("standard", "strong", "none"),
        default="standard",
        help="standard: random resized crop and flip; strong: also colour jitter and erasing",
    )
    add("--min-scale", type=float, default=0.35, help="smallest crop, as a share of the image's area")
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="mix images of a batch (0: off; often 0.2)")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="paste parts of them (0: off; often 1.0)")
    add("--no-flip", action="store_true", help="no horizontal flips (digits, letters)")
    add(
        "--on-error",
        choices=("substitute", "drop", "fail"),
        default="substitute",
        help="what to do with an image that cannot be decoded",
    )
    add_loading(data)


def _recipe_options(recipe: argparse._ArgumentGroup) -> None:
    add = recipe.add_argument
    add("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd uses Nesterov momentum")
    add(
        "--lr",
        type=float,
        help="peak learning rate (default: 0.1 for sgd, 0.001 for adamw, per 256 images in a step)",
    )
    add("--momentum", type=float, default=0.9, help="momentum of sgd")
    add("--weight-decay", type=float, help="weight decay (default: 0.0005 for sgd, 0.05 for adamw)")
    add(
        "--schedule",
        choices=("cosine", "step", "constant"),
        default="cosine",
        help="course of the learning rate after the warm-up",
    )
    add("--step-epochs", type=float, default=30.0, help="epochs between two falls of --schedule step")
    add("--step-factor", type=float, default=0.1, help="what the rate is multiplied by at each of them")
    add("--warmup-epochs", type=float, default=1.0, help="epochs of linear warm-up before the schedule")
    add("--accumulate", type=positive, default=1, help="batches per step, trained on as one larger batch")
    add("--clip-norm", type=float, help="largest norm of the gradients (default: no clipping)")
    add("--ema-decay", type=float, help="evaluate and keep a moving average of the weights, such as 0.999")
    add("--label-smoothing", type=float, default=0.1, help="share of the target spread over all classes")
    add(
        "--precision",
        choices=("auto", "bf16", "fp16", "tf32", "fp32"),
        default="auto",
        help="auto: bf16 if the hardware supports it",
    )
    add(
        "--activation-checkpointing",
        action="store_true",
        help="less memory: compute activations again for the backward pass",
    )
    add("--compile", action="store_true", help="run the model through torch.compile")


def _record_options(record: argparse._ArgumentGroup) -> None:
    add = record.add_argument
    add("--save-every", type=positive, default=500, help="steps between checkpoints within an epoch")
    add(
        "--keep",
        type=positive,
        default=3,
        help="number of recent checkpoints to keep (the best is always kept)",
    )
    add("--log-every", type=positive, default=10, help="steps per line of metrics.jsonl")
    add("--log-ids", action="store_true", help="write the sample indices of every step to metrics.jsonl")
    add(
        "--track",
        choices=("auto", "none", "tensorboard", "mlflow", "wandb"),
        default="auto",
        help="who else gets the figures of metrics.jsonl; nothing leaves the machine. auto: those that are installed",
    )


if __name__ == "__main__":
    raise SystemExit(main())
