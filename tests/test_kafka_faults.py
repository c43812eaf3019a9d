"""What brokers, producers and operators do to a stream under a running training: nothing is lost, nothing comes twice,
and what cannot be read any more stops the run by name.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed: pip install confluent-kafka")

from confluent_kafka import TopicPartition
from fuelrail import DaemonDied, DataError, FuelrailError, SourceError
from kafka.broker import Broker, free_ports
from streams import QUIET, Topic, Training, names_of, once, picture
from support import GATE, SLACK, Script, at_most, wait_until

#: Promised: data that is gone is noticed within ten seconds.
GONE_SECONDS = 10


def stops(topic: Topic, batches: Any) -> str:
    """Reads until the stream stops, which it has to within the promised time; what it says."""
    deadline = time.monotonic() + GONE_SECONDS * SLACK
    with pytest.raises(SourceError) as stopped:
        while time.monotonic() < deadline:
            topic.check(next(batches))
    return str(stopped.value)


# kill -9 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.deadline(240)
def test_a_trainer_killed_at_any_moment_goes_on_from_its_checkpoint(
    broker: Broker, tmp_path: Path, rng: random.Random
) -> None:
    topic = Topic(broker)
    kills = 20 if GATE else 3
    enough = 300 * (kills + 1)
    training = Training(topic, tmp_path, enough, batch_size=6, source_options={"window_records": 100})
    # Half of it is there before; the rest is written while it trains.
    topic.write(enough // 2)
    for number in range(kills):
        after = rng.randint(5, 40)
        steps = itertools.count()

        def kill(said: dict[str, Any], script: Script, after: int = after, steps: Any = steps) -> bool:
            if next(steps) < after:
                return False
            script.signal(signal.SIGKILL)
            script.ends()
            return True

        assert not training.run(kill), "it was killed before its end"
        topic.write(enough // 2 // kills + 1)
        assert number < kills
    assert training.run(lambda said, script: False)
    assert training.runs == kills + 1
    once(training.seen[:enough], set(training.seen) & set(topic.names))
    assert len(training.seen) >= enough and set(training.seen) <= set(topic.names)
    gapless(training.seen, topic)


def gapless(seen: list[Any], topic: Topic) -> None:
    """Asserts that nothing was skipped: all but the current window is an unbroken stretch of each partition."""
    behind = len(seen) - 200
    for partition in range(topic.partitions):
        early = {offset for at, (number, offset) in enumerate(seen) if number == partition and at < behind}
        offsets = {offset for number, offset in seen if number == partition}
        assert all(offset in offsets for offset in range(max(early, default=0)))


@pytest.mark.deadline(240)
def test_a_daemon_killed_at_any_moment_is_replaced_and_the_run_goes_on(
    broker: Broker, rng: random.Random
) -> None:
    topic = Topic(broker)
    topic.write(1500)
    token, seen, steps = None, [], {}
    for attempt in itertools.count():
        last = attempt == (20 if GATE else 3)
        loader = topic.bounded(batch_size=6)
        if token:
            loader.load_state_dict(token)
        if not last:
            victim = threading.Timer(rng.uniform(0, 0.4), kill_if_there, (loader.daemon_pid,))
            victim.start()
        try:
            for batch in loader:
                names = topic.check(batch)
                steps.setdefault(len(seen), names)
                assert steps[len(seen)] == names
                seen += names
                token = loader.state_dict()
        except DaemonDied:
            assert not last
        loader.close()
        if not last:
            victim.join()
        if last or len(seen) == 1500:
            break
    once(seen, topic.names)


def kill_if_there(pid: int) -> None:
    """It may have ended already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.deadline(240)
