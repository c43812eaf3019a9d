"""Starting, stopping, dying: nothing hangs, nothing is left behind, nothing in the trainer's hands is damaged."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fuelrail import DaemonDied, FuelrailError, LoaderTimeout
from support import (
    GATE,
    SLACK,
    TINY,
    Footprint,
    Loader,
    Script,
    T,
    at_most,
    descriptors,
    digest,
    digests,
    state_of,
    wait_until,
)

SMALL = "synthetic://?count=997&width=40&height=30"

# Nothing of it is ever delivered.
STUCK = "synthetic://?count=10&delay_us=600000000"

ITERATE = """
    from fuelrail.numpy import Loader, transforms as T
    say("imported")
    loader = Loader(sys.argv[1], transforms=[T.Resize((24, 24))], batch_size=8, shuffle=True, num_workers=2)
    say(loader.daemon_pid)
    for epoch in range(1_000_000):
        for batch in loader:
            batch["image"].sum()
"""


# Deaths ----------------------------------------------------------------------------------------------------------------


def test_a_client_killed_at_any_moment_leaves_nothing(
    footprint: Footprint, rng: random.Random, images: Path
) -> None:
    for source in [SMALL, images] * (30 if GATE else 3):
        with Script(ITERATE, source, footprint=footprint) as script:
            assert script.hears() == "imported"
            # Half of the kills hit the start; the others the steady state.
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.03))
            else:
                script.hears()
                time.sleep(rng.uniform(0, 0.2))
            script.signal(signal.SIGKILL)
            assert script.ends() == -signal.SIGKILL
            footprint.is_clean()
    # And the next start works.
    with Loader(SMALL, transforms=TINY, batch_size=10) as loader:
        assert sum(batch.rows for batch in loader) == 997


def test_a_daemon_killed_at_any_moment_is_reported_after_the_finished_batches(rng: random.Random) -> None:
    options = {
        "transforms": [T.RandomResizedCrop(24)],
        "batch_size": 8,
        "shuffle": True,
        "prefetch_factor": 4,
    }
    for _ in range(50 if GATE else 6):
        loader = Loader(SMALL, **options)
        token = loader.state_dict()
        kill = threading.Timer(rng.uniform(0, 0.2), os.kill, (loader.daemon_pid, signal.SIGKILL))
        kill.start()
        with pytest.raises(DaemonDied) as died:
            for epoch in itertools.count():  # noqa: B007 - how far it came is asked below
                seen = []
                for batch in loader:
                    seen.append(digest(batch))
                    token = loader.state_dict()
        kill.join()
        assert "signal 9" in str(died.value)
        assert "checkpoint" in str(died.value), "it says how to go on"
        loader.close()
        # A new loader goes on exactly where the trainer stood.
        with Loader(SMALL, **options) as after:
            after.set_epoch(epoch)
            expected = digests(after)
            assert seen == expected[: len(seen)]
            after.load_state_dict(token)
            rest = digests(after)
            assert rest == expected[len(seen) :] if seen else rest in ([], expected)


def test_a_daemon_that_dies_while_the_client_waits_is_reported_at_once() -> None:
    with Loader(STUCK, transforms=TINY) as loader:
        pid = loader.daemon_pid
        threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
        with at_most(SLACK, "noticing the daemon's death"), pytest.raises(DaemonDied, match=str(pid)):
            next(iter(loader))
        # It stays so, and the name of the error does not change with the call.
        with pytest.raises(DaemonDied):
            loader.stats()
        with pytest.raises(DaemonDied):
            for _ in loader:
                pass


def test_batches_finished_before_the_death_are_all_handed_out() -> None:
    with Loader(SMALL, transforms=TINY, batch_size=10, prefetch_factor=3) as loader:
        iterator = iter(loader)
        first = next(iterator)
        # Every slot is full: the daemon has nothing left to do.
        wait_until(lambda: loader.stats()["daemon"]["batches"] == 5, 10, "the ring is full")
        os.kill(loader.daemon_pid, signal.SIGKILL)
        wait_until(lambda: state_of(loader.daemon_pid) is None, 5, "the daemon is dead")
        rest = [next(iterator) for _ in range(4)]
        with pytest.raises(DaemonDied):
            next(iterator)
        assert [batch["index"][0] for batch in [first, *rest]] == [0, 10, 20, 30, 40]


def test_a_stopped_daemon_leads_to_a_timeout_that_names_it_and_the_run_can_go_on() -> None:
    with Loader(SMALL, transforms=TINY, batch_size=10, timeout=1.0) as loader:
        expected = [digest(batch) for batch in loader]
    with Loader(SMALL, transforms=TINY, batch_size=10, timeout=1.0) as loader:
        seen = []
        iterator = iter(loader)
        seen.append(digest(next(iterator)))
        os.kill(loader.daemon_pid, signal.SIGSTOP)
        try:
            with at_most(SLACK, "a time-out of 1 s"), pytest.raises(LoaderTimeout, match="stopped") as error:
                while True:
                    seen.append(digest(next(iterator)))
            assert isinstance(error.value, TimeoutError)
        finally:
            os.kill(loader.daemon_pid, signal.SIGCONT)
        seen.extend(digests(iterator))
        assert seen == expected


def test_closing_a_loader_whose_daemon_is_stopped_ends_the_daemon() -> None:
    loader = Loader(SMALL, transforms=TINY)
    os.kill(loader.daemon_pid, signal.SIGSTOP)
    with at_most(2 * SLACK, "close()"):
        loader.close()
    assert state_of(loader.daemon_pid) is None


def test_a_time_out_names_what_is_slow() -> None:
    with (
        Loader(STUCK, transforms=TINY, timeout=0.2) as loader,
        at_most(SLACK, "a time-out of 0.2 s"),
        pytest.raises(LoaderTimeout, match="alive"),
    ):
        next(iter(loader))


# ctrl-C ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [STUCK, SMALL], ids=["blocked in next()", "busy"])
def test_ctrl_c_ends_a_script_at_once_and_leaves_nothing(source: str, footprint: Footprint) -> None:
    with Script(ITERATE, source, footprint=footprint) as script:
        script.hears(), script.hears()
        wait_until(lambda: len(footprint.processes()) == 2, 5, "the daemon runs")
        time.sleep(0.05)
        with at_most(SLACK, "ctrl-C"):
            script.signal(signal.SIGINT, group=True)
            assert script.ends() == -signal.SIGINT
        footprint.is_clean()
        assert script.stderr.rstrip().endswith("KeyboardInterrupt")


def test_ctrl_c_to_the_whole_group_lets_the_trainer_save_and_go_on(footprint: Footprint) -> None:
    code = """
        from fuelrail.numpy import Loader, transforms as T
        loader = Loader("synthetic://?count=500", transforms=[T.Resize((8, 8))], batch_size=10)
        iterator = iter(loader)
        try:
            say(next(iterator)["index"].tolist())
            while True:
                pass
        except KeyboardInterrupt:
            say(loader.state_dict())
            say(loader.stats()["images"])
            say(next(iterator)["index"].tolist())
        loader.close()
    """
    with Script(code, footprint=footprint) as script:
        assert script.hears() == list(range(10))
        script.signal(signal.SIGINT, group=True)
        assert script.hears()["position"] == 10
        assert script.hears() == 10
        assert script.hears() == list(range(10, 20))
        assert script.ends() == 0
        footprint.is_clean()


def test_ctrl_c_while_a_loader_is_being_made_leaves_nothing(footprint: Footprint, rng: random.Random) -> None:
    code = """
        from fuelrail.numpy import Loader, transforms as T
        say("imported")
        while True:
            Loader("synthetic://?count=50", transforms=[T.Resize((8, 8))]).close()
    """
    for _ in range(20 if GATE else 3):
        with Script(code, footprint=footprint) as script:
            script.hears()
            time.sleep(rng.uniform(0, 0.1))
            script.signal(signal.SIGINT, group=True)
            assert script.ends(SLACK) == -signal.SIGINT, script.stderr
            footprint.is_clean()


# Forks -----------------------------------------------------------------------------------------------------------------


def test_a_forked_child_gets_a_clear_error_and_can_make_its_own_loader(footprint: Footprint) -> None:
    code = """
        from fuelrail import FuelrailError
        from fuelrail.numpy import Loader, transforms as T
        def make(): return Loader("synthetic://?count=100", transforms=[T.Resize((8, 8))], batch_size=10)
        loader = make()
        iterator = iter(loader)
        held = next(iterator)
        child = os.fork()
        if child == 0:
            del held
            for attempt in (lambda: next(iterator), lambda: iter(loader), loader.stats):
                try:
                    attempt()
                    say("no error")
                except FuelrailError as error:
                    say(str(error))
            loader.close()
            del loader, iterator
            own = make()
            say([own.daemon_pid, sum(batch.rows for batch in own)])
            own.close()
            os._exit(0)
        say(loader.daemon_pid)
        status = os.waitpid(child, 0)[1]
        say([status, sum(batch.rows for batch in iterator)])
        loader.close()
    """
    with Script(code, footprint=footprint) as script:
        said = [script.hears() for _ in range(6)]
        daemon = next(pid for pid in said if isinstance(pid, int))
        said.remove(daemon)
        *errors, own, parent = said
        assert all("fork" in error and "its own" in error for error in errors), errors
        assert own[0] != daemon and own[1] == 100
        assert parent == [0, 90], "the parent goes on undisturbed"
        assert script.ends() == 0
        footprint.is_clean()


def test_the_daemon_ends_with_its_client_though_a_forked_child_holds_the_socket(footprint: Footprint) -> None:
    code = """
        import signal
        from fuelrail.numpy import Loader, transforms as T
        loader = Loader("synthetic://?count=100000", transforms=[T.Resize((8, 8))], batch_size=10)
        iterator = iter(loader)
        next(iterator)
        child = os.fork()
        if child == 0:
            signal.pause()
        say([child, loader.daemon_pid])
        for batch in iterator:
            pass
        signal.pause()
    """
    with Script(code, footprint=footprint) as script:
        child, daemon = script.hears()
        script.signal(signal.SIGKILL)
        wait_until(lambda: state_of(daemon) is None, SLACK, "the daemon ends")
        assert state_of(child) is not None, "although the child lives"
        os.kill(child, signal.SIGKILL)
        footprint.is_clean()


# Leases ----------------------------------------------------------------------------------------------------------------


def test_collecting_every_batch_never_deadlocks_and_damages_none() -> None:
    options = {"transforms": [T.RandomResizedCrop(16)], "batch_size": 9, "shuffle": True}
    with Loader(SMALL, **options) as loader:
        one_by_one = digests(loader)
    with Loader(SMALL, **options) as loader:
        batches = list(loader)
        assert digests(batches) == one_by_one
        stats = loader.stats()
        assert stats["copied_batches"] >= len(batches) - 4
        assert stats["leased_slots"] > 0
        del batches
        gc.collect()
        assert loader.stats()["leased_slots"] == 0


def test_a_slot_is_not_used_again_while_a_view_of_it_lives(rng: random.Random) -> None:
    with Loader(
        SMALL, transforms=[T.RandomResizedCrop(32)], batch_size=8, prefetch_factor=4, shuffle=True
    ) as loader:
        held: list[tuple[np.ndarray, bytes]] = []
        for _ in range(10 if GATE else 2):
            for batch in loader:
                # A part of an array holds the slot as much as the whole.
                view = batch["image"][rng.randrange(batch.rows) :, :, ::2]
                held.append((view, view.tobytes()))
                while len(held) > rng.randrange(7):
                    view, bytes_then = held.pop(rng.randrange(len(held)))
                    assert view.tobytes() == bytes_then
        assert loader.stats()["copied_batches"] < 997 // 8 * 2, "most were views"


@pytest.mark.parametrize("death", ["close", "kill"])
def test_views_stay_intact_after_the_loader_and_the_daemon_are_gone(death: str) -> None:
    loader = Loader(SMALL, transforms=[T.Resize((16, 16))], batch_size=8)
    iterator = iter(loader)
    batches = [next(iterator) for _ in range(2)]
    before = digests(batches)
    pid = loader.daemon_pid
    if death == "kill":
        os.kill(pid, signal.SIGKILL)
    else:
        loader.close()
    wait_until(lambda: state_of(pid) is None, SLACK, "the daemon is gone")
    del loader, iterator
    gc.collect()
    assert digests(batches) == before
    # They are the caller's own memory: writable, and written by nobody else.
    batches[0]["image"][:] = 7
    assert (batches[0]["image"] == 7).all()


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("holding", ["tensors", "an iterator", "a thread in next()"])
def test_the_interpreter_ends_cleanly_whatever_is_still_held(
    framework: str, holding: str, footprint: Footprint
) -> None:
    pytest.importorskip(framework)
    code = f"""
        import threading, time
        from fuelrail.{framework} import Loader, transforms as T
        loader = Loader("synthetic://?count=100", transforms=[T.Resize((8, 8))], batch_size=10)
        iterator = iter(loader)
        kept = [next(iterator)["image"] for _ in range(3)]
        if sys.argv[1] != "tensors":
            loader.itself = loader  # a cycle: only the interpreter's end breaks it
        if sys.argv[1] == "a thread in next()":
            stuck = Loader("{STUCK}", transforms=[T.Resize((8, 8))])
            threading.Thread(target=lambda: next(iter(stuck)), daemon=True).start()
            time.sleep(0.2)
        elif sys.argv[1] == "tensors":
            del loader, iterator
    """
    with Script(code, holding, footprint=footprint) as script:
        assert script.ends() == 0, script.stderr
        assert script.stderr == ""
        footprint.is_clean()


# Resources -------------------------------------------------------------------------------------------------------------


def test_opening_and_closing_loaders_leaks_no_descriptor_and_no_memory(images: Path) -> None:
    def once(source: object) -> None:
        with Loader(source, transforms=TINY, batch_size=10) as loader:
            next(iter(loader))

    once(images)
    gc.collect()
    before = descriptors()
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    for round in range(1000 if GATE else 200):
        once(images if round % 10 == 0 else SMALL)
    gc.collect()
    assert descriptors() == before
    assert len(Path("/proc/self/maps").read_text().splitlines()) < maps + 50


def test_descriptors_stay_constant_while_batches_flow() -> None:
    with Loader(SMALL, transforms=TINY, batch_size=4) as loader:
        iterator = iter(loader)
        next(iterator)
        ours, theirs = descriptors(), descriptors(loader.daemon_pid)
        for at, batch in enumerate(iterator):
            batch["image"].sum()
            if at % 50 == 0:
                assert descriptors() == ours
                assert descriptors(loader.daemon_pid) <= theirs + 1


def test_sixty_four_descriptors_are_enough(footprint: Footprint, images: Path) -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from fuelrail.numpy import Loader, transforms as T
        for source in sys.argv[1:]:
            for backend in ("io_uring", "threads"):
                options = {"transforms": [T.Resize((8, 8))], "num_workers": 4, "read_backend": backend, "batch_size": 9}
                train, val = Loader(source, **options), Loader(source, **options)
                say([sum(batch.rows for batch in loader) for loader in (train, val) for _ in range(3)])
                train.close(), val.close()
    """
    with Script(code, images, footprint=footprint) as script:
        assert [script.hears(), script.hears()] == [[61] * 6] * 2
        assert script.ends() == 0, script.stderr
        footprint.is_clean()


