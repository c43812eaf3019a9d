"""Foreign code never meets a lock of ours: every method of a Loader, called from wherever Python runs somebody's code.

Each place is a script of its own with a watchdog: a call that hangs ends it with a traceback of where it hung. In a
place all methods are called, one after the other, each on a Loader of its own.
"""

from __future__ import annotations

import signal
import textwrap
import time

import pytest
from support import Footprint, Script

#: What every script begins with. `ENDS`: methods after which the interrupted next() is an error.
PROLOGUE = """
    import atexit, faulthandler, gc, inspect, itertools, logging, signal, sys, threading, time
    import fuelrail
    from fuelrail import FuelrailError
    from fuelrail.numpy import Loader, transforms as T

    SLOW = "synthetic://?count=64&width=16&height=16&delay_us=20000"
    # One record is read at a time: next() nearly always waits.
    OPTIONS = dict(transforms=[T.Resize((8, 8))], batch_size=4, prefetch_factor=1, num_workers=1, read_ahead_bytes=1)

    def fork(loader, iterator, batch, state):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for name, method in METHODS.items():
                    if name != "fork":
                        try:
                            method(loader, iterator, batch, state)
                        except (FuelrailError, StopIteration):
                            pass
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    def another(loader, iterator, batch, state):
        with Loader("synthetic://?count=8", **OPTIONS) as other:
            assert sum(batch.rows for batch in other) == 8

    METHODS = {
        "state_dict": lambda loader, iterator, batch, state: loader.state_dict(),
        "load_state_dict": lambda loader, iterator, batch, state: loader.load_state_dict(state),
        "checkpoint_saved": lambda loader, iterator, batch, state: loader.checkpoint_saved(state),
        "stats": lambda loader, iterator, batch, state: loader.stats(),
        "keys": lambda loader, iterator, batch, state: loader.keys(batch),
        "set_epoch": lambda loader, iterator, batch, state: loader.set_epoch(7),
        "len": lambda loader, iterator, batch, state: len(loader),
        "iter": lambda loader, iterator, batch, state: iter(loader),
        "next": lambda loader, iterator, batch, state: next(iterator),
        "length_hint": lambda loader, iterator, batch, state: iterator.__length_hint__(),
        "properties": lambda loader, iterator, batch, state: (
            loader.epoch, loader.num_samples, loader.classes, loader.class_to_idx, loader.shape, loader.shapes,
            loader.batch_size, loader.daemon_pid, loader.endless),
        "repr": lambda loader, iterator, batch, state: (repr(loader), repr(iterator), repr(batch)),
        "collect": lambda loader, iterator, batch, state: gc.collect(),
        "fork": fork,
        "another Loader": another,
        "close": lambda loader, iterator, batch, state: loader.close(),
    }
    ENDS = {"load_state_dict", "set_epoch", "iter", "close"}

    # The line on which next() waits.
    source, first = inspect.getsourcelines(Loader._take)
    WAITS = first + next(at for at, line in enumerate(source) if "_feed.next(" in line)

    def watchdog(name):
        print("watching", name, file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(40, exit=True)

    def begun(source=SLOW, **more):
        loader = Loader(source, **(OPTIONS | more))
        state = loader.state_dict()
        iterator = iter(loader)
        return loader, iterator, next(iterator), state

    def inside(frame, name):
        while frame is not None:
            if frame.f_code.co_name == name and "fuelrail" in frame.f_code.co_filename:
                return True
            frame = frame.f_back
        return False

    def check(name, loader, iterator, taken, outcome):
        # Whatever was called: batches come in order, none is lost, and the interrupted call says what became of it.
        if name in ENDS:
            assert isinstance(outcome, FuelrailError), (name, outcome)
            word = "closed" if name == "close" else "ended by a later"
            assert word in str(outcome), (name, outcome)
        else:
            batches = [outcome, *taken]
            seen = sorted(index for batch in batches for index in batch["index"].tolist())
            assert seen == list(range(4, 4 + len(seen))), (name, seen)
            assert loader.state_dict()["position"] == 4 + len(seen), (name, loader.state_dict())
            assert next(iterator)["index"][0] == 4 + len(seen), name
        loader.close()

    def outcome_of(call):
        try:
            return call()
        except FuelrailError as error:
            return error
"""

