"""`fuelrail serve`: several clients on one socket, its configuration, its end, and peers that mean it harm."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuelrail import ConfigError, DaemonDied, EnvironmentFailure, FuelrailError, TokenError
from fuelrail.loader import binary
from support import (
    AUGMENT,
    SLACK,
    TINY,
    Daemon,
    Footprint,
    Loader,
    Script,
    T,
    at_most,
    descriptors,
    digests,
    fuelrail,
    row_digests,
    wait_until,
)
from wire import PROTOCOL, Wire

CONFIG = """
[pipelines.train]
batch_size = 8
shuffle = true
seed = 3
source = { type = "folder", root = "IMAGES" }
transforms = [
    { type = "RandomResizedCrop", size = 24 },
    { type = "RandomHorizontalFlip" },
    { type = "Normalize", mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] },
]

[pipelines.synthetic]
batch_size = 10
source = { type = "synthetic", count = 1000, width = 16, height = 16 }
transforms = [{ type = "Resize", size = [8, 8] }]
"""


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "pipelines.toml"
    path.write_text(CONFIG.replace("IMAGES", str(images)))
    return path


@pytest.fixture
def daemon(config: Path, tmp_path: Path, images: Path) -> Iterator[Daemon]:
    with Daemon(config, "--root", images, socket=tmp_path / "s.sock") as daemon:
        yield daemon.listens()


def healthy(daemon: Daemon) -> None:
    """Another client gets all it wants."""
    with Loader(daemon.url, pipeline="synthetic", timeout=30) as loader:
        assert sum(batch.rows for batch in loader) == 1000


# Use -------------------------------------------------------------------------------------------------------------------


def test_a_client_attaches_by_name_and_gets_what_a_private_daemon_gives(daemon: Daemon, images: Path) -> None:
    chain = [T.RandomResizedCrop(24), T.RandomHorizontalFlip(), T.Normalize(*T.IMAGENET)]
    with Loader(images, transforms=chain, batch_size=8, shuffle=True, seed=3) as private:
        expected = [digests(private), digests(private)]
        next(iter(private))
        token = private.state_dict()
        rest = digests(private)
    with Loader(daemon.url, pipeline="train") as loader:
        assert loader.daemon_pid == daemon.pid
        assert (loader.batch_size, loader.num_samples, loader.shape) == (8, 61, (3, 24, 24))
        assert loader.classes == ["bridge", "forest", "harbour"]
        assert [digests(loader), digests(loader)] == expected
        # A token knows the run, not the daemon.
        loader.load_state_dict(token)
        next(iter(loader))
        assert digests(loader) == rest
    with Loader(daemon.url, pipeline="synthetic") as other, pytest.raises(TokenError):
        other.load_state_dict(token)


def test_an_unknown_pipeline_is_refused_with_the_known_ones(daemon: Daemon) -> None:
    with pytest.raises(ConfigError, match=r"'trian'.*synthetic, train"):
        Loader(daemon.url, pipeline="trian")
    with pytest.raises(ConfigError, match="pipeline="):
        Loader(daemon.url)


def test_a_missing_daemon_is_an_error_that_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(FuelrailError, match=f"{tmp_path}.*fuelrail serve"):
        Loader(f"unix://{tmp_path}/nothing.sock", pipeline="train")


def test_arguments_that_the_daemons_pipeline_decides_are_refused(daemon: Daemon) -> None:
    for argument, value in {"batch_size": 99, "transforms": TINY, "shuffle": True, "dtype": "f16"}.items():
        with pytest.raises((ConfigError, TypeError), match=argument):
            Loader(daemon.url, pipeline="train", **{argument: value}).close()


def test_four_ranks_in_four_processes_are_one_global_batch(daemon: Daemon, footprint: Footprint) -> None:
    code = """
        from fuelrail.numpy import Loader
        from support import row_digests
        with Loader(sys.argv[1], pipeline="train", rank=int(sys.argv[2]), world_size=4) as loader:
            for epoch in range(2):
                for batch in loader:
                    say([epoch, batch.position, list(row_digests([batch]).items())])
    """
    ranks = [Script(code, daemon.url, rank, footprint=footprint) for rank in range(4)]
    seen: dict[tuple[int, int], str] = {}
    for script in ranks:
        with script:
            for epoch, _, rows in script.rest():
                for position, row in rows:
                    assert (epoch, position) not in seen
                    seen[epoch, position] = row
            assert script.ends() == 0, script.stderr
    with Loader(daemon.url, pipeline="train") as one:
        for epoch in range(2):
            assert row_digests(one) == {at: row for (of, at), row in seen.items() if of == epoch}
    footprint.is_clean()


def test_the_daemon_outlives_a_client_that_is_killed(daemon: Daemon, footprint: Footprint) -> None:
    code = """
        from fuelrail.numpy import Loader
        loader = Loader(sys.argv[1], pipeline="synthetic")
        iterator = iter(loader)
        kept = next(iterator)
        say("attached")
        while True:
            loader.set_epoch(0)
            for batch in loader: pass
    """
    before = descriptors(daemon.pid)
    for _ in range(5):
        with Script(code, daemon.url, footprint=footprint) as script:
            assert script.hears() == "attached"
            assert descriptors(daemon.pid) > before
            script.signal(signal.SIGKILL)
            script.ends()
        wait_until(lambda: descriptors(daemon.pid) <= before, SLACK, "everything of the dead client is freed")
    healthy(daemon)


# Roots -----------------------------------------------------------------------------------------------------------------


def inline(root: Path | str) -> dict[str, Any]:
    chain = [{"type": "Resize", "size": [8, 8]}]
    return {"inline": {"source": {"type": "folder", "root": str(root)}, "transforms": chain}}


def test_pipelines_of_a_clients_own_stay_below_the_roots(
    daemon: Daemon, images: Path, tmp_path: Path
) -> None:
    for allowed in (images, images / "forest"):
        with Wire(daemon.socket) as wire:
            assert wire.greets().attaches(inline(allowed))["batching"]["len"] > 0
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    (outside / "a" / "1.jpg").write_bytes(next(images.rglob("*.jpg")).read_bytes())
    for escape in (
        outside,
        images / ".." / outside.name,
        f"{images}/../../{tmp_path.name}/outside",
        "/",
        "/etc",
    ):
        with Wire(daemon.socket) as wire:
            wire.greets().say({"say": "attach", "pipeline": inline(escape)})
            assert "--root" in wire.refusal()["message"]


def test_a_link_out_of_the_roots_is_not_followed_to_the_root_itself(images: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(images)
    with Daemon("--root", allowed, socket=tmp_path / "s.sock") as daemon:
        daemon.listens()
        with Wire(daemon.socket) as wire:
            wire.greets().say({"say": "attach", "pipeline": inline(allowed / "link")})
            assert "--root" in wire.refusal()["message"]


def test_no_option_of_a_source_leads_out_of_the_roots(daemon: Daemon, images: Path, tmp_path: Path) -> None:
    listed = images / "list.csv"
    listed.write_text("path,label\n1.jpg,0\n")
    picture = tmp_path / "1.jpg"
    picture.write_bytes(next(images.rglob("*.jpg")).read_bytes())
    address = {"type": "address", "address": str(listed)}
    synthetic = {"type": "synthetic", "count": 3}
    text = {"type": "Text", "name": "text", "max_bytes": 9}
    refused: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({**address, "root": str(tmp_path)}, {}, "--root"),
        ({"type": "table", "files": [str(listed)], "root": str(tmp_path)}, {}, "--root"),
        ({"type": "mix", "parts": [{"source": {**address, "root": str(tmp_path)}}]}, {}, "--root"),
        ({"type": "address", "address": "http://127.0.0.1:1/x.tar"}, {}, "--root"),
        *[
            (
                {"type": kind, place: str(images)},
                {"fields": [text | {"part": part}], "transforms": None},
                "--root",
            )
            for kind, place in (("address", "address"), ("folder", "root"))
            for part in ("../{path}.txt", f"{tmp_path}/{{stem}}.txt")
        ],
        ({**address, "cache": {"dir": str(tmp_path)}}, {}, "source.cache"),
        (synthetic, {"sampling": {"type": "weights", "file": str(picture)}}, "--root"),
        (synthetic, {"sampling": {"type": "order", "indices": str(picture)}}, "--root"),
    ]
    try:
        for source, options, reason in refused:
            with Wire(daemon.socket) as wire:
                pipeline = inline(images)
                whole = {**pipeline["inline"], "source": source, **options}
                pipeline["inline"] = {key: value for key, value in whole.items() if value is not None}
                wire.greets().say({"say": "attach", "pipeline": pipeline})
                assert reason in wire.refusal()["message"], source
    finally:
        listed.unlink()


def test_a_clients_own_pipeline_cannot_write_where_it_likes(
    daemon: Daemon, images: Path, tmp_path: Path
) -> None:
    pipeline = inline(images)
    victim = tmp_path / "outside.jsonl"
    pipeline["inline"]["quarantine"] = str(victim)
    with Wire(daemon.socket) as wire:
        wire.greets().say({"say": "attach", "pipeline": pipeline})
        assert "quarantine" in wire.refusal()["message"]
    assert not victim.exists()


# Start and end ---------------------------------------------------------------------------------------------------------


def test_the_socket_is_its_owners_alone(daemon: Daemon) -> None:
    mode = daemon.socket.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_with_clients_attached(daemon: Daemon, number: int) -> None:
    with Loader(daemon.url, pipeline="synthetic") as loader:
        iterator = iter(loader)
        batch = next(iterator)
        before = digests([batch])
        assert daemon.stops(number) == 128 + number
        assert not daemon.socket.exists()
        with at_most(SLACK, "noticing"), pytest.raises(DaemonDied, match=str(daemon.pid)):
            list(iterator)
        assert digests([batch]) == before


def test_a_dead_daemons_socket_is_taken_over(config: Path, tmp_path: Path) -> None:
    with Daemon(config, socket=tmp_path / "s.sock") as first:
        first.listens()
        first.stops(signal.SIGKILL)
        assert first.socket.exists()
    with Daemon(config, socket=tmp_path / "s.sock") as second:
        second.listens()
        healthy(second)
        assert second.stops() == 128 + signal.SIGTERM


def test_a_living_daemons_socket_is_not(daemon: Daemon, config: Path) -> None:
    done = fuelrail("serve", config, "--socket", daemon.socket)
    assert done.returncode == 1
    assert "another daemon is listening" in done.stderr and str(daemon.socket) in done.stderr
    healthy(daemon)


def test_what_is_no_socket_is_left_alone(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    for target in (path, tmp_path):
        done = fuelrail("serve", config, "--socket", target)
        assert done.returncode == 1 and "left alone" in done.stderr, done.stderr
    assert path.read_text() == "precious"


def test_a_socket_path_that_cannot_be_is_named(config: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "s.sock", tmp_path / ("long" * 40)):
        done = fuelrail("serve", config, "--socket", path)
        assert done.returncode == 1 and str(path) in done.stderr, done.stderr
        assert "panicked" not in done.stderr


def test_nothing_is_left_when_it_stops(config: Path, footprint: Footprint, tmp_path: Path) -> None:
    with Daemon(config, socket=tmp_path / "s.sock", footprint=footprint) as daemon:
        daemon.listens()
        healthy(daemon)
        assert daemon.stops() == 128 + signal.SIGTERM
    footprint.is_clean()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pipelines.a]\nbatchsize = 3\nsource = { type = 'synthetic' }", ["batchsize", "batch_size"]),
        ("[pipelines.a]\nsource = { type = 'synthetic', cuont = 3 }", ["cuont", "count"]),
        ("[pipelines.a]\nsource = { type = 'fodler', root = '/' }", ["fodler", "folder"]),
        ("[pipelines.a]\nsource = { type = 'folder', rot = '/' }", ["rot", "root"]),
        ("[pipelines.a]\nbatch_size = 0\nsource = { type = 'synthetic' }", ["pipelines.a", "batch_size"]),
        (
            "[pipelines.a]\nsource = { type = 'synthetic' }\ntransforms = [{ type = 'Rezise', size = 3 }]",
            ["Rezise", "Resize"],
        ),
        (
            "[pipelines.a]\nsource = { type = 'synthetic' }\ntransforms = [{ type = 'Resize', sise = 3 }]",
            ["sise", "size"],
        ),
        ("[pipelines.a]\nsource = { type = 'synthetic' }\nread = { backend = 'aio' }", ["aio", "io_uring"]),
        ("[pipeline.a]\nsource = { type = 'synthetic' }", ["pipeline", "pipelines"]),
        ("[pipelines.a\n", ["toml:1:13", "unclosed"]),
        ("", ["pipelines"]),
    ],
)
def test_a_mistake_in_the_configuration_is_named_at_the_start(
    text: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    done = fuelrail("serve", path, "--socket", tmp_path / "s.sock")
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert str(path) in done.stderr or not text
    assert not (tmp_path / "s.sock").exists()


# Peers that mean it harm -----------------------------------------------------------------------------------------------


def test_another_protocol_version_is_refused_on_both_sides(daemon: Daemon) -> None:
    with Wire(daemon.socket) as wire:
        wire.say({"say": "hello", "protocol": PROTOCOL + 1, "pid": os.getpid()})
        refused = wire.refusal()
        assert refused["kind"] == "protocol" and "same version" in refused["message"]
    healthy(daemon)


def test_a_daemon_of_another_version_is_refused_by_the_client(tmp_path: Path) -> None:
    from fuelrail import ProtocolError

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s.sock"))
    listener.listen()

    def answer(replies: bytes) -> None:
        peer, _ = listener.accept()
        peer.recv(1 << 16)
        peer.sendall(replies)
        # Hangs up when the client does.
        peer.recv(1)
        peer.close()

    body = b'{"say": "welcome", "protocol": 99, "version": "9.9.9", "pid": 1}'
    for replies, words in (
        (struct.pack("<I", len(body)) + body, "9.9.9.*protocol 99|protocol 99"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "longer|message"),
        (struct.pack("<I", 5) + b"[1,2]", "message"),
    ):
        thread = threading.Thread(target=answer, args=(replies,))
        thread.start()
        with at_most(10, "the refusal"), pytest.raises(ProtocolError, match=words):
            Loader(f"unix://{tmp_path}/s.sock", pipeline="x", timeout=20)
        thread.join(10)
    listener.close()


def test_bytes_that_are_no_message_end_the_connection_with_a_reason(
    daemon: Daemon, rng: random.Random
) -> None:
    hello = b'{"say":"hello","protocol":1,"pid":1}'
    cases = {
        "not JSON": struct.pack("<I", 7) + b"garbage",
        "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "oversized": struct.pack("<I", 0xFFFFFFFF),
        "oversized by one": struct.pack("<I", (16 << 20) + 1),
        "unknown message": struct.pack("<I", 15) + b'{"say":"dance"}',
        "unknown key": struct.pack("<I", len(hello) + 8) + hello[:-1] + b',"more":1}'[:9],
        "empty": struct.pack("<I", 0),
        "no object": struct.pack("<I", 4) + b"null",
        "deep nesting": struct.pack("<I", 200_000) + b"[" * 200_000,
    }
    for what, raw in cases.items():
        with Wire(daemon.socket) as wire:
            wire.send(raw)
            refused = wire.refusal()
            assert refused["kind"] == "protocol" and refused["message"], what
        with Wire(daemon.socket) as wire:
            wire.greets().send(raw)
            assert wire.refusal()["kind"] == "protocol", what
    for _ in range(50):
        with Wire(daemon.socket) as wire:
            wire.send(rng.randbytes(rng.randrange(1, 300)))
    healthy(daemon)


def test_messages_out_of_turn_are_refused_by_name(daemon: Daemon) -> None:
    early: list[Any] = [
        {"say": "release", "slot": 0},
        {"say": "seek", "generation": 1, "cursor": {"epoch": 0, "position": 0}},
        {"say": "keys", "indices": [0]},
        {"say": "stats", "data_wait_ns": 0, "iteration_ns": 0},
        {"say": "attach", "pipeline": {"name": "train"}},
        {"say": "adopt"},
    ]
    for message in early:
        with Wire(daemon.socket) as wire:
            wire.say(message)
            assert message["say"] in wire.refusal()["message"]
    for message in early:
        if message["say"] != "attach":
            with Wire(daemon.socket) as wire:
                wire.greets().say(message)
                assert message["say"] in wire.refusal()["message"]
    for message in ({"say": "hello", "protocol": PROTOCOL, "pid": 1}, early[4], early[5]):
        with Wire(daemon.socket) as wire:
            wire.greets().attaches({"name": "synthetic"})
            wire.say(message)
            assert message["say"] in wire.refusal()["message"]
    healthy(daemon)


@pytest.mark.parametrize(
    "indices", [[-1], [1000], [1 << 62], list(range(70_000))], ids=["negative", "behind", "huge", "many"]
)
def test_keys_of_records_that_do_not_exist_are_refused(daemon: Daemon, indices: list[int]) -> None:
    with Wire(daemon.socket) as wire:
        wire.greets().attaches({"name": "synthetic"})
        wire.say({"say": "keys", "indices": indices})
        assert wire.refusal()["kind"] == "config"
    healthy(daemon)


def test_places_that_do_not_exist_harm_nobody(daemon: Daemon) -> None:
    big = (1 << 64) - 1
    for cursor in (
        {"epoch": 0, "position": big},
        {"epoch": big, "position": 0},
        {"epoch": big, "position": big},
    ):
        with Wire(daemon.socket) as wire:
            wire.greets().attaches({"name": "synthetic"})
            wire.say({"say": "seek", "generation": 1, "cursor": cursor})
            wire.say({"say": "stats", "data_wait_ns": big, "iteration_ns": big})
            # An answer or a refusal, but no silence.
            assert wire.hears("stats") or wire.hears("refused")
        with Wire(daemon.socket) as wire:
            wire.greets().say({"say": "attach", "pipeline": {"name": "synthetic"}, "start": cursor})
            assert wire.hears()
    for rank, world in ((5, 4), (big, big), (0, 0), (0, big)):
        with Wire(daemon.socket) as wire:
            wire.greets().say(
                {"say": "attach", "pipeline": {"name": "synthetic"}, "rank": rank, "world_size": world}
            )
            assert wire.refusal()["kind"] == "config"
    healthy(daemon)


def test_forged_releases_free_no_slot_that_is_in_use(daemon: Daemon) -> None:
    with Loader(daemon.url, pipeline="synthetic") as loader:
        expected = row_digests(loader)
    with Wire(daemon.socket) as wire:
        attached = wire.greets().attaches({"name": "synthetic"})
        slots, size = attached["slots"], attached["layout"]["slot_bytes"]
        with mmap.mmap(wire.fds[0], slots * size) as memory:
            first = wire.hears("ready")
            assert first is not None
            held = memory[first["slot"] * size : (first["slot"] + 1) * size]
            for slot in [*range(slots), *range(slots), slots, slots + 1, 0xFFFFFFFF]:
                if slot != first["slot"]:
                    wire.say({"say": "release", "slot": slot})
            for _ in range(20):
                ready = wire.hears("ready")
                assert ready is not None and ready["slot"] != first["slot"]
                wire.say({"say": "release", "slot": ready["slot"]})
                wire.say({"say": "release", "slot": ready["slot"]})
            assert memory[first["slot"] * size : (first["slot"] + 1) * size] == held
    with Loader(daemon.url, pipeline="synthetic") as loader:
        assert row_digests(loader) == expected


def test_the_shared_memory_cannot_be_truncated_grown_or_unsealed(daemon: Daemon) -> None:
    import fcntl

    with Loader(daemon.url, pipeline="synthetic") as other, Wire(daemon.socket) as wire:
        iterator = iter(other)
        next(iterator)
        attached = wire.greets().attaches({"name": "synthetic"})
        ring = wire.fds[0]
        size = os.fstat(ring).st_size
        assert size >= attached["slots"] * attached["layout"]["slot_bytes"]
        for length in (0, size // 2, size - 1, size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(ring, length)
        with pytest.raises(PermissionError):
            fcntl.fcntl(ring, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        libc = ctypes.CDLL(None, use_errno=True)
        punch = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE: takes pages, not length
        libc.fallocate(ring, punch, ctypes.c_long(0), ctypes.c_long(size))
        assert wire.hears("ready")
        assert sum(batch.rows for batch in iterator) == 990
    healthy(daemon)


def test_a_client_that_writes_into_its_ring_damages_only_itself(daemon: Daemon) -> None:
    with Loader(daemon.url, pipeline="train") as loader:
        expected = digests(loader)
    with Loader(daemon.url, pipeline="train") as good, Wire(daemon.socket) as wire:
        attached = wire.greets().attaches({"name": "train"})
        size = attached["slots"] * attached["layout"]["slot_bytes"]
        with mmap.mmap(wire.fds[0], size) as memory:
            seen = []
            for batch in good:
                memory[:] = b"\xaa" * size
                seen += digests([batch])
            assert seen == expected


def test_idle_and_slow_connections_are_let_go_and_hold_nobody_up(daemon: Daemon) -> None:
    idle = [Wire(daemon.socket) for _ in range(60)]
    # One sends a byte now and then: it has not said hello either.
    dripping, stop = Wire(daemon.socket), threading.Event()
    dripping.send(struct.pack("<I", 1000))

    def drip() -> None:
        try:
            while not stop.wait(0.5):
                dripping.send(b" ")
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with at_most(30, "a healthy client beside them"):
            healthy(daemon)
        with at_most(10 * SLACK, "letting them go"):
            for wire in [*idle, dripping]:
                assert "hello" in wire.refusal()["message"]
    finally:
        stop.set()
        thread.join()
    for wire in [*idle, dripping]:
        wire.close()
    healthy(daemon)


def test_floods_of_connections_and_descriptors_are_survived(daemon: Daemon) -> None:
    before = descriptors(daemon.pid)
    for _ in range(300):
        Wire(daemon.socket).close()
    gift = os.open("/dev/null", os.O_RDONLY)
    try:
        with Wire(daemon.socket) as wire:
            wire.send(b"\xff\x00\x00\x00", [gift] * 200)
            for _ in range(50):
                wire.send(b" ", [gift] * 200)
    except (BrokenPipeError, ConnectionResetError):
        pass
    os.close(gift)
    wait_until(
        lambda: descriptors(daemon.pid) <= before + 1, 10, "descriptors that nobody asked for are closed"
    )
    healthy(daemon)


def test_a_client_that_never_reads_does_not_grow_the_daemon(daemon: Daemon) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * 4096

    with Wire(daemon.socket) as wire:
        wire.greets().attaches({"name": "synthetic"})
        healthy(daemon)
        before = resident()
        wire.socket.settimeout(1)
        question = {"say": "keys", "indices": list(range(1000)) * 20}
        try:
            for _ in range(300):
                wire.say(question)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        healthy(daemon)
        grown = resident() - before
        assert grown < 64 << 20, f"{grown >> 20} MiB of answers wait for a client that does not read"


def test_one_user_cannot_use_anothers_daemon(daemon: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    # Even where the mode of the socket does not protect it.
    daemon.socket.chmod(0o777)
    for parent in daemon.socket.parents:
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    code = """
        import socket
        os.setuid(65534)
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(20)
        peer.connect(sys.argv[1])
        body = b'{"say":"hello","protocol":1,"pid":1}'
        try:
            peer.sendall(len(body).to_bytes(4, "little") + body)
            say(peer.recv(1000).decode(errors="replace"))
        except OSError as error:
            say(str(error))
    """
    with Script(code, daemon.socket) as script:
        assert "welcome" not in script.hears()
    healthy(daemon)


def test_augmentation_over_a_socket_is_that_of_a_private_daemon(images: Path, tmp_path: Path) -> None:
    """The whole chain of transforms travels as plain data, in TOML as in JSON."""
    import json

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
        return json.dumps(value)

    chain = ", ".join(toml(transform.config()) for transform in AUGMENT)
    path = tmp_path / "p.toml"
    source = f'{{ type = "folder", root = "{images}" }}'
    path.write_text(
        f"[pipelines.p]\nbatch_size = 7\nshuffle = true\nsource = {source}\ntransforms = [{chain}]\n"
    )
    with Daemon(path, socket=tmp_path / "s.sock") as daemon:
        with Loader(daemon.listens().url, pipeline="p") as loader:
            over = digests(loader)
        with Loader(images, transforms=AUGMENT, batch_size=7, shuffle=True) as loader:
            assert digests(loader) == over


def test_a_pipeline_may_leave_the_floats_to_its_clients(config: Path, tmp_path: Path) -> None:
    config.write_text(
        config.read_text().replace("[pipelines.train]", '[pipelines.train]\nfinish = "client"', 1)
    )
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace('"client"', '"daemon"'))
    with (
        Daemon(config, socket=tmp_path / "a.s") as one,
        Daemon(other, socket=tmp_path / "b.s") as two,
        Loader(one.listens().url, pipeline="train") as parts,
        Loader(two.listens().url, pipeline="train") as whole,
    ):
        assert digests(parts) == digests(whole)
        assert parts.stats()["ring_bytes"] < whole.stats()["ring_bytes"] / 2, "bytes are sent"


def test_a_client_that_the_daemon_cannot_see_is_told_so(config: Path, tmp_path: Path, images: Path) -> None:
    """A daemon in a PID namespace of its own, as in a container, and a client outside of it."""
    unshare = ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a PID namespace")
    socket = tmp_path / "s.sock"
    command = [*unshare, str(binary()), "serve", str(config), "--socket", str(socket)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as apart:
        try:
            assert apart.stderr is not None
            while "listening on" not in (line := apart.stderr.readline()):
                assert line, "it ended"
            with pytest.raises(EnvironmentFailure, match="PID namespace that this daemon cannot see"):
                Loader(f"unix://{socket}", pipeline="train")
        finally:
            apart.kill()
