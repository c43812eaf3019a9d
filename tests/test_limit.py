"""The verdict names the bottleneck, and the commands that print it work."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import SLACK, TINY, Footprint, Loader, T, fuelrail, wait_until

JSON_FIGURES = (
    "images_per_s",
    "cpu_s_per_1000",
    "first_batch_s",
    "reads_per_submission",
    "data_wait",
    "peak_bytes",
)


def verdict(source: str, step: float = 0.0, **options: Any) -> dict[str, str]:
    with Loader(source, batch_size=8, num_workers=1, **options) as loader:
        for _ in loader:
            # A model's step: the one place where a test has to spend time.
            time.sleep(step)
        stats = loader.stats()
        assert stats["data_wait_share"] == pytest.approx(
            stats["data_wait_s"] / stats["iteration_s"], abs=0.02
        )
        return stats["verdict"]


def test_slow_reads_are_named() -> None:
    answer = verdict("synthetic://?count=400&width=32&height=32&delay_us=30000", transforms=TINY)
    assert answer["stage"] == "read", answer
    assert answer["text"].startswith("Bottleneck: reading. ")


def test_slow_transforms_are_named() -> None:
    chain = [T.Resize((400, 400)), T.GaussianBlur(31, 8.0)]
    answer = verdict("synthetic://?count=32&width=500&height=400", transforms=chain)
    assert answer["stage"] == "transform", answer
    more = "num_workers" if len(os.sched_getaffinity(0)) > 1 else "cheaper transforms"
    assert more in answer["text"], "it says what would help"


def test_a_slow_trainer_is_named() -> None:
    answer = verdict("synthetic://?count=400&width=32&height=32", step=0.03, transforms=TINY)
    assert answer["stage"] == "train", answer
    assert "a faster loader would not help" in answer["text"]


# bench -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_bench_prints_backend_reads_per_submission_memory_and_limit(images: Path, backend: str) -> None:
    done = fuelrail("bench", images, "--seconds", "0.3", "--size", "32", "--read-backend", backend)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "reads per submission" in lines["reading"]
    assert backend in lines["reading"] or "threads" in lines["reading"]
    assert "images/s" in lines["throughput"] and "budget" in lines["memory"]
    assert (
        lines["bottleneck"].split(maxsplit=1)[1].startswith(("reading.", "transforms.", "the training step."))
    )
    assert "memory budget" not in done.stderr, "the daemon's inner life is for its log"
    assert "61 samples, 3 classes" in lines["source"]


def test_bench_stays_within_its_memory_budget_and_its_json_parses(images: Path) -> None:
    done = fuelrail("bench", images, "--epochs", "3", "--size", "64", "--batch-size", "8", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(isinstance(report[figure], (int, float)) for figure in JSON_FIGURES)
    assert 0 < report["peak_bytes"] <= report["budget"]["total"]
    assert report["budget"]["total"] == sum(v for owner, v in report["budget"].items() if owner != "total")
    assert report["stats"]["limit"] in ("read", "transform", "train")
    assert report["stats"]["peak_in_flight_bytes"] <= report["budget"]["read_ahead"]
    assert 61 * 3 - 8 <= report["images"] <= 61 * 3


def test_bench_names_a_slow_consumer(images: Path) -> None:
    done = fuelrail(
        "bench", "synthetic://?count=200", "--size", "8", "--step-ms", "20", "--seconds", "1", "--json"
    )
    assert json.loads(done.stdout)["stats"]["limit"] == "train", done.stderr


def test_the_console_command_of_the_package_is_the_same_binary() -> None:
    command = Path(sys.executable).parent / "fuelrail"
    if not command.exists():
        pytest.skip(f"the package is not installed beside {sys.executable}")
    for start in ([str(command)], [sys.executable, "-m", "fuelrail"]):
        arguments = ["bench", "synthetic://?count=100", "--size", "8", "--epochs", "1", "--json"]
        done = subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["stats"]["backend"] == "synthetic"


# preview ---------------------------------------------------------------------------------------------------------------


def test_preview_writes_a_contact_sheet_and_names_its_pictures(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = fuelrail(
        "preview", images, "--out", out, "--size", "48", "--count", "10", "--columns", "4", "--keys"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(out) as sheet:
        assert sheet.width > 4 * 48 and sheet.height > 3 * 48 and sheet.format == "PNG"
        assert len(set(sheet.convert("L").tobytes())) > 100, "there is something to see"
    listed = [line for line in done.stdout.splitlines() if line.startswith("row ")]
    assert len(listed) == 10
    assert all((images / line.split(": ")[1]).is_file() for line in listed)


def test_preview_shows_one_record_under_many_draws(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = fuelrail("preview", images, "-o", out, "--size", "32", "--epochs", "5", "--columns", "3")
    assert done.returncode == 0, done.stderr
    assert "15 pictures" in done.stdout


# Mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Usage"),
        (["bnch"], "bench"),
        (["bench"], "SOURCE"),
        (["bench", "synthetic://", "--secnds", "3"], "--seconds"),
        (["bench", "synthetic://", "--seconds", "-3"], "-3"),
        (["bench", "synthetic://", "--seconds", "many"], "many"),
        (["bench", "synthetic://", "--preset", "evel"], "eval"),
        (["bench", "synthetic://", "--size", "0"], "--size"),
        (["bench", "synthetic://", "--batch-size", "x"], "--batch-size"),
        (["bench", "synthetic://", "--batch-size", "0"], "not a whole number of at least 1"),
        (["bench", "synthetic://", "--seed", "-1"], "not a whole number, 0 or more"),
        (["which", "synthetic://", "--position", "1.5"], "not a whole number"),
        (["pack", "x", "y", "--seed", "z"], "--seed"),
        (["preview", "synthetic://", "--count", "0"], "--count"),
        (["serve", "--sock", "x"], "--socket"),
    ],
)
def test_wrong_arguments_give_exit_code_2_and_name_what_is_wrong(arguments: list[str], word: str) -> None:
    done = fuelrail(*arguments)
    assert done.returncode == 2
    assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "/nonexistent"], ["/nonexistent", "does not exist"]),
        (["bench", "/etc/hostname"], ["/etc/hostname"]),
        (["bench", "synthetic://?cont=3"], ["cont", "count"]),
        (["bench", "synthetic://", "--transforms", "[{]"], ["--transforms"]),
        (["bench", "synthetic://", "--transforms", '[{"type": "Rezise"}]'], ["Rezise", "Resize"]),
        (["bench", "synthetic://", "--read-backend", "aio"], ["aio", "io_uring"]),
        (["serve", "/"], ["/", "folder"]),
        (["bench", "synthetic://?fail_rate=1"], ["injected"]),
        (["bench", "synthetic://?corrupt_rate=1"], ["bad records exceed the limit", "class-"]),
        (
            ["preview", "synthetic://", "--out", "/nonexistent/x.png"],
            ["/nonexistent/x.png", "create it first"],
        ),
        (["preview", "synthetic://", "--out", "x.jpg"], ["x.jpg", ".png"]),
        (["preview", "synthetic://", "--out", "/tmp"], ["/tmp", "folder"]),
        (["inspect", "-"], ["standard input"]),
        (["inspect", "synthetic://", "--source-option", "label"], ["KEY=VALUE"]),
        (
            ["inspect", "synthetic://", "--source-option", "coumt=5"],
            ['unknown key "coumt"; did you mean "count"?'],
        ),
        (["inspect", "x.tar", "-o", "root=/data"], ["it belongs to tables", "tar shards take"]),
        (["serve"], ["--root"]),
        (["serve", "/nonexistent.toml"], ["/nonexistent.toml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_said_clearly(arguments: list[str], words: list[str]) -> None:
    done = fuelrail(*arguments)
    assert done.returncode == 1
    # What the daemon logged may stand before it; a list of bad records may follow it.
    said = done.stderr[done.stderr.index("fuelrail: ") :]
    assert all(word in said for word in words), done.stderr
    assert "panicked" not in done.stderr


def test_the_binary_alone_says_where_train_is() -> None:
    done = fuelrail("train", "--data", "x")
    assert done.returncode == 2 and "python -m fuelrail train --data x" in done.stderr


def test_training_needs_labels(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    np.savez(tmp_path / "rows.npz", image=np.zeros((8, 8, 8, 3), np.uint8), weight=np.full(8, 0.5))
    command = [sys.executable, "-m", "fuelrail", "train", "--size", "8"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode != 0 and "no labels to train on" in done.stderr, done.stderr


def test_spellings_of_older_versions_are_taken(images: Path, tmp_path: Path) -> None:
    for arguments in (
        ("bench", images, "--task", "C", "--size", "8", "--epochs", "1", "--option", 'classes=["bars"]'),
        ("preview", images, "-o", tmp_path / "old.png", "--size", "8"),
        ("inspect", images, "--option", "split=null"),
    ):
        done = fuelrail(*arguments)
        assert "unexpected argument" not in done.stderr, done.stderr


def test_an_error_in_a_configuration_file_has_its_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.toml"
    file.write_text('[pipelines.train]\nsource = "x"\nbatch_size = "8"\n')
    for command in (["serve", str(file)], ["bench", "--config", str(file), "--pipeline", "train"]):
        done = fuelrail(*command)
        assert done.returncode == 1
        assert done.stderr.strip() == (
            f'fuelrail: {file}:3:14: pipelines.train.batch_size: it takes a whole number, 0 or more, not the text "8"'
        )


@pytest.mark.parametrize("command", ["bench", "preview", "which"])
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--read-backend", "magic", '--read-backend: "magic" is not one of'),
        ("--read-depth", "99999", "--read-depth = 99999 is not between"),
        ("--batch-size", "9999999999", "--batch-size = 9999999999 is not between"),
        ("--num-workers", "4000000", "--num-workers = 4000000 is more than"),
        ("--transforms", '[{"type": "Resiz"}]', '--transforms[0].type: "Resiz" is not one of'),
        ("--transforms", "[1,]", "--transforms: not valid JSON: a comma has nothing after it; found"),
    ],
)
def test_a_flag_is_refused_by_its_own_name(
    command: str, flag: str, value: str, said: str, tmp_path: Path
) -> None:
    if (command, flag) in [("preview", "--batch-size"), ("preview", "--transforms")]:
        return  # it has a batch of its own, and looks at its transforms
    out = ["--out", str(tmp_path / "x.png")] if command == "preview" else []
    done = fuelrail(command, "synthetic://?count=8", flag, value, *out)
    assert done.returncode == 1 and done.stderr.startswith(f"fuelrail: {said}"), done.stderr


#: Every command, on something that is not over before the signal comes. A socket that nobody answers on is a broker.
ENDLESS = {
    "bench": ["SOURCE"],
    "inspect": ["SOURCE"],
    "pack": ["SOURCE", "OUT/packed"],
    "preview": ["SOURCE", "--out", "OUT/never.png"],
    "produce": ["SOURCE", "kafka://SILENT/topic"],
    "serve": ["--root", "OUT", "--socket", "OUT/s.sock"],
    "train": ["--data", "SOURCE", "--out", "OUT/run", "--num-classes", "2", "--num-workers", "1"],
    "which": ["kafka://SILENT/topic", "--position", "0"],
}


def test_every_command_is_in_the_list() -> None:
    listed = re.search(r"Commands:\n(.*?)\n\n", fuelrail("--help").stdout, re.DOTALL)
    assert listed is not None
    names = set(re.findall(r"^  (\w+)", listed[1], re.MULTILINE))
    # What works on a run that has ended is over before a signal comes.
    assert names - {"help"} == {*ENDLESS, "eval", "predict", "runs", "export"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ENDLESS)
def test_a_signal_ends_every_command_at_once_with_its_code_and_leaves_nothing(
    command: str, signum: int, footprint: Footprint, tmp_path: Path
) -> None:
    from fuelrail.loader import binary

    if command == "train":
        pytest.importorskip("torch")
    silent = socket.create_server(("127.0.0.1", 0))
    words = {
        "SOURCE": "synthetic://?count=100&delay_us=600000000",
        "SILENT": f"127.0.0.1:{silent.getsockname()[1]}",
        "OUT": str(tmp_path),
    }
    arguments = [re.sub("|".join(words), lambda found: words[found[0]], word) for word in ENDLESS[command]]
    program = [sys.executable, "-m", "fuelrail"] if command == "train" else [str(binary())]
    process = subprocess.Popen(
        [*program, command, *arguments],
        env=footprint.environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemons = {"bench": 2, "preview": 2, "train": 2}.get(command, 1)
    wait_until(lambda: len(footprint.processes()) >= daemons, 60, "it runs")
    # Before its first step the trainer leaves SIGTERM to the system.
    wait_until(lambda: command == "train" or handles(process.pid, signum), 10, "its handlers stand")
    wait_until(lambda: command != "serve" or (tmp_path / "s.sock").exists(), 10, "it serves")
    process.send_signal(signum)
    _, said = process.communicate(timeout=2 * SLACK)
    by_the_system = {-signal.SIGTERM} if command == "train" else set()  # a shell says 143 for it too
    assert process.returncode in {128 + signum} | by_the_system, said
    assert "panicked" not in said and "Traceback" not in said, said
    assert not (tmp_path / "never.png").exists() and not (tmp_path / "s.sock").exists()
    assert not list(tmp_path.rglob("*.tmp")), "nothing half-written stays"
    silent.close()
    footprint.is_clean()


def handles(pid: int, signum: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signum - 1) & 1)


@pytest.mark.parametrize("command", ["inspect --list", "which --count 100000", "inspect"])
def test_a_reader_that_has_enough_ends_the_command_without_a_word(command: str) -> None:
    from fuelrail.loader import binary

    name, *flags = command.split()
    process = subprocess.Popen(
        [str(binary()), name, "synthetic://?count=100000&width=8&height=8", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 141) and "panicked" not in said and "fuelrail: " not in said, said


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_bench_that_never_waits_and_what_it_measured_is_told(
    signum: int, footprint: Footprint
) -> None:
    from fuelrail.loader import binary

    source = "synthetic://?count=64&width=64&height=64"
    # More seconds than a clock has.
    process = subprocess.Popen(
        [str(binary()), "bench", source, "--size", "8", "--batch-size", "1", "--seconds", "1e30"],
        env=footprint.environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def worked() -> bool:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12]) > 50  # clock ticks: half a second of taking batches

    try:
        wait_until(worked, 60, "the command takes batches")
        process.send_signal(signum)
        report, _ = process.communicate(timeout=SLACK)
    finally:
        process.kill()
    assert process.returncode == 128 + signum and "images/s" in report, report
    footprint.is_clean()


def test_version_and_help_are_there() -> None:
    import fuelrail as package

    assert package.__version__ in fuelrail("--version").stdout
    commands = ("serve", "bench", "preview", "pack", "produce", "inspect", "which")
    for command in commands:
        done = fuelrail(command, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout
        for option in re.split(r"\n +(?=-)", done.stdout):
            assert option.count("[default") <= 1 and "(default" not in option, option
    listed = fuelrail("--help").stdout
    assert all(f"  {command} " in listed for command in (*commands, "train"))