PLACES = {
    "a signal handler in next()": """
        for name, method in METHODS.items():
            watchdog(name)
            ran, taken, armed = [], [], []
            def handler(number, frame):
                if armed and not ran and frame.f_code.co_name == "_take" and frame.f_lineno == WAITS:
                    ran.append(name)
                    result = method(loader, iterator, batch, state)
                    taken.extend([result] if name == "next" else [])
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            # Most of the time is spent waiting in next(): soon a signal falls there.
            while not ran:
                loader, iterator, batch, state = begun()
                armed.append(True)
                outcome = outcome_of(lambda: next(iterator))
                armed.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)
            check(name, loader, iterator, taken, outcome)
            say(name)
    """,
    "a signal handler while another Loader opens": """
        for name, method in METHODS.items():
            watchdog(name)
            loader, iterator, batch, state = begun()
            ran = []
            def handler(number, frame):
                if not ran and inside(frame, "__init__"):
                    ran.append(name)
                    method(loader, iterator, batch, state)
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
            while not ran:
                Loader("synthetic://?count=8", **OPTIONS).close()
            signal.setitimer(signal.ITIMER_REAL, 0)
            loader.close()
            say(name)
    """,
    "a logging handler while another Loader opens": """
        class Handler(logging.Handler):
            def emit(self, record):
                if not ran and inside(sys._getframe(), "__init__"):
                    ran.append(name)
                    method(loader, iterator, batch, state)
        log = logging.getLogger("fuelrail")
        log.setLevel(logging.DEBUG)
        log.addHandler(Handler())
        for name, method in METHODS.items():
            watchdog(name)
            ran = [name]
            loader, iterator, batch, state = begun()
            ran = []
            # Another environment, another daemon: it talks to its first client.
            os.environ["FUELRAIL_ROUND"] = name
            Loader("synthetic://?count=8", **OPTIONS).close()
            assert ran, "the daemon says something while it opens a source"
            loader.close()
            say(name)
    """,
    "a logging handler in next()": """
        class Handler(logging.Handler):
            def emit(self, record):
                if not ran and inside(sys._getframe(), "_take"):
                    ran.append(name)
                    result = method(loader, iterator, batch, state)
        log = logging.getLogger("fuelrail")
        log.addHandler(Handler())
        for name, method in METHODS.items():
            watchdog(name)
            ran = [name]
            loader, iterator, batch, state = begun(SLOW + "&corrupt_rate=0.5", error_budget=1000)
            ran, outcome = [], None
            while not ran:
                outcome = outcome_of(lambda: next(iterator))
            assert isinstance(outcome, FuelrailError) == (name in ENDS), (name, outcome)
            loader.close()
            say(name)
    """,
    "__del__ in a garbage collection in next()": """
        class Collecting(Loader):
            collects = False
            def _convert(self, *taken):
                if self.collects:
                    self.collects = False
                    gc.collect()
                return super()._convert(*taken)
        Loader = Collecting
        class Garbage:
            def __init__(self):
                self.itself = self
            def __del__(self):
                if not ran and inside(sys._getframe(), "_take"):
                    ran.append(name)
                    result = method(loader, iterator, batch, state)
                    taken.extend([result] if name == "next" else [])
        for name, method in METHODS.items():
            watchdog(name)
            loader, iterator, batch, state = begun()
            ran, taken = [], []
            gc.collect()
            Garbage()
            loader.collects = True
            outcome = outcome_of(lambda: next(iterator))
            assert ran
            check(name, loader, iterator, taken, outcome)
            say(name)
    """,
    "another thread while one is in next()": """
        for name, method in METHODS.items():
            watchdog(name)
            loader, iterator, batch, state = begun()
            ran, taken = [], []
            def run():
                result = method(loader, iterator, batch, state)
                taken.extend([result] if name == "next" else [])
            thread = threading.Thread(target=run)
            outcomes = []
            main = threading.Thread(target=lambda: outcomes.append(outcome_of(lambda: next(iterator))))
            main.start()
            thread.start()
            thread.join()
            main.join()
            # The thread may come before or after the batch did.
            if name not in ENDS or isinstance(outcomes[0], FuelrailError):
                check(name, loader, iterator, taken, outcomes[0])
            loader.close()
            say(name)
    """,
    "many threads at once": """
        watchdog("threads")
        loader, iterator, batch, state = begun("synthetic://?count=4000&width=16&height=16")
        taken, errors, end = [], [], threading.Event()
        def take():
            try:
                for batch in iterator:
                    taken.append(batch["index"].tolist())
            except BaseException as error:
                errors.append(repr(error))
        def ask():
            try:
                while not end.is_set():
                    loader.stats(), loader.state_dict(), repr(loader)
                    assert loader.keys(batch)[0].endswith("00000000.bmp"), loader.keys(batch)
            except BaseException as error:
                errors.append(repr(error))
        takers = [threading.Thread(target=take) for _ in range(3)]
        askers = [threading.Thread(target=ask) for _ in range(2)]
        for thread in takers + askers:
            thread.start()
        for thread in takers:
            thread.join()
        end.set()
        for thread in askers:
            thread.join()
        assert not errors, errors
        assert sorted(itertools.chain.from_iterable(taken)) == list(range(4, 4000))
        loader.close()
        for name in METHODS:
            say(name)
    """,
    "atexit, with a thread in next()": """
        def at_exit():
            for name, method in METHODS.items():
                if name == "fork":  # Python refuses a fork at exit since 3.12
                    say(name)
                    continue
                watchdog(name)
                loader, iterator, batch, state = begun()
                threading.Thread(target=lambda: outcome_of(lambda: next(iterator)), daemon=True).start() if (
                    sys.version_info < (3, 12)) else None
                method(loader, iterator, batch, state)
                loader.close()
                say(name)
            faulthandler.cancel_dump_traceback_later()
        atexit.register(at_exit)
        stuck = Loader("synthetic://?count=10&delay_us=600000000", **OPTIONS)
        threading.Thread(target=lambda: next(iter(stuck)), daemon=True).start()
        time.sleep(0.1)
    """,
}


