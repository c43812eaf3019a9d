"""`fuelrail bench --gpu` in its form for machines without one: the same protocol, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
from fuelrail.train import gpu_bench


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuelrail", "bench", "--gpu", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        # Threads that spin for each other starve on a busy machine.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_one_command_measures_each_part_and_prints_one_table(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run(
        *(
            "--device",
            "cpu",
            "--models",
            "small_cnn",
            "--size",
            "32",
            "--batch-size",
            "2",
            "--steps",
            "2",
        ),
        *("--repeats", "1", "--num-workers", "1", "--json", str(file)),
    )
    assert done.returncode == 0, done.stderr
    assert "timm's PrefetchLoader: left out, it needs a CUDA device" in done.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [row["model"] for row in rows] == ["small_cnn"]
    for row in rows:
        assert all(row[way] > 0 for way in ("S", "S+L", "R", "P", "C", "torchvision"))
        assert row["fed_percent"] == pytest.approx(100 * row["S"] / row["P"])
        assert row["transfer"] == pytest.approx(row["R"] - row["S"])
        assert row["fetch"] == pytest.approx(row["C"] - row["P"])
    header = next(line for line in done.stdout.splitlines() if line.startswith("model"))
    assert header.split()[:6] == ["model", "S", "S+L", "R", "P", "C"]
    assert "cpu (" in done.stdout and "batch 2, 32 px, 2 steps" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--device", "cpu", "--peers", "dali"], "--peers dali: there are torchvision, timm"),
        (["--device", "cpu", "--steps", "0"], "--steps is a whole number from 1 on"),
        (
            ["--device", "cpu", "--models", "resnt18", "--size", "32", "--batch-size", "1", "--steps", "1"],
            "resnt18",
        ),
        (
            ["/nowhere", "--device", "cpu", "--models", "small_cnn", "--size", "32", "--batch-size", "1"],
            "/nowhere",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_bench.main(arguments) == 1
    assert said in capsys.readouterr().err


def test_the_models_have_the_sizes_of_their_names() -> None:
    count = sum(each.numel() for each in gpu_bench.model("vit_s_16", 224).parameters())
    assert 21e6 < count < 23e6


def test_generated_photographs_are_distinct_files_of_an_ordinary_size(tmp_path: Path) -> None:
    folder = gpu_bench.photographs(tmp_path / "photos", 70)
    files = [file.read_bytes() for file in sorted(folder.rglob("*.jpg"))]
    assert len(files) == len(set(files)) == 70
    assert 60_000 < sum(map(len, files)) / len(files) < 200_000
