"""What the documentation tells people to run on a stream runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed: pip install confluent-kafka")
pytest.importorskip("torch")

from kafka.broker import Broker
from streams import Topic
from support import GATE, SLACK, Script, fuelrail, state_of, wait_until

from conftest import kafka_broker

ROOT = Path(__file__).parents[1]


def run(*arguments: object, seconds: float = 100) -> str:
    """The output of a script, which has to succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_trains_on_a_stream_and_goes_on_from_its_checkpoint(
    broker: Broker, tmp_path: Path
) -> None:
    topic = Topic(broker, partitions=4)
    done = fuelrail("produce", "synthetic://?count=4000&width=32&height=32&classes=10", topic.url)
    assert done.returncode == 0, done.stderr
    said = run("examples/train_kafka.py", topic.url, tmp_path / "stream.pt", 20)
    assert "step 20: loss" in said and "behind the end of the stream" in said
    said = run("examples/train_kafka.py", topic.url, tmp_path / "stream.pt", 30)
    assert said.startswith("going on after step 20") and "step 30: loss" in said and "step 20: " not in said


@pytest.mark.skipif(not GATE, reason="the demo takes a minute: FUELRAIL_GATE=1")
def test_the_demo_loses_nothing_and_repeats_nothing() -> None:
    said = run("python/scripts/demo_kafka.py", "--records", 3_200, "--rate", 200, seconds=300)
    table = {
        line.split("  ")[1]: line.split("  ")[-1].strip()
        for line in said.splitlines()
        if line.startswith("  ")
    }
    assert table["lost"] == table["twice"] == "0"
    assert "3,200 records in 4 partitions" in said and "all identical" in said


def test_the_broker_script_starts_and_stops_one_that_outlives_it(broker: Broker, tmp_path: Path) -> None:
    script = ROOT / "tests" / "kafka" / "broker.py"
    servers = run(script, "start", "--dir", tmp_path / "kafka", "--property", "num.partitions=2").strip()
    try:
        done = fuelrail("produce", "synthetic://?count=10", f"kafka://{servers}/topic", "--partitions", 2)
        assert done.returncode == 0, done.stderr
    finally:
        run(script, "stop", "--dir", tmp_path / "kafka")
    assert not [
        entry for entry in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in read(entry)
    ]
    again = subprocess.run([script, "stop", "--dir", tmp_path / "kafka"], capture_output=True, text=True)
    assert again.returncode == 1 and "nothing was started" in again.stderr


def read(path: Path) -> bytes:
    """A file's bytes; none when it is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_broker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    kafka_broker(tmp_path / "not-started")
    code = """
        from kafka.broker import Broker
        broker = Broker(sys.argv[1]).start()
        say(broker.nodes[0].pid)
        import signal
        signal.pause()
    """
    with Script(code, tmp_path / "broker") as script:
        pid = script.hears()
        assert state_of(pid)
        script.signal(9)
        wait_until(lambda: state_of(pid) is None, SLACK, "the broker is gone")
