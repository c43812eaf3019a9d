"""`fuelrail eval`, `predict` and `export`: a trained model's predictions, and the model in other formats.

    fuelrail eval runs/first                      its accuracy on the data held out in training
    fuelrail eval runs/first data/test            on other data
    fuelrail predict runs/first photos            a JSON line per image: path, class, score
    fuelrail export runs/first                    safetensors, ONNX, and 8-bit ONNX, compared on the held-out data

Exit codes: 0 done, 1 failed, 2 a wrong argument, 130 stopped by ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_device, add_loading, fail, positive, quiet_pipe, short_parser

if TYPE_CHECKING:
    from .runs import Run


def main(command: str, argv: Sequence[str] | None = None) -> int:
    """Runs `fuelrail eval`, `predict` or `export`; returns the exit code."""
    arguments = _COMMANDS[command][0]().parse_args(argv)
    try:
        return _main(command, arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return quiet_pipe()


def _main(command: str, arguments: argparse.Namespace) -> int:
    if not arguments.run.exists():
        return fail(command, f"{arguments.run}: there is no such run folder or file", 2)
    from fuelrail import ConfigError, FuelrailError, SourceError

    from .options import chosen_device
    from .runs import load_run

    try:
        run = load_run(arguments.run, chosen_device(arguments.device))
        _COMMANDS[command][1](run, arguments)
    except BrokenPipeError:
        raise
    except (ConfigError, SourceError, ValueError, OSError) as error:
        return fail(command, error, 2)
    except FuelrailError as error:
        return fail(command, error, 1)
    return 0


def _evaluate(run: Run, arguments: argparse.Namespace) -> None:
    import torch

    from . import precision
    from .evaluation import evaluate

    data, split = _held_out(run, arguments)
    device = next(run.model.parameters()).device
    with _loader(run, arguments, data, split=split, classes=run.classes or None) as loader:
        if not loader.labelled:
            raise ValueError(f"{data}: it has no labels to compare with; `fuelrail predict` needs none")
        found = evaluate(
            run.model, loader, precision=precision.choose("auto", torch.device(device)), device=device
        )
    print(f"{run.path} (step {run.step}) on {data}")
    print(f"top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, loss {found.loss:.4f} on {found.rows:,} images")
    if found.left_out:
        print(f"not counted: {found.left_out} images that could not be read")


def _held_out(run: Run, arguments: argparse.Namespace) -> tuple[str, str | None]:
    """The given data, else the data held out in training: an address and its split."""
    data, split = arguments.data, None
    if data is None:
        data, split = run.describe.get("held_out") or (None, None)
        if data is None:
            raise ValueError(f"{run.path}: its training held nothing out; name the data to evaluate on")
    return data, split


def _export(run: Run, arguments: argparse.Namespace) -> None:
    from .exporting import check_formats, export, losses

    check_formats(arguments.format)
    data, split = _held_out(run, arguments)
    to = arguments.to
    if to is None:
        to = (arguments.run if arguments.run.is_dir() else arguments.run.parent) / "export"
    with contextlib.ExitStack() as opened:

        def batches() -> Any:
            loader = opened.enter_context(
                _loader(run, arguments, data, split=split, classes=run.classes or None)
            )
            if not loader.labelled:
                raise ValueError(f"{data}: it has no labels to compare with")
            return loader

        measured = export(run, batches, to, arguments.format)
    print(f"{run.path} (step {run.step}) on {measured[0].rows:,} images of {data}, on the CPU")
    print(f"{'':15} {'size':>9} {'top-1':>8} {'same answer':>12} {'images/s':>9}")
    for each in measured:
        print(
            f"{each.name:15} {each.size / 1e6:>6.2f} MB {each.top1:>8.2%} {each.same:>12.2%} {each.images_per_s:>9,.0f}"
        )
    print("files: " + ", ".join(str(each.file) for each in measured if each.file) + f", {to / 'model.json'}")
    for loss in losses(measured):
        print(f"fuelrail export: warning: {loss}", file=sys.stderr)


def _predict(run: Run, arguments: argparse.Namespace) -> None:
    from .runs import predict

    said = 0
    with contextlib.ExitStack() as opened:
        loader = opened.enter_context(_loader(run, arguments, arguments.data, label=None, on_error="drop"))
        target: Any = sys.stdout
        if arguments.out is not None:
            target = opened.enter_context(arguments.out.open("w", encoding="utf-8"))
        for said, line in enumerate(predict(run, loader, arguments.top), 1):  # noqa: B007  (counted)
            target.write(json.dumps(line, ensure_ascii=False) + "\n")
        unread = loader.num_samples - said
    if unread:
        print(
            f"fuelrail predict: {unread} image{'' if unread == 1 else 's'} could not be read and left out",
            file=sys.stderr,
        )


def _loader(run: Run, arguments: argparse.Namespace, data: str, **options: Any) -> Any:
    from fuelrail.torch import Loader

    return Loader(
        data,
        transforms=run.transforms(),
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        source_options=dict(arguments.source_option),
        **options,
    )


def _eval_parser() -> argparse.ArgumentParser:
    parser = short_parser("eval", "Measure a trained model on labelled images.")
    parser.add_argument("run", type=Path, help="a run folder of fuelrail train, or one checkpoint")
    parser.add_argument("data", nargs="?", help="images by class (default: what the training held out)")
    return _common(parser)


def _predict_parser() -> argparse.ArgumentParser:
    parser = short_parser("predict", "Say what a trained model sees in images: one JSON line per image.")
    parser.add_argument("run", type=Path, help="a run folder of fuelrail train, or one checkpoint")
    parser.add_argument("data", help="images; labels are not needed")
    parser.add_argument("--out", type=Path, help="file for the lines (default: standard output)")
    parser.add_argument("--top", type=positive, default=5, help="number of classes per image")
    return _common(parser)


def _export_parser() -> argparse.ArgumentParser:
    parser = short_parser(
        "export", "Write a trained model in other formats, and compare each with it on held-out images."
    )
    parser.add_argument("run", type=Path, help="a run folder of fuelrail train, or one checkpoint")
    parser.add_argument("--to", type=Path, help="folder for the files (default: export in the run folder)")
    parser.add_argument(
        "--format",
        type=lambda text: list(dict.fromkeys(text.split(","))),
        default="safetensors,onnx,int8-dynamic,int8-static",
        metavar="FORMAT[,FORMAT]",
        help="formats to write; all but safetensors need onnx and onnxruntime",
    )
    parser.add_argument("--data", help="labelled images to compare on (default: what the training held out)")
    parser.add_argument("--batch-size", type=positive, default=32, help="images at a time")
    add_loading(parser)
    # Formats are written and compared on the CPU.
    parser.set_defaults(device="cpu")
    return parser


def _common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--batch-size", type=positive, default=64, help="images at a time")
    add_loading(parser)
    add_device(parser)
    return parser


_COMMANDS = {
    "eval": (_eval_parser, _evaluate),
    "predict": (_predict_parser, _predict),
    "export": (_export_parser, _export),
}
