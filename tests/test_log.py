"""What the daemon logs reaches `logging` while a call still waits: each line once, in order, with nothing held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Web
from support import TINY, Loader, Script, at_most, wait_until


@contextmanager
def waits(loader: Loader, iterator: Iterator[Any]) -> Iterator[Callable[[], Any]]:
    """A thread in `next()`; gives what ends the wait and returns the batch."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(next(iterator)), daemon=True)
    thread.start()

    def batch() -> Any:
        with at_most(60, "the batch comes"):
            thread.join(60)
        return got[0]

    try:
        assert not got
        yield batch
    finally:
        # What still waits is ended by this.
        loader.close()
        thread.join(10)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of one array, of which opening it reads the beginning only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "x.npy", np.zeros((1024, 64, 64, 3), np.uint8))
    server = Web(tmp_path / "files")
    yield server
    server.stop()


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_source_that_does_not_deliver_says_so_while_next_waits(
    others: int, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    # Loaders that nobody asks for anything meanwhile: the daemon talks to the process, not to the first of them.
    idle = [Loader("synthetic://?count=8", transforms=TINY) for _ in range(others)]
    loader = Loader(f"{web.address}x.npy", transforms=TINY, batch_size=1024)
    caplog.clear()
    web.is_down.set()
    with waits(loader, iter(loader)) as batch:
        wait_until(lambda: "status 503; attempt 3" in caplog.text, 30, "the warning is logged")
        web.is_down.clear()
        assert batch().rows == 1024
    warnings = [text for text in caplog.messages if "attempt" in text]
    assert len(warnings) == len(set(warnings)), "each line comes once"
    for other in idle:
        other.close()


def test_any_call_that_waits_tells_what_concerns_another_loader(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    with Loader("synthetic://?count=8", transforms=TINY) as other:
        loader = Loader(f"{web.address}x.npy", transforms=TINY, batch_size=1024)
        caplog.clear()
        web.is_down.set()
        # It prefetches, and nobody waits for it.
        iter(loader)
        wait_until(lambda: other.stats() and "status 503" in caplog.text, 30, "the warning is logged")
        loader.close()


def test_what_an_opening_says_is_logged_when_it_is_over_however_many_loaders_there_are(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fuelrail")
    with Loader("synthetic://?count=8", transforms=TINY), Loader(images, transforms=TINY):
        assert any("61 records" in text for text in caplog.messages), caplog.messages


def test_a_handler_that_takes_long_keeps_nobody_else_from_the_data(web: Web) -> None:
    code = """
        import faulthandler, logging, threading
        from fuelrail.numpy import Loader, transforms as T
        faulthandler.dump_traceback_later(60, exit=True)
        go, told = threading.Event(), []
        class Handler(logging.Handler):
            def emit(self, record):
                told.append(record.getMessage())
                go.wait()
        # Without the lock that logging has around its handlers a second line could enter.
        Handler.createLock = lambda self: setattr(self, "lock", None)
        logging.getLogger("fuelrail").addHandler(Handler())
        options = dict(transforms=[T.Resize((8, 8))], batch_size=4, error_budget=1000)
        loader = Loader("synthetic://?count=64&width=16&height=16&corrupt_rate=0.5", **options)
        batches, rows = iter(loader), []
        def read():
            rows.extend(batch.rows for batch in batches)
        stuck = threading.Thread(target=read, daemon=True)
        stuck.start()
        while not told:
            pass
        other = threading.Thread(target=read)
        other.start()
        other.join()
        say([sum(rows), len(told), loader.stats()["batches"] > 0])
        go.set()
        stuck.join()
        loader.close()
        say(len(told) == len(set(told)) > 1)
    """
    with Script(code) as script:
        assert script.hears() == [64, 1, True], script.stderr
        assert script.hears() is True
        assert script.ends() == 0, script.stderr


def test_what_a_handler_raises_reaches_the_caller_and_costs_neither_a_line_nor_a_batch() -> None:
    code = """
        import logging
        from fuelrail.numpy import Loader, transforms as T
        class Told(Exception): pass
        lines = []
        class Handler(logging.Handler):
            raises, times = False, 0
            def emit(self, record):
                lines.append(record.getMessage())
                if self.raises:
                    self.times += 1
                    raise Told
        handler = Handler()
        logging.getLogger("fuelrail").addHandler(handler)
        def read(raises):
            lines.clear()
            raised, seen = 0, []
            options = dict(transforms=[T.Resize((8, 8))], batch_size=4, error_budget=1000)
            with Loader("synthetic://?count=64&width=16&height=16&corrupt_rate=0.2", **options) as loader:
                # A slow opening tells some of the lines.
                handler.raises = raises
                batches = iter(loader)
                while True:
                    try:
                        seen += next(batches)["position"].tolist()
                    except Told:
                        raised += 1
                    except StopIteration:
                        return raised, seen, list(lines)
        quiet = read(False)
        loud = read(True)
        say([quiet[0], loud[0] == handler.times > 2, loud[1] == quiet[1] == list(range(64)), loud[2] == quiet[2]])
    """
    with Script(code) as script:
        assert script.hears() == [0, True, True, True], script.stderr


def test_a_forked_child_tells_nothing_of_what_its_parent_has_heard() -> None:
    code = """
        import logging, warnings
        from fuelrail.numpy import Loader, transforms as T
        warnings.simplefilter("ignore")
        class Handler(logging.Handler):
            def emit(self, record):
                say([os.getpid() == parent, record.getMessage()])
                if os.getpid() == parent and os.fork() == 0:
                    loader.close()
                    os._exit(0)
        parent = os.getpid()
        options = dict(transforms=[T.Resize((8, 8))], batch_size=4, error_budget=1000)
        loader = Loader("synthetic://?count=64&width=16&height=16&corrupt_rate=0.2", **options)
        logging.getLogger("fuelrail").addHandler(Handler())
        assert sum(batch.rows for batch in loader) == 64
        loader.close()
        while True:
            try:
                assert os.wait()[1] == 0
            except ChildProcessError:
                break
    """
    with Script(code) as script:
        said = script.rest()
        assert script.ends() == 0, script.stderr
    assert len(said) > 2 and all(of_parent for of_parent, _ in said), said
    assert len({line for _, line in said}) == len(said)