def test_loaders_of_a_process_share_one_daemon_that_ends_with_the_last() -> None:
    train = Loader(SMALL, transforms=TINY, batch_size=10)
    val = Loader(SMALL, transforms=[T.Resize((12, 12))], batch_size=20)
    pid = train.daemon_pid
    assert val.daemon_pid == pid
    pairs = zip(train, val, strict=False)
    assert sum(a.rows + b.rows for a, b in pairs) > 900
    train.close()
    assert state_of(pid) is not None
    assert sum(batch.rows for batch in val) == 997
    val.close()
    wait_until(lambda: state_of(pid) is None, SLACK, "the daemon ends with its last loader")
    with Loader(SMALL, transforms=TINY) as another:
        assert another.daemon_pid != pid


def test_a_dropped_loader_is_a_closed_one() -> None:
    loader = Loader(SMALL, transforms=TINY, batch_size=10)
    pid = loader.daemon_pid
    next(iter(loader))
    del loader
    gc.collect()
    wait_until(lambda: state_of(pid) is None, SLACK, "the daemon ends")


def test_a_closed_loader_says_so() -> None:
    loader = Loader(SMALL, transforms=TINY, batch_size=10)
    iterator = iter(loader)
    loader.close()
    loader.close()
    for attempt in (lambda: next(iterator), lambda: iter(loader), loader.stats, lambda: len(list(loader))):
        with pytest.raises(FuelrailError, match="closed"):
            attempt()


