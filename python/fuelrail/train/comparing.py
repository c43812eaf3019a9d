"""`fuelrail runs`: the results of runs side by side, and the settings that differ.

    fuelrail runs runs                    a table of all runs in a folder
    fuelrail runs runs --pages            recreates the page of each, for example of one that was killed

Exit codes: 0 done, 1 failed, 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .history import History, find_runs
from .options import fail, quiet_pipe, short_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `fuelrail runs`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return quiet_pipe()


def _main(arguments: argparse.Namespace) -> int:
    if not arguments.folder.is_dir():
        return fail("runs", f"{arguments.folder}: there is no such folder", 2)
    found = [History.read(path) for path in find_runs(arguments.folder)]
    if not found:
        return fail("runs", f"{arguments.folder}: there are no runs here (folders with a metrics.jsonl)", 2)
    found.sort(key=lambda history: history.started or 0.0)
    if arguments.pages:
        from .page import write_page

        try:
            for history in found:
                print(f"page: {write_page(history.path)[0]}")
        except OSError as error:
            return fail("runs", error, 1)
    elif arguments.json:
        for history in found:
            print(json.dumps(_record(history, arguments.folder), ensure_ascii=False))
    else:
        print("\n".join(compared(found, arguments.folder)))
    return 0


def compared(runs: Sequence[History], folder: Path) -> list[str]:
    """The lines of the table, oldest run first, and of a second one with the settings that differ."""
    from .page import duration, moment, worded

    head = [
        "run",
        "started",
        "state",
        "model",
        "best",
        "epoch",
        "loss",
        "img/s",
        "fed",
        "time",
        "data",
        "code",
    ]
    rows = []
    for history in runs:
        best = history.best or ("", None, "")
        loss = next((line["train_loss"] for line in reversed(history.epochs) if line.get("train_loss")), None)
        speed, fed, seconds = history.mean("images_per_s"), history.mean("fed"), history.seconds
        rows.append(
            [
                _name(history, folder),
                moment(history.started),
                history.state,
                str(history.settings.get("model", "")),
                "" if best[1] is None else _figure(best[0], best[1]),
                str(best[2]),
                "" if loss is None else f"{loss:.3f}",
                "" if speed is None else f"{speed:,.0f}",
                "" if fed is None else f"{fed:.1%}",
                "" if seconds is None else duration(seconds),
                _short(history.versions.get("data")),
                _short(history.versions.get("code")),
            ]
        )
    lines = _aligned([head, *rows])
    # A run of an older version, or one that has just started, lacks some settings; that is not a difference.
    said = {
        name: [worded(_of(each, name)) if _says(each, name) else "" for each in runs] for name in _names(runs)
    }
    names = [name for name, values in said.items() if len(set(values) - {""}) > 1]
    if names:
        table = [["", *(_name(history, folder) for history in runs)]]
        table += [[name, *said[name]] for name in names]
        lines += ["", "settings that differ", *_aligned(table)]
    return lines


def _names(runs: Sequence[History]) -> list[str]:
    """Settings and versions of packages, without the run's location."""
    names = dict.fromkeys(name for history in runs for name in history.settings)
    names.update(dict.fromkeys(name for history in runs for name in history.versions))
    return [name for name in names if name not in ("code", "machine", "model")]


def _says(history: History, name: str) -> bool:
    return name in history.settings or name in history.versions


def _of(history: History, name: str) -> Any:
    if name == "data":
        return history.settings.get("data")
    return history.settings.get(name, history.versions.get(name))


def _record(history: History, folder: Path) -> dict[str, Any]:
    best = history.best
    return {
        "run": _name(history, folder),
        "started": history.started,
        "ended": history.ended,
        "epochs": len(history.epochs),
        "best": None if best is None else {"figure": best[0], "value": best[1], "epoch": best[2]},
        "images_per_s": history.mean("images_per_s"),
        "data_wait": history.mean("data_wait"),
        "fed": history.mean("fed"),
        "seconds": history.seconds,
        "versions": history.versions,
        "settings": history.settings,
    }


def _name(history: History, folder: Path) -> str:
    inside = history.path.relative_to(folder)
    return str(inside) if inside.parts else history.path.resolve().name


def _figure(name: str, value: float) -> str:
    return f"{value:.2%}" if name.startswith("top") else f"{name} {value:.4g}"


def _short(version: Any) -> str:
    """The first digits, with a star if the code differs from its commit."""
    text = str(version or "")
    return text.removesuffix("-dirty")[:8] + ("*" if text.endswith("-dirty") else "")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _parser() -> argparse.ArgumentParser:
    parser = short_parser(
        "runs", "Compare the runs in a folder: what they reached, and which settings differ."
    )
    parser.add_argument("folder", type=Path, help="a folder of run folders, or one run folder")
    parser.add_argument("--json", action="store_true", help="one JSON object per run instead of the table")
    parser.add_argument(
        "--pages",
        action="store_true",
        help="write run.html and run.png of every run again, such as of a killed one",
    )
    parser.epilog = "A star after the commit: the code was changed since."
    return parser
