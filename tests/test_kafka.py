"""Streams from a real Kafka broker: each record once, in windows that a token restores; what is asked for is checked."""

from __future__ import annotations

import datetime
import itertools
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed: pip install confluent-kafka")

from confluent_kafka import Consumer, TopicPartition
from fuelrail import ConfigError, FuelrailError, SourceError, TokenError
from kafka.broker import Broker, free_ports
from streams import QUIET, Topic, names_of, once, picture, window_end
from support import (
    AUGMENT,
    GATE,
    SLACK,
    TINY,
    Daemon,
    Footprint,
    Loader,
    Script,
    at_most,
    digest,
    digests,
    fuelrail,
    row_digests,
    wait_until,
)


@pytest.fixture(scope="module")
def filled(broker: Broker) -> Topic:
    """A topic with 500 records in 3 partitions; nothing is written to it any more."""
    topic = Topic(broker)
    topic.write(500)
    return topic


# Once ------------------------------------------------------------------------------------------------------------------


def test_every_record_of_a_range_comes_once_and_as_it_was_written(broker: Broker) -> None:
    topic = Topic(broker, partitions=5)
    topic.write(20_000 if GATE else 2_000)
    with topic.bounded() as loader:
        once([name for batch in loader for name in topic.check(batch)], topic.names)


def test_an_endless_stream_goes_on_with_what_is_written_meanwhile(broker: Broker) -> None:
    topic = Topic(broker)
    with topic.loader(batch_size=5) as loader:
        batches = iter(loader)
        seen: list[Any] = []
        for _ in range(5):
            # Not a multiple of the batch size: the rest of a batch comes with what is written next.
            topic.write(23)
            ready = len(topic.written) // 5 * 5
            while len(seen) < ready:
                seen += topic.check(next(batches))
        topic.write(10)
        while len(seen) < len(topic.written) // 5 * 5:
            seen += topic.check(next(batches))
        assert len(set(seen)) == len(seen) == 125
        assert set(seen) == set(topic.names)


def test_each_row_is_named_by_topic_partition_and_offset(filled: Topic) -> None:
    with filled.bounded() as loader:
        batch = next(iter(loader))
        assert loader.keys(batch) == [f"{filled.name}/{p}/{o}" for p, o in names_of(batch)]


def test_the_records_around_a_saved_state_are_named_by_which(filled: Topic, tmp_path: Path) -> None:
    with filled.bounded() as loader:
        batches = iter(loader)
        for _ in range(10):
            before = next(batches)
        state = tmp_path / "state.json"
        state.write_text(json.dumps(loader.state_dict()))
        after = next(batches)
        expected = {"--before": loader.keys(before), "--world-size=1": loader.keys(after)}
    options = [f"--source-option={key}={value}" for key, value in filled.options()["source_options"].items()]
    command = [
        "which",
        filled.url,
        "--state",
        state,
        "--batch-size",
        "8",
        "--source-option=end=end",
        *options,
    ]
    for direction, keys in expected.items():
        done = fuelrail(*command, "--json", direction)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["key"] for line in done.stdout.splitlines()] == keys
    done = fuelrail(
        "which", filled.url, *options, "--source-option=end=end", "--position", "5", "--no-shuffle"
    )
    assert done.returncode == 1 and "without its window" in done.stderr


def test_bench_says_where_a_stream_stands(filled: Topic) -> None:
    options = [f"--source-option={key}={value}" for key, value in filled.options()["source_options"].items()]
    done = fuelrail(
        "bench", filled.url, "--epochs=1", "--task=C", "--size=8", "--source-option=end=end", *options
    )
    assert done.returncode == 0, done.stderr
    assert (
        "a range of a stream" in done.stdout
        and "3 partitions, " in done.stdout
        and "records received" in done.stdout
    )