@pytest.mark.deadline(240)
@pytest.mark.parametrize("place", PLACES)
def test_every_method_can_be_called_in(place: str, footprint: Footprint) -> None:
    code = textwrap.dedent(PROLOGUE) + textwrap.dedent(PLACES[place])
    with Script(code, footprint=footprint) as script:
        said = script.rest()
        assert script.ends() == 0, script.stderr[-4000:]
        expected = [
            "state_dict",
            "load_state_dict",
            "checkpoint_saved",
            "stats",
            "keys",
            "set_epoch",
            "len",
            "iter",
        ]
        expected += [
            "next",
            "length_hint",
            "properties",
            "repr",
            "collect",
            "fork",
            "another Loader",
            "close",
        ]
        assert said == expected, script.stderr[-4000:]
        footprint.is_clean()


def test_a_state_saved_by_a_handler_names_the_batch_that_has_not_reached_the_caller() -> None:
    code = """
        import signal
        from fuelrail.numpy import Loader, transforms as T
        options = dict(transforms=[T.Resize((8, 8))], batch_size=4, num_workers=1, prefetch_factor=1)
        loader = Loader("synthetic://?count=400&width=16&height=16&delay_us=2000", **options)
        handed, states = [], []
        def handler(*_):
            states.append((list(handed), loader.state_dict()["position"]))
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        iterator = iter(loader)
        while True:
            # One bytecode lies between the return of next() and the assignment: a handler may run there.
            batch = next(iterator, None)
            if batch is None:
                break
            handed.append(batch.position)
        signal.setitimer(signal.ITIMER_REAL, 0)
        say([[len(handed), position] for handed, position in states])
    """
    with Script(code) as script:
        states = script.hears()
        assert script.ends() == 0, script.stderr
    assert len(states) > 20
    for handed, position in states[:-1]:
        # Never behind what the caller has, and at most the batch ahead that is being returned.
        assert position in (4 * handed, 4 * handed + 4) or handed == 100, (handed, position)
    late = sum(position == 4 * handed + 4 for handed, position in states[:-1])
    assert late < len(states) // 2, "a state is nearly always exactly what the caller has"


