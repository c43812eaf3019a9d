"""Opening a source that takes long: it is seen, ends with who waits for it, and leaves nothing half done."""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import signal
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fuelrail import opening
from fuelrail.loader import binary
from fuelrail.numpy import Loader
from support import SLACK, TINY, Daemon, Footprint, Script, at_most, wait_until
from wire import Wire


class Slow:
    """A web server that answers what lies before byte `open_to` of a file, and makes others wait until it is let go."""

    def __init__(self, files: dict[str, bytes], open_to: int) -> None:
        self.files = files
        self.open_to = open_to
        self.waiting = 0
        self.gone = 0
        self._go = threading.Event()
        slow = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _head(self, status: int, length: int, more: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"ETag": '"1"', "Content-Length": str(length), **more}.items():
                    self.send_header(name, value)
                self.end_headers()

            def do_HEAD(self) -> None:
                body = slow.files.get(self.path)
                self._head(404 if body is None else 200, len(body or b""), {"Accept-Ranges": "bytes"})

            def do_GET(self) -> None:
                body = slow.files.get(self.path)
                if body is None:
                    return self._head(404, 0, {})
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(body) - 1)
                last = min(last, len(body) - 1)
                if last >= slow.open_to and not slow._go.is_set():
                    slow._hold(self)
                piece = body[first : last + 1]
                where = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
                try:
                    self._head(206 if asked else 200, len(piece), where if asked else {})
                    self.wfile.write(piece)
                except OSError:
                    pass
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _hold(self, handler: BaseHTTPRequestHandler) -> None:
        self.waiting += 1
        handler.connection.setblocking(False)
        try:
            while not self._go.wait(0.01):
                try:
                    if handler.connection.recv(1) == b"":
                        self.gone += 1
                        return
                except BlockingIOError:
                    pass
        except OSError:
            self.gone += 1
        finally:
            handler.connection.setblocking(True)

    def holds(self) -> None:
        """Waits until somebody waits for an answer."""
        wait_until(lambda: self.waiting, 30, "somebody asks for what is held back")

    def is_left(self) -> None:
        """Waits until nobody waits for an answer any more."""
        wait_until(lambda: self.gone >= self.waiting, SLACK, "whoever asked is gone")

    def go(self) -> None:
        """Answers everything from now on."""
        self._go.set()

    def close(self) -> None:
        self.go()
        self._server.shutdown()
        self._server.server_close()


def shard(members: int, size: int) -> bytes:
    """A tar file of bytes with the names of images."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(members):
            info = tarfile.TarInfo(f"{number:06}.jpg")
            # As images are, it is not to be compressed.
            data = os.urandom(size)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Two shards of 12 MiB, the second half of which does not come."""
    plain = shard(24, 512 << 10)
    server = Slow({"/x.tar": plain, "/x.tar.gz": gzip.compress(plain, 1)}, open_to=5 << 20)
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for everything that is started."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def half_done(cache: Path) -> list[Path]:
    """Files that somebody was in the middle of writing."""
    return [
        path for path in cache.rglob("*") if path.name.startswith("tmp-") or path.suffix in (".tmp", ".lease")
    ]