def test_a_bench_of_a_stream_that_dries_up_ends_in_time_with_what_has_come(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(500)
    options = [f"--source-option={key}={value}" for key, value in topic.options()["source_options"].items()]
    began = time.monotonic()
    done = fuelrail("bench", topic.url, "--seconds=4", "--task=C", "--size=8", "--batch-size=16", *options)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 4 * SLACK, done.stdout
    assert "500 records received" in done.stdout and "at its end" in done.stdout, done.stdout


def test_an_endless_stream_has_no_length(filled: Topic) -> None:
    with filled.loader() as loader, pytest.raises(TypeError, match="stream"):
        len(loader)


def test_the_same_seed_gives_the_same_batches_and_another_one_another_order(filled: Topic) -> None:
    def read(seed: int, **options: Any) -> tuple[list[str], list[Any]]:
        with filled.bounded(seed=seed, transforms=AUGMENT, dtype="f32", **options) as loader:
            batches = [(digest(batch), names_of(batch)) for batch in loader]
            return [hash for hash, _ in batches], [name for _, names in batches for name in names]

    first, names = read(1)
    assert read(1, num_workers=3, prefetch_factor=5) == (first, names)
    other, others = read(2)
    assert other != first and others != names and sorted(others) == sorted(names)


def test_records_are_shuffled_inside_their_window_and_not_across(filled: Topic) -> None:
    with filled.bounded(source_options={"window_records": 90}) as loader:
        names = [name for batch in loader for name in names_of(batch)]
    unsorted = 0
    for at in range(0, len(names) - 90, 90):
        window = sorted(names[at : at + 90])
        unsorted += names[at : at + 90] != window
        # It has a stretch of each partition, without gaps.
        for _, own in itertools.groupby(window, key=lambda name: name[0]):
            offsets = [offset for _, offset in own]
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
    assert unsorted >= 4


def test_each_epoch_over_a_range_has_the_same_records_in_another_order(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(300)
    with topic.bounded(batch_size=16) as loader:
        wanted = topic.names
        # What is written later belongs to no epoch: the end was fixed when the source was opened.
        topic.write(40)
        epochs = [[name for batch in loader for name in topic.check(batch)] for _ in range(3)]
    for epoch in epochs:
        once(epoch, wanted)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


# Ranks -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(filled: Topic, tmp_path: Path) -> Iterator[Daemon]:
    config = tmp_path / "pipelines.toml"
    options = filled.options()["source_options"] | {"end": "end"}
    source = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    config.write_text(f"""
        [pipelines.stream]
        batch_size = 4
        shuffle = true
        seed = 3
        dtype = "u8"
        transforms = [{{ type = "Resize", size = [8, 8] }}]
        source = {{ type = "kafka", servers = ["{filled.broker.bootstrap}"], topics = ["{filled.name}"], {source} }}
    """)
    with Daemon(config, "--root", filled.url, socket=tmp_path / "s.sock") as daemon:
        yield daemon.listens()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_through_one_daemon_get_each_record_once(daemon: Daemon, filled: Topic, world: int) -> None:
    loaders = [Loader(daemon.url, pipeline="stream", rank=rank, world_size=world) for rank in range(world)]
    for _ in range(2):
        seen: list[Any] = []
        for batches in itertools.zip_longest(*loaders):
            assert None not in batches, "all ranks have the same number of batches"
            seen += [name for batch in batches for name in filled.check(batch)]
        once(seen, filled.names)
    for loader in loaders:
        loader.close()


def test_daemons_of_their_own_cut_the_same_windows_and_the_number_of_ranks_may_change(filled: Topic) -> None:
    # As on several nodes: each rank has a daemon, and nobody talks to another.
    options: dict[str, Any] = {
        "source_options": {"window_offsets": 20, "window_records": None, "window_seconds": None}
    }
    with filled.bounded(**options) as loader:
        expected = row_digests(loader)
    seen: dict[int, str] = {}
    token = None
    for world, steps in ((2, 5), (1, 9), (4, 3), (3, 1_000)):
        loaders = [
            filled.bounded(rank=rank, world_size=world, batch_size=3, **options) for rank in range(world)
        ]
        if token:
            for loader in loaders:
                loader.load_state_dict(token)
        for batches in itertools.islice(zip(*loaders, strict=True), steps):
            rows = row_digests(batches)
            assert not rows.keys() & seen.keys()
            seen |= rows
            token = loaders[0].state_dict()
            assert all(loader.state_dict() == token for loader in loaders)
        for loader in loaders:
            loader.close()
    assert seen == expected


def test_ranks_with_daemons_of_their_own_need_windows_that_agree(filled: Topic) -> None:
    with pytest.raises(ConfigError, match="window_offsets"):
        filled.bounded(rank=0, world_size=2)


# Tokens ----------------------------------------------------------------------------------------------------------------


def test_a_token_at_every_step_restores_exactly_the_rest(filled: Topic) -> None:
    options: dict[str, Any] = {"transforms": AUGMENT, "dtype": "f32", "batch_size": 16}
    with filled.bounded(**options) as loader:
        tokens, expected = [loader.state_dict()], []
        for batch in loader:
            expected.append(digest(batch))
            tokens.append(json.loads(json.dumps(loader.state_dict())))
        following = digests(loader)
    for step in range(0, len(tokens), 1 if GATE else 5):
        with filled.bounded(**options) as loader:
            loader.load_state_dict(tokens[step])
            assert digests(loader) == expected[step:], f"step {step}"
            assert digests(loader) == following, f"the epoch behind step {step}"


def test_a_live_window_is_the_same_after_a_resume(broker: Broker, rng: random.Random) -> None:
    topic = Topic(broker)
    # Windows close because time is up, wherever that is; from then on they are fixed.
    options: dict[str, Any] = {
        "batch_size": 4,
        "source_options": {"window_seconds": 0.05, "window_records": 50},
    }
    steps: list[str] = []
    seen: list[Any] = []
    tokens: list[Any] = []
    with topic.loader(**options) as loader:
        batches = iter(loader)
        tokens.append(loader.state_dict())
        while len(steps) < 60:
            topic.write(rng.randint(1, 30))
            while (len(steps) + 1) * 4 <= len(topic.written) and len(steps) < 60:
                batch = next(batches)
                seen += topic.check(batch)
                steps.append(digest(batch))
                tokens.append(loader.state_dict())
    same = 0
    for step in rng.sample(range(60), 60 if GATE else 10):
        with topic.loader(**options) as loader:
            loader.load_state_dict(tokens[step])
            batch = next(iter(loader))
            # Behind the token's window the next one may be cut elsewhere, but it repeats nothing.
            assert not set(topic.check(batch)) & set(seen[: 4 * step]), f"step {step}"
            if 4 * (step + 1) <= window_end(tokens[step]):
                assert digest(batch) == steps[step], f"step {step}"
                same += 1
    assert same > 0


def test_chains_of_resumes_see_each_record_once(filled: Topic, rng: random.Random) -> None:
    for _ in range(20 if GATE else 2):
        token, seen, stops = None, [], []
        while len(seen) < len(filled.written):
            with filled.bounded(batch_size=rng.randint(1, 9), num_workers=rng.randint(1, 3)) as loader:
                if token:
                    loader.load_state_dict(token)
                for batch in itertools.islice(loader, rng.randint(0, 30)):
                    seen += filled.check(batch)
                token = loader.state_dict()
                stops.append(len(seen))
        once(seen, filled.names)


def test_a_token_of_a_thousand_partitions_is_plain_json_under_64_kib(broker: Broker) -> None:
    topic = Topic(broker, partitions=1000)
    topic.write(3000, partition=lambda number: number % 1000)
    with topic.bounded(batch_size=64, source_options={"window_records": 2000}) as loader:
        seen = []
        for step, batch in enumerate(loader):
            seen += topic.check(batch)
            if step == 20:
                token = loader.state_dict()
                before = list(seen)
        once(seen, topic.names)
    text = json.dumps(token)
    assert json.loads(text) == token
    assert len(text) < 64 << 10, f"{len(text)} bytes"
    with topic.bounded(batch_size=64, source_options={"window_records": 2000}) as loader:
        loader.load_state_dict(token)
        once(before + [name for batch in loader for name in topic.check(batch)], topic.names)


def test_tokens_of_other_streams_and_changed_tokens_are_refused(broker: Broker, filled: Topic) -> None:
    other = Topic(broker)
    other.write(100)
    with filled.bounded() as loader:
        for _ in itertools.islice(loader, 20):
            token = loader.state_dict()
    with other.bounded() as loader, pytest.raises(TokenError, match="differ"):
        loader.load_state_dict(token)
    with filled.bounded(seed=6) as loader, pytest.raises(TokenError, match="seed"):
        loader.load_state_dict(token)
    text = json.dumps(token)
    with filled.bounded() as loader:
        for change in ({"position": 3}, {"epoch": 1}):
            with pytest.raises(TokenError):
                loader.load_state_dict(token | change)
        digits = [at for at, character in enumerate(text) if character.isdigit()]
        for at in digits[:: max(1, len(digits) // 50)]:
            changed = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
            with pytest.raises(TokenError):
                loader.load_state_dict(json.loads(changed))
                pytest.fail(f"accepted: {changed}")
        loader.load_state_dict(token)


# Where it begins and ends ----------------------------------------------------------------------------------------------


def test_offsets_times_and_the_end_are_places_to_begin_and_to_end(broker: Broker) -> None:
    topic = Topic(broker, partitions=2)
    now = int(time.time() * 1000)
    hour = 3_600_000
    for number in range(3):
        topic.write(40, partition=lambda number: number % 2, timestamp=now - (3 - number) * hour)

    def read(**points: Any) -> list[Any]:
        with topic.loader(source_options=points) as loader:
            return [name for batch in loader for name in topic.check(batch)]

    def time_of(hours: float) -> str:
        moment = datetime.datetime.fromtimestamp((now - hours * hour) / 1000, datetime.UTC)
        return moment.isoformat().replace("+00:00", "Z")

    first = [name for name in topic.names if name[1] < 20]
    middle = [name for name in topic.names if 20 <= name[1] < 40]
    once(read(start=30, end="end"), [name for name in topic.names if name[1] >= 30])
    once(
        read(start={topic.name: {"0": 20, "1": 55}}, end=57),
        [(0, o) for o in range(20, 57)] + [(1, 55), (1, 56)],
    )
    once(read(start=time_of(2.5), end=time_of(1.5)), middle)
    once(read(start="beginning", end=time_of(2.5)), first)


def test_a_new_run_may_go_on_behind_a_states_window(broker: Broker) -> None:
    """As docs/kafka.md does it when the old run cannot go on."""
    topic = Topic(broker)
    topic.write(300)
    with topic.loader() as loader:
        for _ in itertools.islice(loader, 12):
            state = loader.state_dict()
    groups = state["stream"]["state"]["partitions"]
    start = {
        name: {str(number): to for number, _, to, *_ in rows}
        for group in groups
        for name, rows in group.items()
    }
    rest = [(p, o) for p, o in topic.names if o >= start[topic.name][str(p)]]
    assert 0 < len(rest) < 300
    with topic.bounded(source_options={"start": start}) as loader:
        once([name for batch in loader for name in topic.check(batch)], rest)


def test_a_stream_that_starts_at_the_end_has_what_comes_afterwards(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(100)
    old = set(topic.names)
    with topic.loader(source_options={"start": "end"}) as loader:
        batches = iter(loader)
        topic.write(40)
        once(topic.take(batches, set(topic.names) - old), set(topic.names) - old)


def test_several_topics_and_patterns_are_one_stream(broker: Broker) -> None:
    mark = f"many-{time.time_ns()}"
    topics = [Topic(broker, 2, name=f"{mark}-{number}") for number in range(3)]
    for topic in topics:
        topic.write(50)
    wanted = {f"{topic.name}/{p}/{o}" for topic in topics for p, o in topic.names}
    base = f"kafka://{broker.bootstrap}/"
    for address in (
        f"{base}{mark}-*",
        base + ",".join(topic.name for topic in topics),
        f"{base}^{mark}-[0-9]$",
    ):
        options = topics[0].options(source_options={"end": "end"})
        with Loader(address, **options) as loader:
            keys = [key for batch in loader for key in loader.keys(batch)]
        assert sorted(keys) == sorted(wanted), address


# Who joins -------------------------------------------------------------------------------------------------------------

#: How often a stream looks for new partitions: librdkafka's own property, as for its own subscriptions.
SOON = {"topic.metadata.refresh.interval.ms": 300}


def test_partitions_that_are_added_are_read_from_their_beginning(broker: Broker) -> None:
    topic = Topic(broker, partitions=2)
    topic.write(100, partition=lambda number: number % 2)
    steps: list[tuple[int, Any]] = []
    seen: list[Any] = []
    with topic.loader(batch_size=4, source_options={"properties": SOON}) as loader:
        batches = iter(loader)

        def read(records: int) -> None:
            while len(seen) < records:
                seen.extend(topic.check(next(batches)))
                steps.append((len(seen), loader.state_dict()))

        read(100)
        topic.grow(5)
        # Only into the new ones, in which nothing was before: whoever waits for the old ones waits for ever.
        topic.write(60, partition=lambda number: 2 + number % 3)
        read(160)
        topic.write(100)
        topic.grow(6)
        topic.write(40, partition=lambda number: 5)
        read(300)
        once(seen, topic.names)
        assert loader.stats()["stream"]["partitions"] == 6
    # From any token, whether it knows them or not, the same rows up to its window's end, then the rest, once.
    for count, token in steps[: -1 : 1 if GATE else 9]:
        with topic.loader(batch_size=4, source_options={"properties": SOON}) as loader:
            loader.load_state_dict(token)
            again = topic.take(loader, set(topic.names) - set(seen[:count]))
        fixed = window_end(token)
        assert again[: fixed - count] == seen[count:fixed]
        once(seen[:count] + again, topic.names)


def test_a_topic_that_a_pattern_means_is_read_when_it_comes(broker: Broker) -> None:
    mark = f"later-{time.time_ns()}"
    b = Topic(broker, 2, name=f"{mark}-b")
    b.write(40)
    options = b.options(batch_size=4, source_options={"properties": SOON})
    with Loader(f"kafka://{broker.bootstrap}/{mark}-*", **options) as loader:
        batches = iter(loader)
        rows: list[tuple[str, int]] = []

        def read(records: int) -> None:
            while len(rows) < records:
                batch = next(batches)
                rows.extend(zip(loader.keys(batch), batch["index"].tolist(), strict=True))

        read(40)
        token = loader.state_dict()
        # By name it comes before the other one; the numbers of what is read already stay what they are.
        a = Topic(broker, 2, name=f"{mark}-a")
        a.write(40)
        b.write(20)
        read(100)
    wanted = {f"{topic.name}/{p}/{o}" for topic in (a, b) for p, o in topic.names}
    assert sorted(key for key, _ in rows) == sorted(wanted)
    slots = {f"{b.name}/0": 0, f"{b.name}/1": 1, f"{a.name}/0": 2, f"{a.name}/1": 3}
    for key, index in rows:
        partition, offset = key.rsplit("/", 1)
        assert index == slots[partition] << 48 | int(offset)
    # A run that goes on from before the topic was there reads it too.
    with Loader(f"kafka://{broker.bootstrap}/{mark}-*", **options) as loader:
        loader.load_state_dict(token)
        batches = iter(loader)
        keys: list[str] = []
        while len(keys) < 60:
            keys += loader.keys(next(batches))
    assert sorted(keys) == sorted(key for key, _ in rows[40:])


def test_daemons_that_must_agree_leave_new_partitions_out_aloud(broker: Broker) -> None:
    topic = Topic(broker, partitions=2)
    topic.write(64, partition=lambda number: number % 2)
    cut = {"window_offsets": 16, "window_records": None, "window_seconds": None, "properties": SOON}
    with Script(
        """
        from support import TINY, Loader
        options = {"transforms": TINY, "dtype": "u8", "batch_size": 8, "source_options": json.loads(sys.argv[2])}
        import threading
        with Loader(sys.argv[1], **options) as loader:
            # As a progress display does: with its figures comes what the daemon has logged, also while next() waits.
            looks = lambda: [loader.stats() for _ in iter(lambda: threading.Event().wait(0.2), True)]
            threading.Thread(target=looks, daemon=True).start()
            for batch in loader:
                say(loader.keys(batch))
        """,
        topic.url,
        json.dumps(topic.options(source_options=cut)["source_options"]),
    ) as reader:
        keys = [key for _ in range(8) for key in reader.hears()]
        topic.grow(3)
        topic.write(96, partition=lambda number: number % 3)
        wait_until(lambda: "new partitions are NOT read" in reader.stderr, 60, "the log says so")
        assert f"({topic.name}/2)" in reader.stderr and "window_offsets" in reader.stderr
        keys += [key for _ in range(8) for key in reader.hears()]
        assert sorted(keys) == sorted(f"{topic.name}/{p}/{o}" for p, o in topic.names if p < 2)


# What producers do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_read(broker: Broker, codec: str) -> None:
    topic = Topic(broker)
    topic.write(200, **{"compression.type": codec, "linger.ms": 50})
    with topic.bounded() as loader:
        once([name for batch in loader for name in topic.check(batch)], topic.names)


def test_only_what_was_committed_of_transactions_is_delivered(broker: Broker) -> None:
    topic = Topic(broker, partitions=2)
    topic.write(30, transaction="a")
    topic.write(30, transaction="b", commit=False)
    topic.write(30)
    topic.write(30, transaction="b")
    topic.write(30, transaction="a", commit=False)
    with topic.bounded(batch_size=7) as loader:
        tokens, seen = [], []
        for batch in loader:
            seen += topic.check(batch)
            tokens.append((len(seen), loader.state_dict()))
    once(seen, topic.names)
    # Markers and aborted records take offsets: windows with holes are restored like any other.
    for count, token in tokens[::4]:
        with topic.bounded(batch_size=7) as loader:
            loader.load_state_dict(token)
            once(seen[:count] + [name for batch in loader for name in topic.check(batch)], topic.names)


def test_a_topic_of_aborted_transactions_only_has_nothing_to_read(broker: Broker) -> None:
    topic = Topic(broker, partitions=1)
    topic.write(30, transaction="c", commit=False)
    with topic.loader() as loader:
        batches = iter(loader)
        topic.write(16)
        once(topic.take(batches), topic.names)


# Commits ---------------------------------------------------------------------------------------------------------------


def committed(topic: Topic, group: str) -> dict[int, int]:
    """What the group has committed, as a lag monitor sees it."""
    consumer = Consumer({"bootstrap.servers": topic.broker.bootstrap, "group.id": group, **QUIET})
    try:
        parts = [TopicPartition(topic.name, partition) for partition in range(topic.partitions)]
        return {part.partition: part.offset for part in consumer.committed(parts, 10) if part.offset >= 0}
    finally:
        consumer.close()


def test_the_broker_hears_of_progress_only_after_the_checkpoint_is_saved(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(400)
    group = f"trainers-{topic.name}"
    options = {"source_options": {"properties": {"group.id": group}}}
    with topic.loader(**options) as loader:
        seen: list[Any] = []
        batches = iter(loader)
        while len(seen) < 320:
            seen += topic.check(next(batches))
        token = loader.state_dict()
        seen += topic.check(next(batches))
        assert committed(topic, group) == {}, "nothing is said before a checkpoint holds it"
        loader.checkpoint_saved(token)
        offsets = wait_until(lambda: committed(topic, group), 20, "the offsets are committed")
        # Never more than the weights have seen.
        for partition, offset in offsets.items():
            assert all((partition, before) in seen[:320] for before in range(offset))
        assert sum(offsets.values()) >= 320 - 64
    # It is for monitors; nobody reads it back: without a token, a new run begins where it is told to.
    with topic.bounded(**options) as loader:
        once([name for batch in loader for name in topic.check(batch)], topic.names)


def test_statistics_tell_window_and_lag(broker: Broker) -> None:
    topic = Topic(broker)
    topic.write(300)
    with topic.loader(source_options={"window_records": 50}) as loader:
        batches = iter(loader)
        for _ in range(30):
            topic.check(next(batches))
        stream = wait_until(
            lambda: (stats := loader.stats()["stream"]) and stats["lag"] is not None and stats,
            20,
            "lag is known",
        )
        assert stream["partitions"] == 3
        assert 240 <= stream["records"] <= 300 and stream["window"] >= 5
        assert stream["bytes"] >= 240 * len(picture(0))
        assert stream["lag"] <= 60


# Mistakes --------------------------------------------------------------------------------------------------------------


def test_an_address_where_nobody_answers_is_named_and_the_log_has_the_attempts(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = next(free_ports(1))
    monkeypatch.setenv("FUELRAIL_LOG", "debug")
    caplog.set_level("DEBUG", "fuelrail")
    with (
        at_most(15 * SLACK, "noticing that no broker answers"),
        pytest.raises(SourceError, match=f"127.0.0.1:{port}.*Connection refused"),
    ):
        Loader(f"kafka://127.0.0.1:{port}/topic", batch_size=2, transforms=TINY)
    # Also of an opening that fails: it is then that one wants to know.
    assert any("Connection refused" in record.message for record in caplog.records), caplog.text


def test_an_unknown_topic_is_named_with_the_one_that_was_meant(broker: Broker, filled: Topic) -> None:
    wrong = filled.name[:-1]
    with pytest.raises((SourceError, ConfigError), match=f"(?s){wrong}.*{filled.name}"):
        Loader(f"kafka://{broker.bootstrap}/{wrong}", batch_size=2, transforms=TINY)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"window_record": 100}, "window_record"),
        ({"start": "begining"}, "begining"),
        ({"end": "beginning"}, "beginning"),
        ({"window_records": 0}, "window_records"),
        ({"window_offsets": 10}, "window_offsets and window_records"),
        ({"value": "jpeg"}, "jpeg"),
        ({"properties": {"fetch.min.byte": 1}}, "fetch.min.bytes"),
        ({"properties": {"enable.auto.commit": True}}, "enable.auto.commit"),
        ({"properties": {"auto.offset.reset": "latest"}}, "auto.offset.reset"),
    ],
)
def test_wrong_options_are_refused_by_name(filled: Topic, options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(FuelrailError, match=wanted):
        filled.loader(source_options=options)


def test_ctrl_c_while_waiting_for_data_ends_at_once(broker: Broker, footprint: Footprint) -> None:
    topic = Topic(broker)
    code = """
        from fuelrail.numpy import Loader, transforms as T
        with Loader(sys.argv[1], transforms=[T.Resize((8, 8))], batch_size=4, timeout=None) as loader:
            say("waits")
            for batch in loader:
                say("a batch of nothing")
    """
    with Script(code, topic.url, footprint=footprint) as script:
        assert script.hears() == "waits"
        time.sleep(0.3)
        script.signal(signal.SIGINT)
        with at_most(SLACK, "ctrl-C"):
            assert script.ends() != 0
        assert "KeyboardInterrupt" in script.stderr
    footprint.is_clean(2 * SLACK)
