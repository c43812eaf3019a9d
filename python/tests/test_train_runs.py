"""`fuelrail train` as a user runs it: through the daemon, on files, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="fuelrail.train needs torch")

from train_fakes import run_here

SMALL = ["--model", "small_cnn", "--size", "16", "--batch-size", "8", "--epochs", "3", "--num-workers", "2"]
SMALL += ["--track", "none"]


def start(*arguments: object, **popen: Any) -> subprocess.Popen[str]:
    """`fuelrail train` with `arguments`, as a child."""
    command = [sys.executable, "-m", "fuelrail", "train", *map(str, arguments)]
    # One thread: what is compared bit for bit must add in one order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen
    )


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    """The whole lines of that kind in a run's metrics."""
    if not (out / "metrics.jsonl").exists():
        return []
    records = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if record["event"] == event]


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Until the run has done that step."""
    for _ in range(6000):
        if any(record["step"] >= step for record in lines(out, "ids")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError(f"no step {step} in half a minute")


def ids(out: Path) -> list[tuple[int, int, list[int]]]:
    """(step, epoch, sample indices) of every step."""
    return [(record["step"], record["epoch"], record["ids"]) for record in lines(out, "ids")]


def test_a_folder_becomes_a_trained_model(pictures: Path, tmp_path: Path):
    out = tmp_path / "run"
    code, said, err = run("--data", pictures, "--out", out, *SMALL, "--epochs", "8", "--lr", "0.05")
    assert code == 0, err
    assert "held-out accuracy" in said and "Bottleneck: " in said
    found = re.search(r"top-1 ([\d.]+)%", said)
    assert found and float(found[1]) > 60, said
    for name in ("metrics.jsonl", "best.pt", "curve.png", "samples.png"):
        assert (out / name).stat().st_size > 0, f"{name} of a finished run"
    epochs = lines(out, "epoch")
    assert [record["epoch"] for record in epochs] == list(range(8))
    assert epochs[-1]["val_rows"] == 24


def test_every_sample_is_seen_once_an_epoch(pictures: Path, tmp_path: Path):
    out = tmp_path / "run"
    code, _, err = run("--data", pictures, "--out", out, *SMALL, "--log-ids")
    assert code == 0, err
    for epoch in range(3):
        assert sorted(index for _, of, each in ids(out) if of == epoch for index in each) == list(range(96))
    assert ids(out)[0][2] != ids(out)[12][2], "each epoch has an order of its own"


def test_a_run_killed_and_resumed_reads_what_an_unbroken_one_reads(pictures: Path, tmp_path: Path):
    settings = [
        "--data",
        pictures,
        *SMALL,
        "--epochs",
        "4",
        "--log-ids",
        "--save-every",
        "5",
        "--precision",
        "fp32",
    ]
    code, _, err = run(*settings, "--out", tmp_path / "whole")
    assert code == 0, err
    broken = tmp_path / "broken"
    moments = [3, 17, 30] if not os.environ.get("FUELRAIL_GATE") else list(range(1, 47, 2))
    for step in moments:
        process = start(*settings, "--out", broken, "--resume")
        wait_for_step(process, broken, step)
        process.kill()
        process.communicate()
    code, _, err = run(*settings, "--out", broken, "--resume")
    assert code == 0, err
    assert len(ids(broken)) == 48 and ids(broken) == ids(tmp_path / "whole")
    ends = [lines(out, "end")[-1]["ids"] for out in (tmp_path / "whole", broken)]
    assert ends[0] == ends[1], "the chain over all samples says the same in one line"

    final = [(out / "checkpoints" / "step-00000048.pt").read_bytes() for out in (tmp_path / "whole", broken)]
    assert final[0] == final[1], "its last checkpoint is that of the unbroken run, bit for bit"
    assert [record["val_top1"] for record in lines(broken, "epoch")] == [
        record["val_top1"] for record in lines(tmp_path / "whole", "epoch")
    ]


def test_a_resume_may_change_threads_and_batch_size(pictures: Path, tmp_path: Path):
    settings = ["--data", pictures, *SMALL, "--log-ids"]
    assert run(*settings, "--out", tmp_path / "whole")[0] == 0
    other = tmp_path / "other"
    process = start(*settings, "--out", other)
    wait_for_step(process, other, 5)
    process.terminate()
    process.communicate(timeout=60)
    code, _, err = run(*settings, "--out", other, "--resume", "--batch-size", "16", "--num-workers", "1")
    assert code == 0, err
    samples = [[index for _, _, each in ids(out) for index in each] for out in (tmp_path / "whole", other)]
    assert samples[0] == samples[1], "batch borders move, the order does not"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_saves_says_so_and_leaves_no_process(pictures: Path, tmp_path: Path, signum: int, code: int):
    # In a session of its own, as a terminal's foreground job: ctrl-C reaches the whole group.
    out = tmp_path / "run"
    process = start(
        "--data", pictures, "--out", out, *SMALL, "--epochs", "500", "--log-ids", start_new_session=True
    )
    wait_for_step(process, out, 4)
    daemons = children(process.pid)
    assert daemons, "the private daemon is a child of the trainer"
    os.killpg(process.pid, signum)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert time.monotonic() - began < 10, "prompt, with room for a busy machine"
    last = err.splitlines()[-1]
    assert signal.Signals(signum).name in last and "step-" in last and "--resume" in last
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in daemons) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in daemons if Path(f"/proc/{pid}").exists()]


def children(pid: int) -> list[int]:
    """The live children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_shards_are_trained_on_by_their_address(pictures: Path, tmp_path: Path):
    from fuelrail.loader import binary

    shards, out = tmp_path / "shards", tmp_path / "run"
    subprocess.run(
        [binary(), "pack", pictures / "train", shards], check=True, capture_output=True, timeout=60
    )
    code, stdout, err = run("--data", shards / "*.tar", "--val", pictures / "val", "--out", out, *SMALL)
    assert code == 0, err
    assert "3 classes" in stdout and f"held out: {pictures / 'val'}" in stdout
    assert lines(out, "epoch")[-1]["val_rows"] == 24
    code, _, err = run(
        "--data", shards / "*.tar", "--source-option", "labl=cls", "--out", tmp_path / "wrong", *SMALL
    )
    assert code == 2 and "labl" in err