def test_a_broker_killed_under_a_training_comes_back_and_nothing_is_lost(
    own_broker: Broker, tmp_path: Path
) -> None:
    topic = Topic(own_broker)
    topic.write(600)
    with topic.loader(batch_size=10, timeout=120, source_options={"window_records": 50}) as loader:
        batches = iter(loader)
        seen: list[Any] = []
        for restart in range(10 if GATE else 2):
            for _ in range(10):
                seen += topic.check(next(batches))
            (own_broker.kill if restart % 2 == 0 else own_broker.stop)()
            # What is in memory already is delivered; then it waits.
            own_broker.restart()
            topic.write(100)
        left = set(topic.names) - set(seen)
        while left:
            names = topic.check(next(batches))
            seen += names
            left -= set(names)
    once(seen, topic.names)


@pytest.mark.deadline(240)
def test_a_stalled_stream_says_so_while_next_still_waits(
    own_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic(own_broker)
    topic.write(8)
    with topic.loader(batch_size=8, timeout=120) as loader:
        batches = iter(loader)
        topic.check(next(batches))
        caplog.clear()
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(next(batches)), daemon=True)
        thread.start()
        own_broker.kill()
        wait_until(lambda: "no broker of" in caplog.text, 60, "the warning is logged")
        assert thread.is_alive() and not got, "next() waits"
        own_broker.restart()
        topic.write(8, seconds=120)
        thread.join(100)
        topic.check(got[0])
        assert caplog.text.count("no broker of") == 1, "each line comes once"


# Clusters --------------------------------------------------------------------------------------------------------------


@pytest.mark.deadline(300)
def test_leaders_move_and_brokers_die_and_nothing_is_lost_or_repeated(cluster: Broker) -> None:
    topic = Topic(cluster, partitions=6, replication=3)
    topic.write(600)
    with topic.loader(batch_size=10, timeout=60, source_options={"window_records": 60}) as loader:
        batches = iter(loader)
        seen: list[Any] = []
        for victim in (1, 2, 3) * (10 if GATE else 1):
            # So that it is in the middle of something when the broker dies.
            topic.write(150, seconds=120)
            for _ in range(12):
                seen += topic.check(next(batches))
            cluster.kill(victim)
            # The others take over: reading and writing go on without it.
            topic.write(150, seconds=120)
            while len(seen) < len(topic.written) - 60:
                seen += topic.check(next(batches))
            cluster.restart(victim)
        while len(seen) < len(topic.written):
            seen += topic.check(next(batches))
    once(seen, topic.names)


@pytest.mark.deadline(300)
def test_all_brokers_down_for_a_while_is_only_a_pause(cluster: Broker) -> None:
    topic = Topic(cluster, partitions=3, replication=3)
    topic.write(200)
    down = 30 if GATE else 3
    with topic.loader(batch_size=10, timeout=180, source_options={"window_records": 50}) as loader:
        batches = iter(loader)
        seen = [name for _ in range(10) for name in topic.check(next(batches))]
        cluster.kill()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > down, 2 * down, "the time is over")
        cluster.restart()
        topic.write(100, seconds=120)
        while len(seen) < 300:
            seen += topic.check(next(batches))
    once(seen, topic.names)


class Slow:
    """A relay to a broker that holds everything back for a while in both directions."""

    def __init__(self, port: int, delay: float) -> None:
        self.target = 0
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        held: list[tuple[float, bytes]] = []
        ready = threading.Condition()

        def deliver() -> None:
            while True:
                with ready:
                    ready.wait_for(lambda: held)
                    due, piece = held.pop(0)
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    sink.sendall(piece)
                    if not piece:
                        sink.shutdown(socket.SHUT_WR)
                        return
                except OSError:
                    return

        threading.Thread(target=deliver, daemon=True).start()
        while True:
            try:
                piece = source.recv(1 << 16)
            except OSError:
                piece = b""
            with ready:
                held.append((time.monotonic() + self._delay, piece))
                ready.notify()
            if not piece:
                return

    def close(self) -> None:
        self._listener.close()


