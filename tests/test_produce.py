"""`fuelrail produce`: what an independent consumer finds in the topic."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed: pip install confluent-kafka")

import numpy as np
import photographs
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from fuelrail import fields as F
from fuelrail.loader import binary
from fuelrail.numpy import Loader
from kafka.broker import Broker, free_ports
from streams import QUIET, Topic
from support import SLACK, TINY, at_most, fuelrail, wait_until
from test_fields import members
from test_fields import shard as write_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images in three classes."""
    return photographs.folder(tmp_path_factory.mktemp("produce"), 30, seed=2)


@pytest.fixture
def url(broker: Broker) -> str:
    """A topic that is not there yet."""
    return f"kafka://{broker.bootstrap}/p-{time.time_ns()}"


def read(url: str) -> list[Message]:
    """All messages of a topic, read by librdkafka's own Python client."""
    servers, _, topic = url.removeprefix("kafka://").partition("/")
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": "reader", "enable.partition.eof": True, **QUIET}
    )
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    messages, ended = [], 0
    try:
        while ended < len(partitions):
            message = consumer.poll(20)
            assert message is not None, "the broker answers"
            if message.error() is None:
                messages.append(message)
            else:
                ended += 1
    finally:
        consumer.close()
    return messages


def headers(message: Message) -> dict[str, str]:
    """Its headers as text."""
    return {name: value.decode() for name, value in message.headers() or []}


