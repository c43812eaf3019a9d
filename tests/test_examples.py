"""The scripts in examples/ that need no downloaded data do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import formats
import pytest

ROOT = Path(__file__).parents[1]


def example(name: str, *arguments: Any) -> str:
    """Runs an example to its end and gives what it printed."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    # Threads that spin for each other starve on a busy machine.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.deadline(300)
def test_a_mixture_is_drawn_three_to_one(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    formats.tar(images, tmp_path)
    said = example("mix.py", images, f"{tmp_path}/train-*.tar")
    assert re.findall(r"(\d+) own, (\d+) web", said) == [("750", "250")] * 2, said


@pytest.mark.deadline(300)
def test_packed_tokens_teach_a_small_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pyarrow")
    said = example("tokens.py", tmp_path / "text.parquet", ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0], said
