"""Shared by this package's commands: parsing, errors and help of options, and how a command exits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch


def short_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser for `fuelrail COMMAND`: errors are one line, and the help shows each default once."""
    return _Parser(
        prog=f"fuelrail {command}", description=description, formatter_class=_Help, allow_abbrev=False
    )


def add_loading(parser: argparse._ActionsContainer) -> None:
    """The options of every loader."""
    parser.add_argument(
        "--source-option",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the source, such as image=jpg or window_records=4096 (JSON or text); can be repeated. "
        "properties=@client.properties reads Kafka's from a file",
    )
    parser.add_argument("--num-workers", type=positive, help="decoding threads (default: one per core)")


def add_device(parser: argparse._ActionsContainer) -> None:
    """The device option."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")


def chosen_device(name: str | None) -> torch.device:
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


def fail(command: str, error: object, code: int) -> int:
    """Prints the error in one line; returns the exit code."""
    print(f"fuelrail {command}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def quiet_pipe() -> int:
    """The reader of the output has gone (`| head`). Discards what Python would still write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def option(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is JSON, or text."""
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
    """Kafka's properties from a file, one NAME=VALUE per line as for its own clients; errors do not show a line's
    contents."""
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


def positive(text: str) -> int:
    """A whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be between 0 and 1")
    return value


class _Help(argparse.HelpFormatter):
    """Adds each default once: not if the help states it in words, nor if there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        has_default = action.nargs != 0 and action.default not in (None, argparse.SUPPRESS, [])
        if text and has_default and "(default" not in text:
            return f"{text} (default: %(default)s)"
        return text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with 2; the usage text of this many options would bury the error."""
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)