def test_questions_between_batches_lose_none() -> None:
    """An answer and the next batches may arrive in one piece."""
    with Loader(SMALL, transforms=TINY, batch_size=2, prefetch_factor=8, shuffle=True, timeout=20) as loader:
        keys = []
        for batch in loader:
            keys += loader.keys(batch)
            assert loader.stats()["images"] == len(keys)
        assert len(set(keys)) == 997


# Threads ---------------------------------------------------------------------------------------------------------------


def test_another_thread_may_iterate() -> None:
    with Loader(SMALL, transforms=TINY, batch_size=10, shuffle=True) as loader:
        expected = digests(loader)
        loader.set_epoch(0)
        seen: list[str] = []
        iterator = iter(loader)
        seen.append(digest(next(iterator)))
        thread = threading.Thread(target=lambda: seen.extend(digests(iterator)))
        thread.start()
        thread.join(30)
        assert seen == expected


def test_two_loaders_in_two_threads_do_not_disturb_each_other() -> None:
    seeds = (1, 2)
    expected = []
    for seed in seeds:
        with Loader(SMALL, transforms=TINY, batch_size=10, shuffle=True, seed=seed) as loader:
            expected.append(digests(loader))
    loaders = [Loader(SMALL, transforms=TINY, batch_size=10, shuffle=True, seed=seed) for seed in seeds]
    seen: dict[int, list[str]] = {}
    threads = [
        threading.Thread(target=lambda at=at, loader=loader: seen.update({at: digests(loader)}))
        for at, loader in enumerate(loaders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [seen[0], seen[1]] == expected
    for loader in loaders:
        loader.close()


def test_a_thread_that_waits_for_a_batch_stops_nobody_else() -> None:
    with (
        Loader(STUCK, transforms=TINY, timeout=1.0) as stuck,
        Loader(SMALL, transforms=TINY, batch_size=50) as loader,
    ):
        errors: list[Exception] = []

        def wait() -> None:
            try:
                next(iter(stuck))
            except FuelrailError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert sum(batch.rows for batch in loader) == 997
        thread.join(30)
        assert isinstance(errors[0], LoaderTimeout)


def test_a_loader_in_use_by_another_thread_can_be_asked_and_closed() -> None:
    loader = Loader(STUCK, transforms=TINY, timeout=30.0)
    pid = loader.daemon_pid
    errors: list[BaseException] = []
    started = threading.Event()

    def wait() -> None:
        iterator = iter(loader)
        started.set()
        try:
            next(iterator)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    time.sleep(0.2)
    try:
        # A progress display in the main thread; then ctrl-C, and a handler that closes the loader.
        assert isinstance(loader.state_dict(), dict)
        assert isinstance(loader.stats(), dict)
        with at_most(SLACK, "close() under a waiting thread"):
            loader.close()
            thread.join(SLACK)
        assert not thread.is_alive()
        assert isinstance(errors[0], FuelrailError), errors
    finally:
        # Whatever failed, the daemon is not left to the tests that follow.
        if thread.is_alive():
            os.kill(pid, signal.SIGKILL)
            thread.join(SLACK)