def produce(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs it, and expects it to succeed."""
    done = fuelrail("produce", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_each_record_of_a_folder_is_one_message_with_key_and_label(folder: Path, url: str) -> None:
    done = produce(folder, url, "--partitions", 4)
    assert "30 records" in done.stdout and "(created)" in done.stdout
    messages = {message.key().decode(): message for message in read(url)}
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    assert messages.keys() == files.keys() and len(files) == 30
    classes = sorted({Path(key).parts[0] for key in files})
    for key, message in messages.items():
        assert message.value() == files[key].read_bytes()
        name = Path(key).parts[0]
        assert headers(message) == {"label": str(classes.index(name)), "class": name}
    assert len({message.partition() for message in messages.values()}) > 1


def test_labels_can_be_names(folder: Path, url: str) -> None:
    produce(folder, url, "--partitions", 1, "--label-names", "--limit", 5)
    messages = read(url)
    assert len(messages) == 5
    for message in messages:
        assert headers(message)["label"] == Path(message.key().decode()).parts[0]


def test_shuffled_and_repeated_each_pass_has_every_record_in_another_order(folder: Path, url: str) -> None:
    produce(folder, url, "--partitions", 1, "--shuffle", "--seed", 3, "--repeat", 3)
    keys = [message.key() for message in read(url)]
    passes = [keys[at : at + 30] for at in (0, 30, 60)]
    assert all(sorted(each) == sorted(set(keys)) for each in passes)
    assert passes[0] != passes[1] != passes[2] != sorted(passes[0])


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_can_be_written(folder: Path, url: str, compression: str) -> None:
    produce(folder, url, "--partitions", 2, "--compression", compression)
    assert len(read(url)) == 30


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A source with images and fields."""
    random = np.random.default_rng(4)
    held = {
        "image": random.integers(0, 256, (6, 5, 7, 3), np.uint8),
        "label": np.arange(6),
        "box": random.normal(size=(6, 2, 2)).astype(np.float32),
        "count": random.integers(-1000, 1000, 6, np.int32),
    }
    path = tmp_path / "arrays.npz"
    np.savez(path, **held)
    return path, held


FIELDS = ("--option", 'fields=["box","count"]')


def test_json_holds_image_label_and_fields(arrays: tuple[Path, dict[str, np.ndarray]], url: str) -> None:
    path, held = arrays
    produce(path, url, *FIELDS, "--partitions", 1, "--value", "json")
    messages = read(url)
    assert len(messages) == 6
    for row, message in enumerate(messages):
        value = json.loads(message.value())
        assert value.keys() == {"image", "label", "box", "count"}
        assert value["label"] == row and value["count"] == held["count"][row]
        assert np.array_equal(np.array(value["box"], np.float32), held["box"][row])
        image = base64.b64decode(value["image"], validate=True)
        assert image.endswith(held["image"][row].tobytes())


def test_arrow_holds_the_same_columns_with_their_types(
    arrays: tuple[Path, dict[str, np.ndarray]], url: str
) -> None:
    path, held = arrays
    produce(path, url, *FIELDS, "--partitions", 1, "--value", "arrow")
    for row, message in enumerate(read(url)):
        table = pa.ipc.open_stream(io.BytesIO(message.value())).read_all()
        assert table.num_rows == 1
        value = table.to_pylist()[0]
        assert value["label"] == row and value["count"] == held["count"][row]
        assert np.array_equal(np.array(value["box"], np.float32), held["box"][row])
        assert table.schema.field("count").type == pa.int32()
        assert value["image"].endswith(held["image"][row].tobytes())


RECORDS = 12


@pytest.fixture
def shard(tmp_path: Path) -> str:
    """Records with every kind of part; one lacks its caption."""
    records = {f"{number:04}": members(number) for number in range(RECORDS)}
    del records["0003"]["txt"]
    return write_shard(tmp_path / "parts.tar", records)


#: As the shard has them.
STORED = [
    {"type": "Image", "name": "image"},
    {"type": "Mask", "name": "mask", "part": "seg.png"},
    {"type": "Text", "name": "caption", "part": "txt", "missing": "empty"},
    {"type": "Json", "part": "json"},
    {"type": "Numbers", "part": "json:boxes", "max_rows": 5},
    {"type": "Numbers", "part": "json:score"},
]


def delivered(source: str, wanted: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """What a Loader makes of each record, in the order of the source."""
    rows = []
    with Loader(source, fields=wanted, batch_size=5, **options) as loader:
        for batch in loader:
            for row in range(batch.rows):
                values = {name: batch[name].list() if name == "boxes" else batch[name] for name in wanted}
                rows.append({name: np.asarray(value[row]).tolist() for name, value in values.items()})
    return rows


@pytest.mark.parametrize("value", ["json", "arrow"])
def test_parts_that_are_sent_are_read_back_as_the_source_has_them(shard: str, url: str, value: str) -> None:
    done = produce(shard, url, "--fields", json.dumps(STORED), "--partitions", 1, "--value", value)
    assert 'note: part "txt" is "caption" in the messages' in done.stderr
    assert 'part "json:boxes" is "boxes"' in done.stderr

    def wanted(mask: str, caption: str, **other: str) -> dict[str, Any]:
        return {
            "image": F.Image(TINY),
            "mask": F.Mask(mask),
            "caption": F.Text(caption, max_bytes=64, missing="empty"),
            "meta": F.Json("json", max_bytes=512),
            "boxes": F.Numbers("json:boxes", max_rows=5, row=(4,), dtype="float32"),
            "score": F.Numbers(other["score"]),
        }

    expected = delivered(shard, wanted("seg.png", "txt", score="json:score"))
    read_back = delivered(
        f"{url}?end=end", wanted("mask", "caption", score="score:f32"), source_options={"value": value}
    )
    assert read_back == expected and len(expected) == RECORDS
    assert expected[3]["caption"] == "" and expected[4]["meta"]["tags"] == {"a b": [1, None, "x"]}


def test_what_would_not_be_read_back_as_it_is_is_refused_by_name(
    shard: str, url: str, tmp_path: Path
) -> None:
    produce("synthetic://?count=1&width=8&height=8", url, "--partitions", 1)
    for fields, arguments, words in [
        (STORED, ("--value", "image"), ("--fields also asks for", "use json or arrow")),
        (
            [*STORED, {"type": "Bytes", "part": "txt", "name": "caption"}],
            (),
            ('two values of a message would be called "caption"', '"name"'),
        ),
        ([{"type": "Image"}, {"type": "Text", "part": "txt", "name": "label"}], (), ('called "label"',)),
        ([{"type": "Numbers", "part": "json:score", "name": "a[1]"}], (), ("'['", '"name"')),
        (
            [{"type": "Bytes", "part": "seg.png"}],
            (),
            ('part "seg.png": its bytes are not text', "--value arrow"),
        ),
    ]:
        done = fuelrail("produce", shard, url, "--fields", json.dumps(fields), *arguments)
        assert done.returncode == 1 and all(word in done.stderr for word in words), done.stderr
    stored = {"a": {"json": b"1"}, "b": {"json": b"[NaN]"}, "c": {"json": b"[1, {}]"}}
    values = write_shard(tmp_path / "values.tar", stored)
    asked = ("--fields", '[{"type": "Json", "part": "json"}]')
    done = produce(values, url, *asked, "--on-error", "skip")
    assert (
        "1 record left out" in done.stdout and 'part "json": it is not JSON that every reader' in done.stdout
    )
    done = produce(values, url, *asked, "--value", "arrow")
    assert done.stdout.startswith("3 records")


def test_a_part_whose_name_means_something_else_in_a_message_is_said(url: str, tmp_path: Path) -> None:
    (tmp_path / "table.jsonl").write_text('{"key": "a", "label": 0}\n')
    done = produce(
        tmp_path / "table.jsonl", url, "--fields", '[{"type": "Text", "part": "key"}]', "--partitions", 1
    )
    assert 'part "key" is "json:key" in the messages' in done.stderr
    wanted = {"text": F.Text("json:key", max_bytes=8)}
    assert delivered(f"{url}?end=end", wanted, source_options={"value": "json"}) == [{"text": "a"}]


def test_a_source_without_images_is_json_and_images_alone_leave_fields_out_aloud(
    arrays: tuple[Path, dict[str, np.ndarray]], url: str, tmp_path: Path
) -> None:
    path, _ = arrays
    done = produce(path, url, *FIELDS, "--partitions", 1)
    assert "only the images" in done.stderr and "box, count" in done.stderr
    np.save(tmp_path / "numbers.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    done = fuelrail("produce", tmp_path / "numbers.npy", url, "--value", "image")
    assert done.returncode == 1 and "holds no images" in done.stderr
    done = fuelrail("produce", tmp_path / "numbers.npy", url, "--label-names")
    assert done.returncode == 1 and "have no names" in done.stderr


def test_the_rate_is_kept_and_not_exceeded_by_bursts(url: str) -> None:
    began = time.monotonic()
    produce("synthetic://?count=60&width=8&height=8", url, "--partitions", 1, "--rate", "60/s")
    # The machine may be slow, never fast: a tenth of a second may be made up for.
    assert time.monotonic() - began >= 0.85
    times = [message.timestamp()[1] for message in read(url)]
    for first, last in zip(times, times[30:], strict=False):
        assert last - first >= 350, "30 records take half a second"


def test_ctrl_c_flushes_and_says_how_many_arrived(url: str) -> None:
    command = [str(binary()), "produce", "synthetic://?count=50&width=8&height=8", url, "--partitions", "2"]
    with subprocess.Popen(
        [*command, "--forever", "--rate", "200/s"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            wait_until(lambda: topic_has(url, 60), 20, "records arrive")
            process.send_signal(signal.SIGINT)
            with at_most(2 * SLACK, "ctrl-C"):
                said = process.communicate()[1]
        finally:
            process.kill()
    assert process.returncode == 130
    told = re.match(r"stopped: ([\d,]+) of ([\d,]+) records? acknowledged", said)
    assert told, said
    assert told[1] == told[2]
    arrived = int(told[1].replace(",", ""))
    assert len(read(url)) == arrived


def topic_has(url: str, count: int) -> bool:
    """Whether so many records are in it."""
    servers, _, topic = url.removeprefix("kafka://").partition("/")
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "counter", **QUIET})
    try:
        partitions = consumer.list_topics(timeout=20).topics
        if topic not in partitions:
            return False
        parts = [TopicPartition(topic, partition) for partition in partitions[topic].partitions]
        return sum(consumer.get_watermark_offsets(part, 20)[1] for part in parts) >= count
    except KafkaException:
        # A partition that is being made has no leader yet.
        return False
    finally:
        consumer.close()


def test_ctrl_c_is_prompt_also_while_no_broker_takes_anything(own_broker: Broker) -> None:
    url = f"kafka://{own_broker.bootstrap}/stuck"
    command = [str(binary()), "produce", "synthetic://?count=50&width=64&height=64", url, "--partitions", "1"]
    command += ["--forever", "--property", "queue.buffering.max.messages=100"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            wait_until(lambda: topic_has(url, 60), 20, "records arrive")
            own_broker.pause()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            # Five seconds are for what is on its way.
            with at_most(5 + 2 * SLACK, "ctrl-C"):
                said = process.communicate()[1]
        finally:
            process.kill()
            own_broker.resume()
    assert process.returncode == 130
    arrived, sent = (int(said.split()[word].replace(",", "")) for word in (1, 3))
    assert arrived <= len(read(url)) <= sent


def test_a_broker_restart_while_producing_loses_and_repeats_nothing(own_broker: Broker) -> None:
    url = f"kafka://{own_broker.bootstrap}/restart"
    command = [str(binary()), "produce", "synthetic://?count=900&width=8&height=8", url, "--partitions", "3"]
    with subprocess.Popen([*command, "--rate", "300/s"], stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: topic_has(url, 100), 20, "records arrive")
            own_broker.kill()
            own_broker.restart()
            said = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 0 and said.startswith("900 records")
    counts = Counter(message.key() for message in read(url))
    assert len(counts) == 900 and set(counts.values()) == {1}


def test_in_a_terminal_there_is_a_progress_bar(url: str) -> None:
    terminal, other = pty.openpty()
    command = [str(binary()), "produce", "synthetic://?count=200&width=8&height=8", url, "--partitions", "1"]
    with subprocess.Popen(
        [*command, "--rate", "300/s"], stderr=other, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as process:
        os.close(other)
        said = b""
        while True:
            try:
                piece = os.read(terminal, 4096)
            except OSError:
                break
            if not piece:
                break
            said += piece
        os.close(terminal)
    assert process.returncode == 0
    assert b"producing" in said and b"of 200" in said and b"/s" in said


# Mistakes --------------------------------------------------------------------------------------------------------------


def test_a_missing_topic_is_not_created_by_accident(folder: Path, url: str) -> None:
    done = fuelrail("produce", folder, url)
    assert done.returncode == 1 and "--partitions" in done.stderr
    produce(folder, url, "--partitions", 2)
    done = produce(folder, url, "--partitions", 3)
    assert "with 2 partitions" in done.stderr, "it is there already"


def test_a_bad_record_is_named_and_can_be_left_out(url: str, tmp_path: Path) -> None:
    lines = [{"label": 1, "x": 1.5}, {"label": 2, "x": None}, {"label": 3, "x": 2.5}]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = (tmp_path / "table.jsonl", url, "--option", "label=label", "--option", 'fields=["x"]')
    done = fuelrail("produce", *arguments, "--partitions", 1)
    assert done.returncode == 1 and "table.jsonl" in done.stderr and "--on-error skip" in done.stderr
    assert re.search(r"\d of [01] records? acknowledged", done.stderr), done.stderr
    done = produce(*arguments, "--on-error", "skip")
    assert "1 record left out because" in done.stdout and "table.jsonl" in done.stdout


def test_a_record_larger_than_the_broker_takes_is_named(broker: Broker, folder: Path) -> None:
    topic = Topic(broker, 1, {"max.message.bytes": 200})
    done = fuelrail("produce", folder, topic.url)
    assert done.returncode == 1
    assert "max.message.bytes" in done.stderr and topic.name in done.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--property", "linger=5"), "linger"),
        (("--property", "linger.ms"), "NAME=VALUE"),
        (("--property", "transactional.id=x"), "transactional.id"),
        (("--rate", "fast"), "500/s"),
        (("--repeat", "2", "--forever"), "--forever"),
        (("--partitions", "0"), "--partitions"),
    ],
)
def test_wrong_arguments_say_what_is_right(url: str, arguments: tuple[str, ...], wanted: str) -> None:
    done = fuelrail("produce", "synthetic://?count=5", url, *arguments)
    assert done.returncode in (1, 2) and wanted in done.stderr


def test_addresses_that_lead_nowhere_are_named(folder: Path) -> None:
    for address in ("/tmp/topic", "kafka://", "kafka://host:9092"):
        done = fuelrail("produce", folder, address, "--partitions", 1)
        assert done.returncode == 1 and "kafka://host:9092/topic" in done.stderr
    for address, wanted in (
        ("kafka://host:9092/", "name of a topic"),
        ("kafka:///topic", "address of a broker"),
    ):
        done = fuelrail("produce", folder, address, "--partitions", 1)
        assert done.returncode == 1 and wanted in done.stderr
    port = next(free_ports(1))
    with at_most(10 * SLACK, "noticing that nobody answers"):
        done = fuelrail("produce", folder, f"kafka://127.0.0.1:{port}/topic", "--partitions", 1)
    assert done.returncode == 1 and f"127.0.0.1:{port}" in done.stderr