COMMANDS = {
    "inspect": ["inspect"],
    "bench": ["bench", "--seconds", "1"],
    "preview": ["preview", "--out", "OUT/sheet.png"],
    "pack": ["pack"],
}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_a_command_that_opens_a_source(
    command: str, name: str, slow: Slow, cache: Path, tmp_path: Path, footprint: Footprint
) -> None:
    words = [word.replace("OUT", str(tmp_path)) for word in COMMANDS[command]]
    place = [str(tmp_path / "packed")] if command == "pack" else []
    process = subprocess.Popen(
        [str(binary()), *words, f"{slow.url}/{name}", *place],
        env=footprint.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    slow.holds()
    # As a terminal does: to everything in its group.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=2 * SLACK)
    assert process.returncode == 130, errors
    slow.is_left()
    footprint.is_clean()
    assert not half_done(cache)
    assert not (tmp_path / "packed").exists()
    assert not (tmp_path / "sheet.png").exists()


def test_ctrl_c_ends_a_loader_that_is_being_made(slow: Slow, cache: Path, footprint: Footprint) -> None:
    code = """
        from fuelrail.numpy import Loader, transforms as T
        Loader(sys.argv[1], transforms=[T.Resize((8, 8))])
    """
    with Script(code, f"{slow.url}/x.tar.gz", footprint=footprint) as script:
        slow.holds()
        assert [path for path in half_done(cache) if path.suffix == ".tmp"], "it is in the middle of it"
        script.signal(signal.SIGINT, group=True)
        assert script.ends(2 * SLACK) == -signal.SIGINT, script.stderr
    slow.is_left()
    footprint.is_clean()
    assert not half_done(cache)


@pytest.mark.parametrize("end", ["hang up", "die"])
def test_a_daemon_stops_opening_for_a_client_that_is_gone(
    end: str, slow: Slow, cache: Path, tmp_path: Path, footprint: Footprint
) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(
        f'[pipelines.slow]\nsource = {{ type = "address", address = "{slow.url}/x.tar.gz" }}\nbatch_size = 4\n'
        'transforms = [{ type = "Resize", size = [8, 8] }]\n'
    )
    code = """
        from fuelrail.numpy import Loader
        Loader(sys.argv[1], pipeline="slow")
    """
    with Daemon(config, socket=tmp_path / "s.sock", footprint=footprint) as daemon:
        daemon.listens()
        if end == "die":
            with Script(code, daemon.url) as script:
                slow.holds()
                script.signal(signal.SIGKILL)
                slow.is_left()
        else:
            with Wire(daemon.socket) as wire:
                wire.greets().say({"say": "attach", "pipeline": {"name": "slow"}})
                # On a slow machine it is seen looking for the object first.
                while (told := wire.hears("progress")) and told["counted"] != "bytes":
                    pass
                assert told is not None
                assert told["total"] == len(slow.files["/x.tar.gz"])
                slow.holds()
            slow.is_left()
        wait_until(lambda: not half_done(cache), SLACK, "what was half written is deleted")
        # The next client gets what this one did not wait for.
        slow.go()
        with Loader(daemon.url, pipeline="slow") as loader:
            assert loader.num_samples == 24


def test_opening_is_shown_on_a_terminal_and_in_the_log(
    slow: Slow, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(opening.Opening, "PATIENCE", 0.0)
    monkeypatch.setattr(opening.sys, "stderr", terminal)

    def release() -> None:
        slow.holds()
        wait_until(lambda: "indexing shards" in terminal.getvalue(), SLACK, "it is shown")
        slow.go()

    helper = threading.Thread(target=release)
    helper.start()
    with Loader(f"{slow.url}/x.tar", transforms=TINY) as loader:
        assert loader.num_samples == 24
    helper.join()
    shown = terminal.getvalue()
    assert re.search(r"indexing shards: [\d.]+ of 12\.\d MB \(\d+%\)", shown), shown
    assert shown.endswith("\r"), "the line is taken away"

    quiet = io.StringIO()
    monkeypatch.setattr(opening.sys, "stderr", quiet)
    monkeypatch.setattr(opening.Opening, "LOG_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="fuelrail"):
        display = opening.Opening()
        display("listing objects", 12_345, None, "objects")
        display("reading labels", 5, 10, "rows")
    assert not quiet.getvalue()
    assert caplog.messages == ["listing objects: 12,345 objects", "reading labels: 5 of 10 rows (50%)"]


def test_as_long_as_there_is_progress_the_time_does_not_run_out(slow: Slow, cache: Path) -> None:
    # Nothing gets on here: it does.
    with at_most(2 * SLACK, "the time-out"), pytest.raises(Exception, match="timeout") as failed:
        Loader(f"{slow.url}/x.tar", transforms=TINY, timeout=0.5)
    assert "made no progress" in str(failed.value)


def test_what_a_display_raises_ends_the_opening(slow: Slow, cache: Path, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the display is broken")

    monkeypatch.setattr(opening.Opening, "__call__", broken)
    with at_most(2 * SLACK, "the error"), pytest.raises(ZeroDivisionError, match="the display"):
        Loader(f"{slow.url}/x.tar", transforms=TINY)
    slow.is_left()


def test_a_display_may_call_any_method_of_another_loader(
    slow: Slow, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    with Loader("synthetic://?count=20", transforms=TINY, batch_size=4) as other:

        def curious(*_: object) -> None:
            batch = next(iter(other))
            other.stats(), other.state_dict(), other.keys(batch), repr(other)
            other.load_state_dict(other.state_dict())
            called.append(batch.rows)
            slow.go()

        monkeypatch.setattr(opening.Opening, "__call__", curious)
        with Loader(f"{slow.url}/x.tar", transforms=TINY) as loader:
            assert loader.num_samples == 24
    assert called


def test_what_stands_in_for_stderr_needs_no_more_than_write(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        def write(self, text: str) -> int:
            return len(text)

    closed = io.StringIO()
    closed.close()
    for stream in (Bare(), closed, None):
        monkeypatch.setattr(opening.sys, "stderr", stream)
        Loader("synthetic://?count=4", transforms=TINY).close()
    dying = io.StringIO()
    dying.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(opening.Opening, "PATIENCE", 0.0)
    display = opening.Opening(dying)
    display("listing objects", 1, None, "objects")
    dying.close()
    display("listing objects", 2, None, "objects")
    display.close()