@pytest.mark.deadline(240)
def test_round_trips_of_two_seconds_are_waited_for(tmp_path: Path) -> None:
    from conftest import kafka_broker

    port = next(free_ports(1))
    relay = Slow(port, 1.0 if GATE else 0.3)
    # Clients are sent through the relay by the address that the broker gives them.
    advertised = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}"}
    with kafka_broker(tmp_path / "broker", properties=advertised) as broker:
        relay.target = broker.nodes[0].port
        broker.nodes[0].port = port
        topic = Topic(broker)
        topic.write(200)
        with topic.bounded(timeout=120) as loader:
            once([name for batch in loader for name in topic.check(batch)], topic.names)
    relay.close()


# Data that is gone -----------------------------------------------------------------------------------------------------


def test_records_deleted_before_a_token_stop_the_run_with_the_range(broker: Broker) -> None:
    topic = Topic(broker, partitions=2)
    topic.write(200, partition=lambda number: number % 2)
    with topic.loader(source_options={"window_records": 40}) as loader:
        for _ in itertools.islice(loader, 3):
            token = loader.state_dict()
    # The token's window is [0, 20) of each.
    topic.delete_records({1: 35})
    with (
        topic.loader(source_options={"window_records": 40}) as loader,
        at_most(GONE_SECONDS * SLACK, "a stop"),
        pytest.raises(FuelrailError) as stopped,
    ):
        loader.load_state_dict(token)
        next(iter(loader))
    said = str(stopped.value)
    assert f"{topic.name}/1" in said and "0 to 34 (35)" in said, said


def test_a_run_goes_on_although_what_lies_before_its_token_is_gone(broker: Broker) -> None:
    topic = Topic(broker, partitions=1)
    topic.write(200)
    source = {"source_options": {"window_records": 40, "start": 0, "end": 200}}
    with topic.loader(**source) as loader:
        batches = iter(loader)
        seen = [name for batch in itertools.islice(batches, 12) for name in topic.check(batch)]
        token = loader.state_dict()
    # It stands in the third window, [80, 120).
    topic.delete_records({0: 80})
    with topic.loader(**source) as loader:
        loader.load_state_dict(token)
        once(seen + [name for batch in loader for name in topic.check(batch)], topic.names)
    with topic.loader(**source) as loader, pytest.raises(FuelrailError, match=r"offsets 0 to 79 \(80\)"):
        next(iter(loader))


def test_records_deleted_ahead_of_a_slow_training_stop_it_with_the_range(broker: Broker) -> None:
    topic = Topic(broker, partitions=1)
    topic.write(4000, value=lambda number: picture(number) + bytes(2000))
    # About 1 MiB of windows is read ahead, of 9 MiB; what is deleted lies behind that.
    options = {"source_options": {"window_records": 20, "window_bytes": 64 << 10}, "prefetch_factor": 1}
    options["source_options"]["properties"] = {
        "queued.max.messages.kbytes": 64,
        "fetch.message.max.bytes": 20_000,
    }
    with topic.loader(**options) as loader:
        batches = iter(loader)
        topic.check(next(batches))
        topic.delete_records({0: 3900})
        said = stops(topic, batches)
        assert f"{topic.name}/0" in said and "to 3899 (" in said, said


def test_retention_that_overtakes_a_training_stops_it(broker: Broker) -> None:
    topic = Topic(broker, partitions=1, config={"retention.ms": 1000, "segment.bytes": 1 << 20})
    hour = int(time.time() * 1000) - 3_600_000
    topic.write(100)
    with topic.loader(source_options={"window_records": 40}) as loader:
        for _ in itertools.islice(loader, 3):
            token = loader.state_dict()
    # Old by their time stamps; the segment closes with what is written then.
    topic.write(3000, value=lambda number: picture(number) + bytes(1000), timestamp=hour)
    wait_until(lambda: low(topic) > 40, 60, "retention has removed the first segment")
    with (
        topic.loader(source_options={"window_records": 40}) as loader,
        pytest.raises(FuelrailError) as stopped,
    ):
        loader.load_state_dict(token)
        next(iter(loader))
    said = str(stopped.value)
    assert f"{topic.name}/0" in said and "offsets 0 to " in said, said


