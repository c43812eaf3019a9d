#!/usr/bin/env python3
"""A real Apache Kafka on this machine, from Maven Central: KRaft mode, loopback only, its data in a folder of its own.

    broker.py start --dir /tmp/kafka [--brokers 3] [--port 9092] [--property KEY=VALUE]...   prints host:port[,…]
    broker.py stop --dir /tmp/kafka
    broker.py run --dir /tmp/kafka                    the same in the foreground, until ctrl-C
    broker.py fetch                                   only the jars, into build/kafka

For tests and demonstrations: small heap, no security, quick failover, retention and compaction checked every half
second. As a module, `Broker(folder)` is a context manager; what it starts dies with the process that started it, also
by kill -9. Needs Java 17 and Maven (Debian: default-jre-headless, maven) and nothing of Python but itself.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
BUILD = Path(__file__).resolve().parents[2] / "build" / "kafka"

#: A broker that is not up by then will not come up.
START_SECONDS = 60
STOP_SECONDS = 20

#: C1 only and the serial collector: start-up counts here, not throughput after an hour. No files for other programs.
JVM = ["-Xms64m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
JVM += ["-XX:-UsePerfData", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
JVM += ["-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]

#: Internal topics of one partition, quick failover, and housekeeping that a test can wait for.
PROPERTIES = {
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "controller.quorum.election.timeout.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.backoff.ms": "500",
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "log.initial.task.delay.ms": "500",
    "log.retention.check.interval.ms": "500",
    "log.segment.delete.delay.ms": "500",
    "num.io.threads": "4",
    "num.network.threads": "2",
    "offsets.topic.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "transaction.state.log.num.partitions": "1",
}


def new_cluster() -> str:
    """A cluster's name as Kafka makes it: never with a dash first, which its command line takes for an option."""
    while (name := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return name


class BrokerError(RuntimeError):
    """The broker did not do what it was told; the message holds the end of its log."""


class Unavailable(BrokerError):
    """This machine cannot run one: what is missing, and how it is installed."""


class Broker:
    """A cluster of `nodes` brokers (each also a controller) with its data below `folder`.

    `properties` are Kafka's own, for server.properties. `listeners` are further security protocols that the first
    node is to speak, each on a port of its own: "SSL", "SASL_SSL", "SASL_PLAINTEXT"; what they need is in
    `properties`. With `detached`, the brokers live on when this process ends.
    """

    def __init__(
        self,
        folder: Path | str,
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
        port: int = 0,
        detached: bool = False,
        listeners: Iterable[str] = (),
    ) -> None:
        if nodes % 2 == 0:
            raise ValueError(f"{nodes} brokers: an odd number, so that there is a majority when one fails")
        self.folder = Path(folder).resolve()
        self._classpath = jars()
        self._detached = detached
        names = list(listeners)
        ports = list(free_ports(2 * nodes + len(names)))
        #: host:port by security protocol, of what else is spoken.
        self.listeners = {
            name: f"127.0.0.1:{port}" for name, port in zip(names, ports[2 * nodes :], strict=True)
        }
        del ports[2 * nodes :]
        if port:
            ports[:nodes] = range(port, port + nodes)
        self.nodes = [
            Node(number, self.folder / f"node-{number}", *ports[number - 1 :: nodes])
            for number in range(1, nodes + 1)
        ]
        self._properties = PROPERTIES | replication(nodes) | dict(properties or {})

    @property
    def bootstrap(self) -> str:
        """host:port of every node, for clients."""
        return ",".join(node.address for node in self.nodes)

    def start(self) -> Broker:
        """Formats the storage where that was not done, starts all nodes, and waits until they take requests."""
        cluster = new_cluster()
        fresh = [node for node in self.nodes if not (node.data / "meta.properties").exists()]
        for node in self.nodes:
            self._configure(node)
        formats = [
            self._java(
                "kafka.tools.StorageTool", node, "format.log", "format", "-t", cluster, "-c", str(node.config)
            )
            for node in fresh
        ]
        for node, process in zip(fresh, formats, strict=True):
            if process.wait(START_SECONDS) != 0:
                raise BrokerError(f"formatting the storage failed:\n{tail(node.folder / 'format.log')}")
        self._launch(self.nodes)
        if self._detached:
            state = {"bootstrap": self.bootstrap, "pids": [node.pid for node in self.nodes]}
            state_file(self.folder).write_text(json.dumps(state))
        return self

    def restart(self, *numbers: int) -> None:
        """Starts these nodes (default: all that do not run) again, on the same ports and data."""
        self._launch([node for node in self._chosen(numbers) if not node.runs])

    def kill(self, *numbers: int) -> None:
        """kill -9 of these nodes (default: all)."""
        for node in self._chosen(numbers):
            node.signal(signal.SIGKILL)
            node.wait(STOP_SECONDS)

    def stop(self, *numbers: int) -> None:
        """Stops these nodes (default: all) as an operator does; kills those that take too long about it."""
        chosen = [node for node in self._chosen(numbers) if node.runs]
        for node in chosen:
            node.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for node in chosen:
            if not node.wait(deadline - time.monotonic()):
                self.kill(node.number)

    def pause(self, *numbers: int) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        for node in self._chosen(numbers):
            node.signal(signal.SIGSTOP)

    def resume(self, *numbers: int) -> None:
        """SIGCONT."""
        for node in self._chosen(numbers):
            node.signal(signal.SIGCONT)

    def log(self) -> str:
        """The end of what each node logged since its last start, for a failure's message."""
        return "\n".join(f"--- node {node.number}\n{tail(node.log)}" for node in self.nodes)

    def __enter__(self) -> Broker:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        # The data is thrown away: there is nothing to write back.
        self.kill()

    def _chosen(self, numbers: Iterable[int]) -> list[Node]:
        wanted = set(numbers)
        return [node for node in self.nodes if not wanted or node.number in wanted]

    def _configure(self, node: Node) -> None:
        node.data.mkdir(parents=True, exist_ok=True)
        voters = ",".join(f"{each.number}@127.0.0.1:{each.controller_port}" for each in self.nodes)
        spoken = {"PLAINTEXT": node.address} | (self.listeners if node is self.nodes[0] else {})
        advertised = [f"{name}://{address}" for name, address in spoken.items()]
        own = {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join([*advertised, f"CONTROLLER://127.0.0.1:{node.controller_port}"]),
            "advertised.listeners": ",".join(advertised),
            "log.dirs": str(node.data),
        }
        # Backslashes start escapes in a properties file.
        lines = [f"{key}={value}".replace("\\", "\\\\") for key, value in (own | self._properties).items()]
        node.config.write_text("\n".join([*lines, ""]))

    def _launch(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.log.unlink(missing_ok=True)
            node.process = self._java("kafka.Kafka", node, node.log.name, str(node.config))
        deadline = time.monotonic() + START_SECONDS
        for node in nodes:
            while "Kafka Server started" not in read(node.log):
                if not node.runs:
                    raise BrokerError(f"broker {node.number} ended at its start:\n{tail(node.log)}")
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"broker {node.number} does not serve after {START_SECONDS} s:\n{tail(node.log)}"
                    )
                time.sleep(0.05)

    def _java(self, main: str, node: Node, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        # What it unpacks there (snappy, lz4) stays when it is killed.
        temporary = node.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        command = [java(), *JVM, f"-Djava.io.tmpdir={temporary}", "-cp", self._classpath, main, *arguments]
        if not self._detached:
            command = [sys.executable, "-ISs", __file__, "bound-to", str(os.getpid()), *command]
        with (node.folder / log).open("wb") as output:
            # By one thread that lives as long as this process: "the parent" of a parent-death signal is a thread.
            return LAUNCHER.submit(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=node.folder,
                # ctrl-C in the terminal is for whoever started this.
                start_new_session=True,
            ).result()


@dataclass
class Node:
    """One broker of a cluster."""

    number: int
    folder: Path
    port: int
    controller_port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """Kafka's log.dirs."""
        return self.folder / "data"

    @property
    def config(self) -> Path:
        """The generated server.properties."""
        return self.folder / "server.properties"

    @property
    def log(self) -> Path:
        """What it logged since its last start."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int:
        """Its process; fails when it was never started."""
        if self.process is None:
            raise BrokerError(f"broker {self.number} was not started")
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within this time."""
        try:
            if self.process is not None:
                self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return False
        return True


LAUNCHER = ThreadPoolExecutor(1, "broker-launcher")


def replication(nodes: int) -> dict[str, str]:
    """As many copies as there are nodes, up to three; a write needs a majority of them."""
    copies, enough = min(nodes, 3), min(nodes, 2)
    names = ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"]
    internal = {f"{name}.replication.factor": str(copies) for name in names}
    minimum = {f"{name}.min.isr": str(enough) for name in names[1:]}
    return (
        internal | minimum | {"default.replication.factor": str(copies), "min.insync.replicas": str(enough)}
    )


# Jars ------------------------------------------------------------------------------------------------------------------


def missing() -> str | None:
    """What this machine lacks to run a broker, with the command that installs it; None when it has all."""
    lacks = []
    if java_version() < 17:
        lacks.append("default-jre-headless")
    if shutil.which("mvn") is None and not fetched():
        lacks.append("maven")
    return (
        f"a real Kafka broker needs Java 17 and Maven: sudo apt-get install {' '.join(lacks)}"
        if lacks
        else None
    )


def java() -> str:
    """The java to use: JAVA_HOME's, else the one on the path."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else None
    return found or shutil.which("java") or "java"


def java_version() -> int:
    """Its major version; 0 when there is none."""
    try:
        text = subprocess.run(
            [java(), "-XX:-UsePerfData", "-version"], capture_output=True, text=True, timeout=60
        ).stderr
        # openjdk version "17.0.15" 2025-04-15
        return int(text.split('"')[1].split(".")[0].split("-")[0])
    except (OSError, IndexError, ValueError, subprocess.TimeoutExpired):
        return 0


def fetched() -> bool:
    """Whether the jars that pom.xml names are there."""
    return read(BUILD / "stamp") == stamp()


def stamp() -> str:
    """What the jars were fetched for."""
    return hashlib.sha256(POM.read_bytes()).hexdigest()


def jars() -> str:
    """The class path. The first call fetches about 45 MB through Maven; the later ones need no network."""
    if lacks := missing():
        raise Unavailable(lacks)
    with locked(BUILD / "lock"):
        if not fetched():
            fetch()
    return str(BUILD / "jars" / "*")


def fetch() -> None:
    """Fetches the jars beside their place and renames: an interrupted run leaves nothing that looks whole."""
    fresh = BUILD / "jars.new"
    command = [
        "mvn",
        "--batch-mode",
        "--no-transfer-progress",
        "--file",
        str(POM),
        "dependency:copy-dependencies",
    ]
    command += [f"-DoutputDirectory={fresh}", "-DincludeScope=runtime"]
    # A dropped connection to Maven Central is the likely failure; what was fetched before it is kept in ~/.m2.
    for attempt in range(1, 4):
        shutil.rmtree(fresh, ignore_errors=True)
        print("kafka: fetching the broker from Maven Central", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0:
            break
        if attempt == 3:
            raise BrokerError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
        time.sleep(attempt)
    shutil.rmtree(BUILD / "jars", ignore_errors=True)
    fresh.rename(BUILD / "jars")
    (BUILD / "stamp").write_text(stamp())


# Small things ----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two test runs at once would fetch over each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_ports(count: int) -> Iterator[int]:
    """Free ports of the loopback interface. Below the range that outgoing connections take theirs from: a broker that
    was killed must get its port again.
    """
    tried = random.SystemRandom().sample(range(15_000, 32_000), 1_000)
    for port in tried:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
        count -= 1
        if not count:
            return
    raise BrokerError("there is no free port between 15000 and 32000")


def read(path: Path) -> str:
    """A file's text; empty when it is not there."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def tail(path: Path, lines: int = 30) -> str:
    """The end of a log."""
    return "\n".join([str(path), *read(path).splitlines()[-lines:]])


def state_file(folder: Path) -> Path:
    """Where `start` leaves for `stop` what it started."""
    return folder / "broker.json"


def exec_bound_to(parent: int, command: list[str]) -> None:
    """Becomes `command`, which the kernel kills when `parent` ends, however that happens."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # It may have ended before.
    if os.getppid() == parent:
        os.execv(command[0], command)


# Command line ----------------------------------------------------------------------------------------------------------


def stop_detached(folder: Path) -> int:
    """Stops what `start` started there."""
    try:
        pids = json.loads(state_file(folder).read_text())["pids"]
    except FileNotFoundError:
        print(f"broker.py: nothing was started with --dir {folder}", file=sys.stderr)
        return 1

    # A number may have been given to another process since.
    def ours(pid: int) -> bool:
        return str(folder).encode() in read_bytes(Path(f"/proc/{pid}/cmdline"))

    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        for pid in filter(ours, pids):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(map(ours, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
    state_file(folder).unlink()
    return 0


def read_bytes(path: Path) -> bytes:
    """A file's bytes; empty when it is not there."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def main() -> int:
    """The command line; see the top of the file."""
    if sys.argv[1:2] == ["bound-to"]:
        exec_bound_to(int(sys.argv[2]), sys.argv[3:])
        return 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["start", "stop", "run", "fetch"])
    parser.add_argument("--dir", type=Path, help="data and logs; kept until you remove it")
    parser.add_argument("--brokers", type=int, default=1, choices=[1, 3])
    parser.add_argument("--port", type=int, default=0, help="of the first broker (default: any free one)")
    parser.add_argument(
        "--property", action="append", default=[], metavar="KEY=VALUE", help="for server.properties"
    )
    arguments = parser.parse_args()
    if arguments.dir is None and arguments.command != "fetch":
        parser.error(f"{arguments.command} needs --dir")
    if wrong := [text for text in arguments.property if "=" not in text]:
        parser.error(f"--property {wrong[0]}: write KEY=VALUE")
    properties = dict(text.split("=", 1) for text in arguments.property)
    try:
        if arguments.command == "fetch":
            print(jars())
            return 0
        folder = arguments.dir.resolve()
        if arguments.command == "stop":
            return stop_detached(folder)
        detached = arguments.command == "start"
        broker = Broker(folder, arguments.brokers, properties, arguments.port, detached=detached)
        if detached:
            try:
                print(broker.start().bootstrap)
            except BaseException:
                broker.kill()
                raise
            return 0
        with broker:
            print(broker.bootstrap, flush=True)
            # SIGTERM ends it as ctrl-C does.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                signal.pause()
            except KeyboardInterrupt:
                broker.stop()
    except BrokerError as error:
        print(f"broker.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
