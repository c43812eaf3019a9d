"""`make demo-kafka`: training on a live Kafka stream, killed in the middle, and what that did to the data: nothing.

    broker  ◀── fuelrail produce: handwritten digits, 160 a second
       │
       ╰──▶ trainer, a checkpoint every 25 steps ── kill -9 ──▶ trainer again, from its checkpoint

At the end the records that the final weights have seen are compared with what lies in the topic. About a minute on two
cores, after the set-up; what it starts ends with it.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from digits import write_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from kafka.broker import Broker, BrokerError

BUILD = Path("build/demo")
TOPIC = "digits"
BATCH, EVERY = 32, 25


def main() -> int:
    """Runs the demo; 0 when nothing was lost and nothing came twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=4_800, help="records that are produced and trained on")
    parser.add_argument("--rate", type=int, default=160, help="records a second")
    arguments = parser.parse_args()
    steps = max(2 * EVERY, arguments.records // BATCH)
    write_digits(BUILD / "digits")
    out = BUILD / "kafka"
    # The demo's own folder: each demo is a new run.
    shutil.rmtree(out, ignore_errors=True)
    # SIGTERM ends it as ctrl-C does, with everything it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        say("starting a Kafka broker")
        with Broker(out / "broker") as broker:
            return Demo(broker, out, steps, arguments.rate).run()
    except BrokerError as error:
        print(f"demo-kafka: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class Demo:
    """The producer, the trainer and what they say."""

    def __init__(self, broker: Broker, out: Path, steps: int, rate: int) -> None:
        self._url = f"kafka://{broker.bootstrap}/{TOPIC}"
        self._out = out
        self._steps = steps
        self._rate = rate
        self._delivered: dict[int, list[list[int]]] = {}
        self._replayed = 0

    def run(self) -> int:
        """Produces and trains; kills and resumes in the middle; compares."""
        records = self._steps * BATCH
        command = [fuelrail(), "produce", str(BUILD / "digits" / "train"), self._url, "--partitions", "4"]
        command += ["--rate", f"{self._rate}/s", "--limit", str(records), "--shuffle", "--forever"]
        say(f"$ {' '.join(['fuelrail', *command[1:]])}")
        producer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            wait_for_topic(self._url, producer)
            self._train(kill_at=self._steps // 2 + EVERY // 2)
            say("kill -9 of the trainer; starting it again, from its checkpoint")
            last = self._train(kill_at=None)
            produced = producer.communicate(timeout=60)[0].strip()
        finally:
            producer.kill()
        say(f"producer: {produced}")
        return self._compare(records, last)

    def _train(self, kill_at: int | None) -> dict[str, Any]:
        """One run of the trainer, to its end or to this step; the last thing it said."""
        trainer = [sys.executable, str(Path(__file__).with_name("demo_kafka_trainer.py"))]
        trainer += [
            self._url,
            str(BUILD / "digits" / "val"),
            str(self._out / "checkpoint.pt"),
            str(self._steps),
        ]
        process = subprocess.Popen([*trainer, str(EVERY), str(BATCH)], stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
        said: dict[str, Any] = {}
        try:
            while (line := lines.get(timeout=120)) is not None:
                said = json.loads(line)
                if "resumed" in said:
                    say(f"trainer: {said['resumed']}")
                if "step" in said:
                    self._note(said)
                if kill_at is not None and said.get("step", 0) >= kill_at:
                    process.kill()
                    process.wait()
                    return said
            if process.wait() != 0:
                raise SystemExit(f"demo-kafka: the trainer ended with status {process.returncode}")
            return said
        finally:
            process.kill()

    def _note(self, said: dict[str, Any]) -> None:
        """A step: shown, and compared with what it was before the kill."""
        step, names = said["step"], said["names"]
        # Behind the window of the checkpoint the live edge may be cut elsewhere: no weights that are left have seen it.
        if step in self._delivered and said["fixed"]:
            self._replayed += 1
            if self._delivered[step] != names:
                raise SystemExit(f"demo-kafka: step {step} was another batch before the kill")
        self._delivered[step] = names
        if step % EVERY == 0 or step == self._steps:
            lag = "?" if said["lag"] is None else f"{said['lag']:,}"
            say(
                f"trainer: step {step:3} of {self._steps}, loss {said['loss']:.3f}, window {said['window']}, "
                f"{said['rate']:.0f} records/s, lag {lag}"
            )

    def _compare(self, records: int, last: dict[str, Any]) -> int:
        """The table at the end."""
        names = [tuple(name) for name in last["seen"]]
        seen = set(names)
        twice = len(names) - len(seen)
        # By the broker's own count: offsets begin at 0 in a fresh topic.
        held = ends(self._url)
        written = {(partition, offset) for partition, count in held.items() for offset in range(count)}
        lost = len(written - seen)
        rows = [
            ("produced", f"{len(written):,} records in {len(held)} partitions"),
            ("trained on by the final weights", f"{len(seen & written):,}"),
            ("lost", f"{lost:,}"),
            ("twice", f"{twice:,}"),
            ("batches of the checkpoint's window again", f"{self._replayed}, all identical"),
            ("accuracy on unseen digits", f"{last['accuracy']:.1%}"),
        ]
        width = max(len(name) for name, _ in rows)
        print()
        for name, value in rows:
            print(f"  {name:{width}}  {value}")
        good = lost == 0 and twice == 0 and len(written) == records and seen == written
        return 0 if good else 1


def fuelrail() -> str:
    """The command of the package in this environment."""
    return str(Path(sys.executable).with_name("fuelrail"))


def pump(stream: Any, lines: queue.Queue[str | None]) -> None:
    """Lines of a process, then None."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def wait_for_topic(url: str, producer: subprocess.Popen[str]) -> None:
    """Until the producer has made it."""
    deadline = time.monotonic() + 60
    while True:
        # A partition that is being made has no leader yet.
        with suppress(KafkaException):
            if ends(url):
                return
        if producer.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("demo-kafka: the producer did not create the topic")
        time.sleep(0.1)


def ends(url: str) -> dict[int, int]:
    """How many records each partition of a topic holds, by librdkafka's own Python client; empty without a topic."""
    servers, _, topic = url.removeprefix("kafka://").partition("/")
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "demo", "log_level": 0})
    try:
        found = consumer.list_topics(timeout=20).topics.get(topic)
        partitions = sorted(found.partitions) if found else []
        marks = {each: consumer.get_watermark_offsets(TopicPartition(topic, each), 20) for each in partitions}
        return {each: high for each, (_, high) in marks.items()}
    finally:
        consumer.close()


BEGAN = time.monotonic()


def say(text: str) -> None:
    """A line with the time since the start."""
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
