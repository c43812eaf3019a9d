"""What ARCHITECTURE.md and the protocol's drawing say is true of the code, and functions stay short."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()

#: The longest function, in lines.
LONGEST = 120


def files(*endings: str) -> list[Path]:
    """The project's own files, by their paths below its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        found = [Path(line) for line in listed.stdout.splitlines()]
    else:  # an unpacked archive
        found = [path.relative_to(ROOT) for top in TOPS for path in (ROOT / top).rglob("*")]
    return sorted(path for path in found if path.suffix in endings and (ROOT / path).is_file())


#: Where code lies.
TOPS = ("connectors", "transforms", "loader", "python", "benches", "tests", "examples")


def the_map() -> dict[str, str]:
    """The code map: of each folder that it opens a paragraph for, the paragraph."""
    block = re.search(r"## The map\n\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert block, "ARCHITECTURE.md has a map"
    rooms: dict[str, str] = {}
    for line in block.group(1).splitlines():
        if opened := re.match(r"(\S+)", line):
            room = opened.group(1).rstrip("/")
            rooms[room] = ""
        rooms[room] += line + "\n"
    return rooms


@pytest.mark.parametrize(
    "top", ["connectors/src", "transforms/src", "loader/src", "python/src", "python/fuelrail"]
)
def test_the_map_names_every_file_or_the_folder_it_lies_in(top: str) -> None:
    paragraph = the_map()[top]
    missing = []
    for path in files(".rs", ".py", ".c"):
        if not path.is_relative_to(top):
            continue
        inside = path.relative_to(top)
        names = [inside.name, *(f"{parent}/" for parent in map(str, inside.parents) if parent != ".")]
        # The root of a crate or a package, and tests beside what they test, need no line of their own.
        if (
            inside.name in ("lib.rs", "mod.rs", "__init__.py", "__main__.py")
            or "tests" in inside.with_suffix("").parts
        ):
            continue
        if not any(re.search(rf"(?<![\w/]){re.escape(name)}", paragraph) for name in names):
            missing.append(str(inside))
    assert not missing, f"ARCHITECTURE.md's map of {top} names neither these nor their folder"


def test_the_map_names_no_file_that_is_gone() -> None:
    for top, paragraph in the_map().items():
        for name in re.findall(r"(?<![\w/.])([a-z_0-9/]+\.(?:rs|py|c|sh))\b", paragraph):
            beside = [ROOT / name, ROOT / top / name, ROOT / Path(top).parent / name]
            below = (ROOT / top).rglob(name.rsplit("/")[-1]) if (ROOT / top).is_dir() else []
            assert any(path.exists() for path in beside) or any(below), f"{top}: {name}"


def test_unsafe_code_lies_in_the_files_that_architecture_names() -> None:
    (sentence,) = re.findall(r"\*\*Unsafe code\*\* is in (.*?);", ARCHITECTURE, re.DOTALL)
    named = set(re.findall(r"`([^`]+)`", sentence))
    allowing = {str(path) for path in files(".rs") if "#![allow(unsafe_code)]" in (ROOT / path).read_text()}
    assert named == allowing


def test_every_message_of_the_protocol_is_in_its_drawing() -> None:
    text = (ROOT / "loader/src/protocol.rs").read_text()
    drawing = "\n".join(line for line in text.splitlines() if line.startswith("//!"))
    for kind in ("Request", "Reply"):
        (body,) = re.findall(rf"pub enum {kind} {{\n(.*?)\n}}\n", text, re.DOTALL)
        for variant in re.findall(r"^    ([A-Z]\w*)", body, re.MULTILINE):
            message = re.sub(r"(?<!^)([A-Z])", r"_\1", variant).lower()
            assert re.search(rf"\b{message}\b", drawing), (
                f"{kind}::{variant} is not in the drawing of protocol.rs"
            )


def rust_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of each function, as rustfmt lays it out: its last line is indented like its first."""
    lines = (ROOT / path).read_text().splitlines()
    for at, line in enumerate(lines):
        opened = re.match(
            r"( *)(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe |extern \"C\" )*fn (\w+)", line
        )
        if not opened:
            continue
        indent, name = opened.groups()
        for length, later in enumerate(lines[at:], start=1):
            # A signature without a body ends with a semicolon, one on a single line with its brace.
            if later == f"{indent}}}" or (
                later.startswith(indent) and later.endswith((";", "}")) and length == 1
            ):
                yield name, length
                break


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_a_reader_can_hold() -> None:
    found = [(path, *function) for path in files(".rs") for function in rust_functions(path)]
    found += [(path, *function) for path in files(".py") for function in python_functions(path)]
    assert len(found) > 1000, "the search finds functions"
    assert not [f"{path}: {name} has {lines} lines" for path, name, lines in found if lines > LONGEST]
