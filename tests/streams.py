"""What the tests of streams share: topics on a real broker, what was written to them, and what a loader made of it."""

from __future__ import annotations

import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from kafka.broker import Broker
from support import TINY, Loader, Script, wait_until

#: A record's name: partition and offset.
Name = tuple[int, int]

#: librdkafka prints every lost connection; here they are lost on purpose.
QUIET: dict[str, Any] = {"log_level": 0, "error_cb": lambda error: None}


def picture(number: int) -> bytes:
    """An image of one colour that is the number: after any resize, each pixel says which record it came from."""
    return b"P6 4 4 255\n" + number.to_bytes(3, "big") * 16


class Topic:
    """A topic, and an independent client's list of what was acknowledged: partition and offset to number."""

    def __init__(
        self,
        broker: Broker,
        partitions: int = 3,
        config: Mapping[str, Any] | None = None,
        replication: int = 1,
        name: str | None = None,
    ) -> None:
        self.broker = broker
        self.partitions = partitions
        self.name = name or f"t-{uuid.uuid4().hex[:12]}"
        self.written: dict[Name, int] = {}
        self.failed: list[int] = []
        self._replication = replication
        self._config = {key: str(value) for key, value in (config or {}).items()}
        self._numbers = itertools.count()
        self._producers: dict[str, Producer] = {}
        self.create()

    @property
    def url(self) -> str:
        """For a loader."""
        return f"kafka://{self.broker.bootstrap}/{self.name}"

    def admin(self) -> AdminClient:
        """For what is done to topics."""
        return AdminClient({"bootstrap.servers": self.broker.bootstrap, **QUIET})

    def create(self) -> None:
        """Makes it."""
        new = NewTopic(self.name, self.partitions, self._replication, config=self._config)
        admin = self.admin()
        for done in admin.create_topics([new]).values():
            done.result(30)

    def grow(self, partitions: int) -> None:
        """Gives it so many partitions, and waits until the brokers know of them."""
        admin = self.admin()
        for done in admin.create_partitions([NewPartitions(self.name, partitions)]).values():
            done.result(30)

        def there() -> bool:
            return len(admin.list_topics(self.name, timeout=10).topics[self.name].partitions) == partitions

        wait_until(there, 20, "the partitions are there")
        self.partitions = partitions
        # They know only what was there when they were made.
        self._producers.clear()

    def delete(self) -> None:
        """Removes it, and waits until it is gone."""
        admin = self.admin()
        for done in admin.delete_topics([self.name]).values():
            done.result(30)
        wait_until(lambda: self.name not in admin.list_topics(timeout=10).topics, 20, "the topic is gone")

    def delete_records(self, before: Mapping[int, int]) -> None:
        """Removes what lies before these offsets."""
        wanted = [TopicPartition(self.name, partition, offset) for partition, offset in before.items()]
        admin = self.admin()
        for done in admin.delete_records(wanted).values():
            done.result(30)

    def write(
        self,
        count: int,
        *,
        value: Callable[[int], bytes | None] = picture,
        key: Callable[[int], bytes | None] = lambda number: None,
        partition: Callable[[int], int] = lambda number: -1,
        timestamp: int = 0,
        transaction: str | None = None,
        commit: bool = True,
        seconds: float = 60,
        **properties: Any,
    ) -> list[int]:
        """Writes so many records and waits until all are acknowledged; their numbers. -1: any partition."""
        producer = self._producer({"transactional.id": transaction} if transaction else {}, properties)
        written: dict[Name, int] = {}

        def delivered(number: int) -> Callable[[Any, Message], None]:
            def note(error: Any, message: Message) -> None:
                if error is None:
                    written[message.partition(), message.offset()] = number
                else:
                    self.failed.append(number)

            return note

        if transaction:
            producer.begin_transaction()
        numbers = list(itertools.islice(self._numbers, count))
        for number in numbers:
            options: dict[str, Any] = {"partition": partition(number)} if partition(number) >= 0 else {}
            if timestamp:
                options["timestamp"] = timestamp
            while True:
                try:
                    producer.produce(
                        self.name,
                        value=value(number),
                        key=key(number),
                        headers={"label": str(number).encode()},
                        on_delivery=delivered(number),
                        **options,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        left = producer.flush(seconds)
        assert left == 0, f"{left} records were not acknowledged within {seconds:g} s"
        if transaction and commit:
            producer.commit_transaction(30)
        if transaction is None or commit:
            self.written |= written
        if transaction and not commit:
            producer.abort_transaction(30)
        return numbers

    def _producer(self, *properties: Mapping[str, Any]) -> Producer:
        config: dict[str, Any] = {
            "bootstrap.servers": self.broker.bootstrap,
            "enable.idempotence": True,
            "linger.ms": 5,
            # Spread evenly and by nothing else.
            "sticky.partitioning.linger.ms": 0,
            **QUIET,
        }
        for more in properties:
            config |= more
        name = json.dumps({key: str(value) for key, value in config.items()})
        if name not in self._producers:
            self._producers[name] = Producer(config)
            if "transactional.id" in config:
                self._producers[name].init_transactions(30)
        return self._producers[name]

    @property
    def names(self) -> list[Name]:
        """All that was acknowledged."""
        return sorted(self.written)

    # Reading -----------------------------------------------------------------------------------------------------------

    def options(self, **changes: Any) -> dict[str, Any]:
        """Arguments of a loader, with those of the source in `source_options`."""
        source = {
            "start": "beginning",
            "label": "header:label",
            "window_records": 64,
            "window_seconds": 0.2,
        } | changes.pop("source_options", {})
        own = {
            "transforms": TINY,
            "dtype": "u8",
            "batch_size": 8,
            "shuffle": True,
            "seed": 5,
            "num_workers": 1,
            "timeout": 60,
        }
        return own | changes | {"source_options": {k: v for k, v in source.items() if v is not None}}

    def loader(self, **changes: Any) -> Any:
        """A loader of it, endless unless `source_options` has an end."""
        return Loader(self.url, **self.options(**changes))

    def bounded(self, **changes: Any) -> Any:
        """A loader of what is there now."""
        source = {"end": "end"} | changes.pop("source_options", {})
        return self.loader(source_options=source, **changes)

    def check(self, batch: Any) -> list[Name]:
        """The records of a batch, by name; asserts that each is the one that was written there."""
        rows = list(zip(names_of(batch), batch["label"].tolist(), batch["image"], strict=True))
        for name, label, image in rows:
            assert self.written.get(name) == label, f"{name} was written as {self.written.get(name)}: {label}"
            colour = int.from_bytes(bytes(np.asarray(image)[:, 0, 0].tolist()), "big")
            assert colour == label, f"{name} holds the image of {colour}"
        return [name for name, _, _ in rows]

    def take(self, batches: Iterable[Any], wanted: Iterable[Name] | None = None) -> list[Name]:
        """Reads until all of these (default: all written) were delivered, in the order of delivery."""
        left = Counter(self.names if wanted is None else wanted)
        seen: list[Name] = []
        for batch in batches:
            names = self.check(batch)
            seen += names
            left -= Counter(names)
            if not left:
                break
        assert not left, f"{len(left)} records never came, the first: {sorted(left)[:3]}"
        return seen


def names_of(batch: Any) -> list[Name]:
    """Partition and offset of each row of a topic's batch."""
    return [(index >> 48, index & ((1 << 48) - 1)) for index in batch["index"].tolist()]


def window_end(token: Mapping[str, Any]) -> int:
    """The position behind the window that a token lies in. What comes before it is the same whenever it is read."""
    place = token["stream"]
    return int(place["first"] + place["count"])


def once(seen: list[Name], wanted: Iterable[Name]) -> None:
    """Asserts that exactly these were seen, each once."""
    counts, wanted = Counter(seen), set(wanted)
    twice = sorted(name for name, count in counts.items() if count > 1)
    lost, more = sorted(wanted - set(counts)), sorted(set(counts) - wanted)
    assert not lost and not twice and not more, (
        f"{len(lost)} lost {lost[:5]}, {len(twice)} twice {twice[:5]}, {len(more)} never written {more[:5]}"
    )


#: A trainer that keeps a checkpoint: the records that its "weights" have seen, and the loader's token. It says each
#: batch, and each checkpoint once that is on disk. Arguments: folder, address, options of the loader as JSON, steps
#: between checkpoints, records after which it is done.
TRAINER = """
    import pathlib
    from fuelrail.numpy import Loader, transforms as T
    from streams import names_of, window_end
    folder, address, options, every, enough = sys.argv[1:]
    options, every, enough = json.loads(options), int(every), int(enough)
    saved = pathlib.Path(folder) / "checkpoint.json"
    state = json.loads(saved.read_text()) if saved.exists() else {"seen": [], "loader": None, "step": 0}
    transforms = {"transforms": [T.Resize((8, 8))]} if "pipeline" not in options else {}
    with Loader(address, **transforms, **options) as loader:
        fixed = 0
        if state["loader"]:
            loader.load_state_dict(state["loader"])
            fixed = window_end(state["loader"])
        say({"daemon": loader.daemon_pid, "step": state["step"]})
        for batch in loader:
            names = names_of(batch)
            state["seen"] += names
            state["step"] += 1
            say({"step": state["step"], "names": names, "fixed": batch.position + len(names) <= fixed})
            if state["step"] % every == 0 or len(state["seen"]) >= enough:
                state["loader"] = loader.state_dict()
                saved.with_suffix(".new").write_text(json.dumps(state))
                saved.with_suffix(".new").replace(saved)
                loader.checkpoint_saved(state["loader"])
                say({"saved": state["step"]})
            if len(state["seen"]) >= enough:
                break
    say({"done": len(state["seen"])})
"""


class Training:
    """Runs of TRAINER that go on from its checkpoint, and what each step delivered in any of them."""

    def __init__(self, topic: Topic, folder: Path, enough: int, every: int = 7, **changes: Any) -> None:
        self.folder = folder
        options = {key: value for key, value in topic.options(**changes).items() if key != "transforms"}
        self._arguments = (folder, topic.url, json.dumps(options), every, enough)
        self.steps: dict[int, list[Name]] = {}
        self.replayed = 0
        self.runs = 0

    def run(self, stop: Callable[[dict[str, Any], Script], bool], seconds: float = 60) -> bool:
        """Trains until `stop` says so about something it said, or to its end; whether it came there."""
        self.runs += 1
        with Script(TRAINER, *self._arguments) as script:
            while True:
                said = script.hears(seconds)
                if "names" in said:
                    self._note(said["step"], [tuple(name) for name in said["names"]], said["fixed"])
                if "done" in said:
                    assert script.ends() == 0, script.stderr
                    return True
                if stop(said, script):
                    return False

    def _note(self, step: int, names: list[Name], fixed: bool) -> None:
        # Windows behind the token's may be cut elsewhere at the live edge: nobody's weights have seen them.
        if step in self.steps and fixed:
            self.replayed += 1
            assert self.steps[step] == names, f"step {step} was another batch before the crash"
        self.steps[step] = names

    @property
    def seen(self) -> list[Name]:
        """What the weights of the last checkpoint have seen."""
        state = json.loads((self.folder / "checkpoint.json").read_text())
        return [tuple(name) for name in state["seen"]]
