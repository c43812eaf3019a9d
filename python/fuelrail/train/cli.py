"""`fuelrail train`: images, wherever they are, to a trained model.

    fuelrail train --data photos --model resnet18 --size 224 --epochs 20 --batch-size 64 --out runs/photos

Leaves in --out: metrics.jsonl, checkpoints/, best.pt, curve.png, samples.png, quarantine.jsonl (refused
records). Exit codes: 0 trained, 1 the run failed, 2 a wrong argument or folder, 130 and 143 stopped by ctrl-C
and SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import first

if TYPE_CHECKING:
    import torch

    from fuelrail.torch import Loader

    from .trainer import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `fuelrail train` with `argv` (without the program's name); returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("fuelrail train: interrupted before the first step", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Nobody reads the output any more (`| head`). What Python would still write at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(arguments: argparse.Namespace) -> int:
    try:
        first.check(arguments)
        if "torch" not in sys.modules:
            # It takes seconds, up to many on a cold disk.
            print("fuelrail train: loading torch", file=sys.stderr, flush=True)
        import torch  # noqa: F401  (first here, so that a broken one is one line)
    except (ImportError, ValueError) as error:
        return _fail(error, 2)
    from fuelrail import ConfigError, FuelrailError, SourceError, TokenError

    from .trainer import Stopped

    with contextlib.ExitStack() as opened:
        try:
            trainer, loader = _open(arguments, opened)
        except BrokenPipeError:
            raise
        except (ConfigError, SourceError, TokenError, ValueError, OSError) as error:
            return _fail(error, 2)
        except FuelrailError as error:
            return _fail(error, 1)
        try:
            _run(trainer, loader, arguments)
        except Stopped as stopped:
            print(f"{stopped}; continue with --resume", file=sys.stderr)
            return 128 + stopped.signum
        except KeyboardInterrupt:
            print("stopped after the last step; the run itself is saved", file=sys.stderr)
            return 130
        except BrokenPipeError:
            raise
        except (FuelrailError, FloatingPointError, OneLabel, OSError) as error:
            return _fail(error, 1)
    return 0


class OneLabel(Exception):
    """Nothing can be learned from labels that are all the same."""

    def __init__(self, label: object) -> None:
        super().__init__(
            f"every label is {label}, so there is nothing to learn: choose the labels with --source-option label=… "
            "(`fuelrail inspect` counts them)"
        )


def _open(arguments: argparse.Namespace, opened: contextlib.ExitStack) -> tuple[Trainer, Loader]:
    """Everything a wrong argument can break: recipe, model, folders, run folder. Says what will be
    trained.
    """

    from fuelrail.torch import Loader
    from fuelrail.torch import transforms as T

    from . import precision
    from .data import find_data, open_loaders
    from .models import build_model, check_size
    from .trainer import Trainer

    recipe = _recipe(arguments)
    device = _device(arguments.device)
    bf16 = precision.choose(recipe.precision, device).name == "bf16"
    places = find_data(arguments.data, arguments.val, arguments.val_fraction)
    # A wrong name or size is told before any folder is read.
    check_size(arguments.model, arguments.size)
    train, val = open_loaders(
        Loader,
        T,
        places,
        size=arguments.size,
        batch_size=arguments.batch_size,
        augment=arguments.augment,
        flip=not arguments.no_flip,
        min_scale=arguments.min_scale,
        seed=arguments.seed,
        device=str(device) if device.type == "cuda" else None,
        num_workers=arguments.num_workers,
        # NHWC bytes are torch's channels_last as they are; the trainer uses that order exactly in these
        # cases.
        layout="nhwc" if bf16 or device.type == "cuda" else "nchw",
        on_error=arguments.on_error,
        quarantine=arguments.out / "quarantine.jsonl",
        options=dict(arguments.source_option),
    )
    opened.enter_context(train)
    if val is not None:
        opened.enter_context(val)
    if not train.labelled:
        raise ValueError(
            f"--data {arguments.data}: it has no labels to train on; say where they are (--source-option label=...)"
        )
    _check_batch(train, arguments)
    classes = arguments.num_classes or len(train.classes)
    if classes == 0:
        raise ValueError(
            f"--data {arguments.data}: its labels are numbers without names: give the number of classes "
            '(--num-classes N), or their names (--source-option \'classes=["cat", "dog"]\')'
        )
    if len(train.classes) == 1:
        raise ValueError(f"--data {arguments.data}: {OneLabel(train.classes[0])}")
    _seed_everything(arguments.seed)
    trainer = Trainer(
        build_model(arguments.model, classes),
        train,
        val,
        recipe,
        out=arguments.out,
        resume=arguments.resume,
        device=device,
        describe=_describe(arguments),
    )
    chosen = trainer.precision
    size, batch, steps = arguments.size, arguments.batch_size, trainer.steps_per_epoch
    print(
        f"{arguments.model} on {arguments.data}: {classes} classes, {size} x {size}, "
        f"{steps} step{'' if steps == 1 else 's'} of {batch} per epoch, {device.type} {chosen.name} "
        f"({chosen.reason}); {places.how}",
        flush=True,
    )
    return trainer, train


def _check_batch(train: Loader, arguments: argparse.Namespace) -> None:
    """A batch larger than the data set is a typo: the learning rate would be scaled to it."""
    try:
        samples = train.num_samples
    except TypeError:
        return
    if arguments.batch_size > samples:
        raise ValueError(
            f"--batch-size {arguments.batch_size}: there are only {samples:,} training images; use at most {samples}"
        )


def _device(name: str | None) -> torch.device:
    """The device of that name, or the best available; ValueError for one that does not exist here."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: not a device; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch finds {torch.cuda.device_count()} GPUs on this machine")
    return device