def test_a_timeout_does_not_count_what_handlers_do() -> None:
    code = """
        import signal, time
        from fuelrail.numpy import Loader, transforms as T
        loader = Loader("synthetic://?count=8&width=16&height=16&delay_us=300000", transforms=[T.Resize((8, 8))],
                        batch_size=1, num_workers=1, timeout=1)
        signal.signal(signal.SIGALRM, lambda *_: time.sleep(1.5))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        say(next(iter(loader)).rows)
    """
    with Script(code) as script:
        assert script.hears() == 1


def test_what_a_handler_raises_reaches_the_caller_and_the_run_goes_on() -> None:
    code = """
        import signal
        from fuelrail.numpy import Loader, transforms as T
        loader = Loader("synthetic://?count=12&width=16&height=16&delay_us=200000", transforms=[T.Resize((8, 8))],
                        batch_size=4, num_workers=1)
        class Preempted(Exception): pass
        def handler(*_): raise Preempted(str(loader.state_dict()["position"]))
        signal.signal(signal.SIGALRM, handler)
        iterator = iter(loader)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            next(iterator)
            say("no error")
        except Preempted as error:
            say(str(error))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            while True:
                loader.stats()
        except Preempted as error:
            say(str(error))
        # A question that was given up leaves no answer behind for the next one.
        say([loader.stats()["batches"], loader.keys(next(iterator))[0][-5:], sum(batch.rows for batch in iterator)])
    """
    with Script(code) as script:
        assert script.hears() == "0"
        assert script.hears() == "0"
        assert script.hears() == [0, "0.bmp", 8]


@pytest.mark.parametrize("held", ["nothing", "a batch"])
def test_a_fork_while_other_threads_use_the_loader_leaves_a_child_that_can_end_and_make_its_own(
    held: str, footprint: Footprint
) -> None:
    code = """
        import faulthandler, signal, threading, warnings
        warnings.simplefilter("ignore")
        from fuelrail.numpy import Loader, transforms as T
        faulthandler.dump_traceback_later(60, exit=True)
        options = dict(transforms=[T.Resize((8, 8))], batch_size=4)
        loader = Loader("synthetic://?count=100000&width=16&height=16", **options)
        iterator, end = iter(loader), threading.Event()
        def use():
            while not end.is_set():
                loader.stats(), loader.state_dict()
                Loader("synthetic://?count=4", **options).close()
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for round in range(20):
            batch = next(iterator)
            if sys.argv[1] == "nothing":
                batch = None
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # ends a child that hangs
                loader.close()
                repr(loader)
                del batch, iterator, loader
                with Loader("synthetic://?count=4", **options) as own:
                    os._exit(sum(batch.rows for batch in own) - 4)
            assert os.waitpid(child, 0)[1] == 0, round
        end.set()
        for thread in threads:
            thread.join()
        loader.close()
        say("ended")
    """
    with Script(code, held, footprint=footprint) as script:
        assert script.hears() == "ended", script.stderr
        assert script.ends() == 0
        footprint.is_clean()


def test_ctrl_c_ends_a_wait_for_an_answer_of_a_stopped_daemon() -> None:
    code = """
        import signal
        from fuelrail.numpy import Loader, transforms as T
        loader = Loader("synthetic://?count=100", transforms=[T.Resize((8, 8))], batch_size=4)
        batch = next(iter(loader))
        os.kill(loader.daemon_pid, signal.SIGSTOP)
        # More than a socket holds: neither sending nor waiting may block.
        batch._fields["index"] = batch["index"].repeat(100_000)
        say("asks")
        try:
            loader.keys(batch)
        except KeyboardInterrupt:
            say("interrupted")
        os.kill(loader.daemon_pid, signal.SIGCONT)
        say(len(loader.keys(batch)))
    """
    with Script(code) as script:
        assert script.hears() == "asks"
        time.sleep(0.3)
        script.signal(signal.SIGINT)
        assert script.hears(10) == "interrupted"
        assert script.hears() == 400_000
        assert script.ends() == 0, script.stderr
