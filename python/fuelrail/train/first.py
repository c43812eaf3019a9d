"""Checks that `fuelrail train` makes before importing torch, which takes seconds; a typo should not.

None of these checks is final: arguments are checked again where they are used.
"""

from __future__ import annotations

import difflib
import os
import re
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from .data import find_data

#: The model that needs only torch.
BUILT_IN = "small_cnn"


def check(arguments: Namespace) -> None:
    """Raises ValueError for wrong arguments, and ImportError if torch is missing."""
    if find_spec("torch") is None:
        raise ImportError("torch is not installed: pip install torch torchvision (a CPU build is enough)")
    for flag, address in (("--data", arguments.data), ("--val", arguments.val)):
        if address is not None:
            _check_address(flag, address)
    find_data(arguments.data, arguments.val, arguments.val_fraction)
    _check_model(arguments.model)
    _check_out(arguments.out, arguments.resume)


def _check_address(flag: str, address: str) -> None:
    """Checks that a path without patterns exists."""
    if address == "-":
        raise ValueError(f"{flag} -: data cannot be read from standard input; give a path or URL")
    if not address.strip():
        raise ValueError(f"{flag} is empty; give the path or URL of the data")
    if "://" in address or re.search(r"[*?{\[]", address) or Path(address).expanduser().exists():
        return
    path = Path(address)
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {path.parent / close[0]}?" if close else f" (current directory: {Path.cwd()})"
    raise ValueError(f"{flag} {address}: there is no such file or folder{hint}")


def _check_model(name: str) -> None:
    known = model_names()
    # Without names, there is nothing to check yet: torchvision is absent, or stores them differently.
    if name != BUILT_IN and (find_spec("torchvision") is None or (known and name not in known)):
        raise ValueError(unknown_model(name, known))


def unknown_model(name: str, known: list[str]) -> str:
    """The error text for an unknown model."""
    close = difflib.get_close_matches(name, [BUILT_IN, *known], n=4, cutoff=0.5)
    if find_spec("torchvision") is None:
        hint = f"without torchvision there is only {BUILT_IN}; `pip install torchvision` adds the others"
    elif close:
        hint = f"did you mean {', '.join(close)}?"
    else:
        hint = f"use {BUILT_IN} or a torchvision model such as resnet18, resnet50, vit_b_16"
    return f"unknown model {name!r}: {hint}"


def model_names() -> list[str]:
    """torchvision's classifiers, found by reading its files instead of importing it; empty if that fails."""
    spec = find_spec("torchvision")
    places = spec.submodule_search_locations if spec is not None else None
    names: list[str] = []
    for place in places or []:
        for file in (Path(place) / "models").glob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            names += re.findall(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", text, re.MULTILINE)
    return sorted(names)


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: it is a file; name a folder for the run")
    if not resume and any((out / "checkpoints").glob("step-*.pt")):
        raise ValueError(f"{out} already holds a run: continue it with --resume, or name another folder")
    there = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"--out {out}: cannot create files in {there}")