def _run(trainer: Trainer, loader: Loader, arguments: argparse.Namespace) -> None:
    shown = None
    labels: set[int] | None = set()
    for step in trainer.steps():
        if shown is None:
            # Copies: a view would hold the batch's slot for the whole run.
            shown = step.images[:32].detach().clone(), step.labels[:32].tolist()
        if labels is not None:
            if step.epoch > 0 and len(labels) == 1 and trainer.history:
                raise OneLabel(labels.pop())
            labels.update(step.labels.tolist())
            # Two are enough; then nobody looks again.
            labels = None if len(labels) > 1 else labels
        step.train()
    if labels is not None and len(labels) == 1:
        raise OneLabel(labels.pop())
    _report(trainer, loader, shown, arguments)


def _report(
    trainer: Trainer,
    loader: Loader,
    shown: tuple[torch.Tensor, list[int]] | None,
    arguments: argparse.Namespace,
) -> None:
    """The end of a run in a few lines: accuracy, what limited it, where things are."""
    out: Path = arguments.out
    last = trainer.history[-1] if trainer.history else {}
    if "val_top1" in last:
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
    try:
        from .pictures import draw_contact_sheet, draw_curves

        title = f"{arguments.model} on {Path(arguments.data).name}"
        draw_curves(out / "metrics.jsonl", out / "curve.png", title)
        print(f"curve: {out / 'curve.png'}")
        if shown is not None:
            images, labels = shown
            title = f"{title}: as the model saw them"
            draw_contact_sheet(images, labels, loader.classes, out / "samples.png", title)
            print(f"samples: {out / 'samples.png'}")
    except ImportError:
        print("curve.png and samples.png need matplotlib: pip install matplotlib")
    if (out / "best.pt").exists():
        print(f"weights: {out / 'best.pt'}")


def _recipe(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from .trainer import Recipe

    known = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in vars(arguments).items() if name in known})