def low(topic: Topic, partition: int = 0) -> int:
    """The first offset that is still there."""
    from confluent_kafka import Consumer

    consumer = Consumer({"bootstrap.servers": topic.broker.bootstrap, "group.id": "low", **QUIET})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic.name, partition), 10)[0])
    finally:
        consumer.close()


def test_a_window_that_compaction_changed_stops_the_run_with_its_range(broker: Broker) -> None:
    config = {
        "cleanup.policy": "compact",
        "segment.bytes": 1 << 20,
        "segment.ms": 100,
        "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": 100,
        "delete.retention.ms": 100,
    }
    topic = Topic(broker, partitions=1, config=config)
    key = lambda number: str(number % 10).encode()  # noqa: E731
    topic.write(200, key=key)
    with topic.loader(source_options={"window_records": 100}) as loader:
        for _ in itertools.islice(loader, 3):
            token = loader.state_dict()

    def compacted() -> bool:
        # A segment is closed by what comes after it.
        topic.write(10, key=key)
        with topic.bounded(source_options={"window_records": 1000}) as reader:
            return min(offset for batch in reader for _, offset in names_of(batch)) > 100

    wait_until(compacted, 60, "the first hundred are compacted away")
    with (
        topic.loader(source_options={"window_records": 100}) as loader,
        pytest.raises(FuelrailError) as stopped,
    ):
        loader.load_state_dict(token)
        next(iter(loader))
    said = str(stopped.value)
    assert f"{topic.name}/0 offsets 0 to 99" in said and "100" in said, said


def test_what_compaction_left_is_read_once(broker: Broker) -> None:
    topic = Topic(
        broker,
        partitions=2,
        config={
            "cleanup.policy": "compact",
            "segment.ms": 100,
            "min.cleanable.dirty.ratio": "0.01",
            "max.compaction.lag.ms": 100,
        },
    )
    key = lambda number: str(number % 23).encode()  # noqa: E731

    def holes() -> bool:
        topic.write(40, key=key)
        with topic.bounded() as loader:
            seen = [name for batch in loader for name in topic.check(batch)]
        assert len(set(seen)) == len(seen)
        # Each key's last record is always there.
        last = {number % 23: name for name, number in sorted(topic.written.items(), key=lambda item: item[1])}
        assert set(last.values()) <= set(seen)
        return len(seen) < len(topic.written)

    wait_until(holes, 60, "something was compacted away")


@pytest.mark.parametrize("again", [False, True])
def test_a_topic_deleted_under_a_training_stops_it_also_when_it_is_made_anew(
    broker: Broker, again: bool
) -> None:
    topic = Topic(broker, partitions=2)
    topic.write(64)
    with topic.loader(batch_size=8) as loader:
        batches = iter(loader)
        for _ in range(8):
            topic.check(next(batches))
        old = topic.written
        topic.delete()
        if again:
            topic.create()
            topic.written = {}
            topic.write(5)
        said = stops(topic, batches)
        assert topic.name in said, said
        topic.written |= old


def test_a_token_of_a_topic_that_was_made_anew_is_refused(broker: Broker) -> None:
    topic = Topic(broker, partitions=1)
    topic.write(100)
    with topic.loader(source_options={"window_records": 40}) as loader:
        for _ in itertools.islice(loader, 3):
            token = loader.state_dict()
    topic.delete()
    topic.create()
    topic.written = {}
    topic.write(100, value=lambda number: picture(number + 7))
    with (
        topic.loader(source_options={"window_records": 40}) as loader,
        pytest.raises(FuelrailError) as refused,
    ):
        loader.load_state_dict(token)
        next(iter(loader))
    assert topic.name in str(refused.value)


# Bad records -----------------------------------------------------------------------------------------------------------


