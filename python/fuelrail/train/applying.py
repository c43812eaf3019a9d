"""`fuelrail eval` and `fuelrail predict`: what a trained model says of images.

    fuelrail eval runs/first                      its accuracy on what the training held out
    fuelrail eval runs/first data/test            on something else
    fuelrail predict runs/first photos            a JSON line per image: its path, the class, how sure

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
    """Runs `fuelrail eval` or `fuelrail predict`; returns the exit code."""
    arguments = (_eval_parser() if command == "eval" else _predict_parser()).parse_args(argv)
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
        device = chosen_device(arguments.device)
        run = load_run(arguments.run, device)
        work = _evaluate if command == "eval" else _predict
        work(run, arguments)
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

    data, split = arguments.data, None
    if data is None:
        data, split = run.describe.get("held_out") or (None, None)
        if data is None:
            raise ValueError(f"{run.path}: its training held nothing out; name the data to evaluate on")
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


def _common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--batch-size", type=positive, default=64, help="images at a time")
    add_loading(parser)
    add_device(parser)
    return parser
