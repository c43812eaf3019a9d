"""What a run leaves to look at: a page and a picture that need nothing else, and a table of several runs."""

# ruff: noqa: E402  (importorskip comes before the imports that need what it looks for)
from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import photographs
import pytest

torch = pytest.importorskip("torch", reason="fuelrail.train needs torch")

from fuelrail.train.cli import main as train
from fuelrail.train.comparing import main as runs
from fuelrail.train.feeding import Queues
from fuelrail.train.history import History, find_runs, versions
from fuelrail.train.metrics import read_metrics
from fuelrail.train.page import write_page
from support import QUICK_TRAINING

QUICK = [*QUICK_TRAINING, "--batch-size", "8", "--log-every", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs that differ in the learning rate."""
    torch.set_num_threads(1)
    data = photographs.folder(tmp_path_factory.mktemp("data"), 60, seed=3, least=24, most=40)
    root = tmp_path_factory.mktemp("runs")
    for name, rate, epochs in (("first", "0.05", "2"), ("second", "0.01", "1")):
        arguments = ["--data", str(data), "--out", str(root / name), "--lr", rate, "--epochs", epochs]
        assert train([*arguments, *QUICK]) == 0
    return root


class Seen(HTMLParser):
    """All that a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(page: Path) -> Seen:
    parser = Seen()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_a_training_ends_with_a_page_that_needs_no_other_file(trained: Path):
    page = seen(trained / "first" / "run.html")
    assert page.fetched and all(each.startswith(("data:image/png;base64,", "#")) for each in page.fetched)
    assert not {"script", "link", "iframe"} & set(page.tags) and "svg" in page.tags
    assert "url(" not in re.sub(r"url\(#", "", (trained / "first" / "run.html").read_text())
    # Samples, the worst, the confusion.
    assert page.tags.count("img") == 3
    lines = read_metrics(trained / "first" / "metrics.jsonl")
    made_with = next(line for line in lines if line["event"] == "run")["versions"]
    for told in (made_with["data"], made_with["torch"], "label_smoothing", "0.05", "2/2 epochs"):
        assert told in page.text, told


def test_the_picture_holds_curves_contact_sheet_and_settings(trained: Path):
    Image = pytest.importorskip("PIL.Image")
    with (
        Image.open(trained / "first" / "run.png") as whole,
        Image.open(trained / "first" / "samples.png") as sheet,
    ):
        # The sheet pixel by pixel, with the curves above it and the text below.
        assert whole.width == sheet.width and whole.height > sheet.height + 900
        assert (
            whole.convert("L").crop((0, whole.height - 250, whole.width // 2, whole.height)).getextrema()[0]
            < 100
        )


def test_steps_say_how_deep_the_queues_were(trained: Path):
    steps = [line for line in read_metrics(trained / "first" / "metrics.jsonl") if line["event"] == "step"]
    assert steps and all(line["queued"] >= 0 and 0 <= line["ring_full"] <= 1 for line in steps)


def test_the_queue_is_what_was_waited_in_it_per_time_that_passed():
    daemon = {"wall_ns": 1_000, "queue_ns": 3_000, "ring_full_ns": 500}

    class Loader:
        def stats(self) -> dict[str, Any]:
            return {"daemon": daemon}

    queues = Queues(Loader())
    assert queues.since_last() == {"queued": 3.0, "ring_full": 0.5}
    daemon.update(wall_ns=2_000, queue_ns=3_500, ring_full_ns=1_400)
    assert queues.since_last() == {"queued": 0.5, "ring_full": 0.9}
    # A counter that began again, and a loader that has none.
    daemon.update(wall_ns=10)
    assert queues.since_last() == {}
    assert Queues(object()).since_last() == {}


def test_runs_are_compared_in_a_table_with_the_settings_that_differ(
    trained: Path, capsys: pytest.CaptureFixture[str]
):
    assert runs([str(trained)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[0] == "run" and [line.split()[0] for line in said[1:3]] == ["first", "second"]
    differ = said[said.index("settings that differ") + 1 :]
    assert [line.split()[0] for line in differ] == ["first", "epochs", "lr", "peak_lr"]
    assert differ[2].split() == ["lr", "0.05", "0.01"]
    assert runs([str(trained), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["epochs"] for record in records] == [2, 1] and records[0]["versions"]["data"]


def test_the_page_of_a_run_that_was_killed_can_be_made(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = (trained / "first" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "killed <b>").mkdir()
    torn = "\n".join([*lines[:4], lines[4][:20]])
    (tmp_path / "killed <b>" / "metrics.jsonl").write_text(torn)
    assert runs([str(tmp_path), "--pages"]) == 0
    text = (tmp_path / "killed <b>" / "run.html").read_text()
    assert "not ended" in text and "<b>:" not in text and (tmp_path / "killed <b>" / "run.png").exists()
    capsys.readouterr()
    assert runs([str(tmp_path)]) == 0 and "not ended" in capsys.readouterr().out


def test_a_run_without_a_single_step_still_has_a_page(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "run", "step": 0, "recipe": {}, "time": 1.0}\n')
    assert {path.name for path in write_page(tmp_path)} == {"run.html", "run.png"}


def test_without_matplotlib_the_page_says_what_to_install(trained: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes((trained / "first" / "metrics.jsonl").read_bytes())
    code = "import sys; sys.modules['matplotlib'] = None; from fuelrail.train.page import write_page; "
    code += f"from pathlib import Path; write_page(Path({str(run)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    assert "pip install matplotlib" in seen(run / "run.html").text and not (run / "run.png").exists()


def test_where_there_are_no_runs_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert runs([str(tmp_path)]) == 2 and "no runs here" in capsys.readouterr().err
    assert runs([str(tmp_path / "absent")]) == 2 and "no such folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no run here"):
        History.read(tmp_path)


def test_runs_are_found_below_a_folder_and_not_inside_each_other(tmp_path: Path):
    for name in ("a", "b/c", "b/c/inner", ".hidden"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "metrics.jsonl").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ["a", "b/c"]


def test_the_code_is_named_by_its_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "train.py"), raising=False)
    assert versions({}, "cpu")["code"] is None
    (tmp_path / "train.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert versions({}, "cpu")["code"] == git("rev-parse", "HEAD")
    (tmp_path / "train.py").write_text("2")
    assert versions({}, "cpu")["code"] == git("rev-parse", "HEAD") + "-dirty"


def test_comparing_runs_does_not_wait_for_torch(trained: Path):
    code = f"from fuelrail.train.comparing import main; import sys; main([{str(trained)!r}]); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