@pytest.mark.deadline(240)
def test_poison_tombstones_and_oversize_are_listed_once_and_training_goes_on(
    broker: Broker, tmp_path: Path
) -> None:
    topic = Topic(broker)
    count = 10_000 if GATE else 1_000
    kinds = {40: b"no image at all", 140: None, 240: picture(0) + bytes(60_000), 340: b"P6 4 4 255\n"}

    def value(number: int) -> bytes | None:
        return kinds.get(number % 400, picture(number))

    topic.write(count, value=value)
    bad = {name for name, number in topic.written.items() if number % 400 in kinds}
    quarantine = tmp_path / "bad.jsonl"
    options: dict[str, Any] = {"error_budget": 0.05, "quarantine": quarantine}
    options["source_options"] = {"max_record_bytes": 50_000}
    with topic.bounded(**options) as loader:
        seen, substituted = [], 0
        for batch in loader:
            seen += topic.check(batch)
            substituted += int(batch["substituted"].sum())
        assert loader.stats()["substituted"] == substituted == len(bad)
    good = set(topic.names) - bad
    # A substitute is another record, so that one came more than once, and all good ones came.
    assert set(seen) == good and len(seen) == count
    listed = [json.loads(line) for line in quarantine.read_text().splitlines()]
    keys = [line["key"] for line in listed]
    assert sorted(keys) == sorted(f"{topic.name}/{p}/{o}" for p, o in bad), "each once"
    assert all(line.get("reason") or line.get("why") or line.get("error") for line in listed)


def test_too_many_bad_records_stop_the_run(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(300, value=lambda number: b"poison" if number % 3 == 0 else picture(number))
    with topic.bounded(error_budget=20) as loader, pytest.raises(DataError, match=topic.name):
        list(loader)


# Slow consumers --------------------------------------------------------------------------------------------------------


@pytest.mark.deadline(240)
def test_memory_stays_in_the_budget_while_the_training_stands_still(broker: Broker) -> None:
    topic = Topic(broker, partitions=4)
    size = 80_000
    topic.write(4000, value=lambda number: picture(number) + bytes(size))
    properties = {
        "queued.max.messages.kbytes": 2048,
        "fetch.message.max.bytes": 1 << 20,
        "fetch.max.bytes": 4 << 20,
    }
    source = {"window_records": 200, "window_bytes": 16 << 20, "properties": properties}
    options: dict[str, Any] = {"source_options": source, "max_sample_bytes": 1 << 20}
    with topic.loader(**options) as loader:
        batches = iter(loader)
        seen = topic.check(next(batches))
        budget = loader.stats()["budget"]["total"]
        assert budget < 4000 * size, "the topic does not fit, so the test can fail"
        peak, received, still = 0, -1, 0
        # A minute in the long form; else until nothing more is received.
        began = time.monotonic()
        while still < 20 or (GATE and time.monotonic() - began < 60):
            peak = max(peak, memory(loader.daemon_pid))
            now = loader.stats()["stream"]["records"]
            still = still + 1 if now == received else 0
            received = now
            time.sleep(0.05)
        assert received < 4000, "it stopped receiving"
        assert peak <= 1.05 * budget, f"{peak >> 20} MiB of {budget >> 20}"
        while len(seen) < 4000:
            seen += topic.check(next(batches))
        assert memory(loader.daemon_pid) <= 1.05 * budget
    once(seen, topic.names)


def memory(pid: int) -> int:
    """Resident bytes of a process, shared memory included."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.deadline(240)
def test_a_training_slower_than_any_poll_interval_loses_no_partition(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(200)
    properties = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000, "heartbeat.interval.ms": 1000}
    with topic.loader(source_options={"properties": properties, "window_records": 20}) as loader:
        batches = iter(loader)
        seen = topic.check(next(batches))
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 7, 20, "any group would have thrown it out by now")
        while len(seen) < 200:
            seen += topic.check(next(batches))
        once(seen, topic.names)