def _describe(arguments: argparse.Namespace) -> dict[str, Any]:
    named = ("model", "data", "val", "size", "batch_size", "augment", "min_scale", "seed")
    return {name: _plain(getattr(arguments, name)) for name in named}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _seed_everything(seed: int) -> None:
    """The global generators: initial weights and dropout. The loader takes the seed itself."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _fail(error: object, code: int) -> int:
    print(f"fuelrail train: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


class _Help(argparse.HelpFormatter):
    """Adds each default once: not where the help says it in words, nor where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        has_default = action.nargs != 0 and action.default not in (None, argparse.SUPPRESS, [])
        if text and has_default and "(default" not in text:
            return f"{text} (default: %(default)s)"
        return text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2; the usage text of this many options would bury it."""
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fuelrail train",
        description="Train an image classifier on a folder of class folders, or on any other source.",
        epilog="Stop with ctrl-C; continue with the same command and --resume.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    add = parser.add_argument
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        help="folder of class folders, or one with train/ and val/; or shards, a table, a bucket, a kafka:// topic",
    )
    data.add_argument(
        "--val",
        help="validation data (default: a val folder next to the training folder, else a split of --data)",
    )
    data.add_argument(
        "--source-option",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the source, such as image=jpg or window_records=4096 (JSON or text); can be repeated. "
        "properties=@client.properties reads Kafka's from a file",
    )
    data.add_argument(
        "--num-classes", type=_positive, help="number of classes, if labels are numbers without names"
    )
    data.add_argument(
        "--val-fraction", type=float, default=0.1, help="share to hold out if there is no validation folder"
    )
    data.add_argument(
        "--size", type=_positive, default=224, help="side of the model's input images in pixels"
    )
    data.add_argument("--batch-size", type=_positive, default=64, help="images per step")
    data.add_argument(
        "--augment",
        choices=("standard", "strong", "none"),
        default="standard",
        help="standard: random resized crop and flip; strong: also colour jitter and erasing",
    )
    data.add_argument(
        "--min-scale", type=float, default=0.35, help="smallest crop, as a share of the image's area"
    )
    data.add_argument("--no-flip", action="store_true", help="no horizontal flips (digits, letters)")
    data.add_argument("--num-workers", type=_positive, help="decoding threads (default: one per core)")
    data.add_argument(
        "--on-error",
        choices=("substitute", "drop", "fail"),
        default="substitute",
        help="what to do with an image that cannot be decoded",
    )
    add("--model", default="resnet18", help="small_cnn, or the name of a torchvision model")
    add("--out", type=Path, required=True, help="run folder: metrics, checkpoints, pictures")
    add("--resume", action="store_true", help="resume from the latest checkpoint in --out, if there is one")
    add("--epochs", type=_positive, default=10, help="passes over the data")
    add("--steps-per-epoch", type=_positive, help="for streams: number of steps that count as one epoch")
    add("--seed", type=int, default=0, help="seed of the order, the augmentation and the initial weights")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd uses Nesterov momentum"
    )
    recipe.add_argument(
        "--lr",
        type=float,
        help="peak learning rate (default: 0.1 for sgd, 0.001 for adamw, per 256 images in a batch)",
    )
    recipe.add_argument("--momentum", type=float, default=0.9, help="momentum of sgd")
    recipe.add_argument(
        "--weight-decay", type=float, help="weight decay (default: 0.0005 for sgd, 0.05 for adamw)"
    )
    recipe.add_argument(
        "--warmup-epochs", type=float, default=1.0, help="epochs of linear warm-up before the cosine schedule"
    )
    recipe.add_argument(
        "--label-smoothing", type=float, default=0.1, help="share of the target spread over all classes"
    )
    recipe.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 if the hardware supports it",
    )
    record = parser.add_argument_group("records")
    record.add_argument(
        "--save-every", type=_positive, default=500, help="steps between checkpoints within an epoch"
    )
    record.add_argument(
        "--keep",
        type=_positive,
        default=3,
        help="number of recent checkpoints to keep (the best is always kept)",
    )
    record.add_argument("--log-every", type=_positive, default=10, help="steps per line of metrics.jsonl")
    record.add_argument(
        "--log-ids", action="store_true", help="write the sample indices of every step to metrics.jsonl"
    )
    return parser


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text}: write KEY=VALUE")
    if key == "properties" and value.startswith("@"):
        return key, _properties(Path(value[1:]))
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _properties(path: Path) -> dict[str, str]:
    """Kafka's properties from a file, NAME=VALUE a line as for its own clients; errors do not show what a line holds."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from error
    properties: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line[0] in "#!":
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not name or not equals:
            raise argparse.ArgumentTypeError(f"{path}: line {number} is not of the form NAME=VALUE")
        if name in properties:
            raise argparse.ArgumentTypeError(f"{path}: line {number}: {name} is set twice")
        properties[name] = value
    return properties


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