def test_a_bad_picture_is_named_and_the_run_goes_on(pictures: Path, tmp_path: Path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    (data / "train" / "bars" / "broken.jpg").write_bytes(b"not a picture")
    (data / "val" / "dots" / "empty.jpg").write_bytes(b"")
    code, said, err = run("--data", data, "--out", out, *SMALL)
    assert code == 0, err
    assert "broken.jpg" in (out / "quarantine.jsonl").read_text()
    assert "empty.jpg" in (out / "quarantine-val.jsonl").read_text()
    assert "not counted: 1 held-out" in said
    assert lines(out, "epoch")[-1]["val_rows"] == 24, "its substitute is not measured in its place"
    code, _, err = run("--data", data, "--out", tmp_path / "strict", *SMALL, "--on-error", "fail")
    assert code == 1 and "broken.jpg" in err and "Traceback" not in err


def test_a_part_is_held_out_where_there_is_no_validation_folder(pictures: Path, tmp_path: Path):
    out = tmp_path / "run"
    data = ["--data", pictures / "val", "--val-fraction", "0.25"]
    code, said, err = run(*data, "--out", out, *SMALL, "--epochs", "1", "--log-ids")
    assert code == 0, err
    trained = sum(len(each) for _, _, each in ids(out))
    assert "by key hash" in said and trained + lines(out, "epoch")[0]["val_rows"] == 24
    assert 0 < lines(out, "epoch")[0]["val_rows"] < 24


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--data", "{empty}"], "{empty}"),
        (["--model", "small_cmn"], "small_cnn"),
        (["--lr", "-1"], "lr=-1.0"),
        (["--val-fraction", "2", "--data", "{val}"], "--val-fraction"),
        (["--device", "tpu9"], "tpu9"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--out", "{file}"], "{file}"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
):
    places = {"empty": tmp_path / "empty", "val": pictures / "val", "file": tmp_path / "file"}
    places["empty"].mkdir()
    places["file"].write_text("a file, not a folder")
    arguments = [argument.format(**places) for argument in arguments]
    code, _, err = run_here(capsys, "--data", pictures, "--out", tmp_path / "run", *SMALL, *arguments)
    assert code == 2, err
    assert named.format(**places) in err.splitlines()[-1]
    assert "Traceback" not in err and sum("error" in line for line in err.splitlines()) == 1


def test_a_run_folder_in_use_is_not_overwritten(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = ["--data", pictures, "--out", tmp_path / "run", *SMALL, "--epochs", "1"]
    assert run_here(capsys, *settings)[0] == 0
    code, _, err = run_here(capsys, *settings)
    assert code == 2 and "--resume" in err
    code, said, err = run_here(capsys, *settings, "--resume")
    assert code == 0 and "held-out accuracy" in said, "a finished run resumes to its own end"
    code, _, err = run_here(capsys, *settings, "--resume", "--seed", "9")
    assert code == 2 and "seed" in err, "another order is another run"


@pytest.mark.parametrize("name", ["train_torch.py", "resume.py"])
def test_the_examples_run(pictures: Path, tmp_path: Path, name: str):
    example = Path(__file__).parents[2] / "examples" / name
    if not example.exists():
        pytest.skip("the examples are in the checkout, not in the wheel")
    command = [sys.executable, str(example), str(pictures / "train"), str(tmp_path / "saved.pt")]
    first = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert first.returncode == 0, first.stderr
    if name == "resume.py":
        again = subprocess.run(command, text=True, capture_output=True, timeout=300)
        assert again.returncode == 0, again.stderr
        assert "going on after step" in again.stdout
