"""One decode for several clients: each gets every batch, whoever comes, lags, leaves or is killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, Detached, FuelrailError
from fuelrail.numpy import Loader
from support import Daemon, Script, T, at_most, digests, wait_until

CHAIN = [T.RandomResizedCrop(16), T.RandomHorizontalFlip(), T.Normalize(*T.IMAGENET)]


def options(**further: Any) -> dict[str, Any]:
    return {"transforms": CHAIN, "batch_size": 8, "shuffle": True, "seed": 3, **further}


@contextmanager
def daemon(images: Path, tmp_path: Path, **share: Any) -> Iterator[Daemon]:
    """A daemon with one pipeline, which its clients share."""
    chain = ", ".join(toml(step.config()) for step in CHAIN)
    path = tmp_path / "pipelines.toml"
    path.write_text(
        f"[pipelines.train]\nbatch_size = 8\nshuffle = true\nseed = 3\ntransforms = [{chain}]\n"
        f'source = {{ type = "folder", root = "{images}" }}\nshare = {toml({"name": "trials", **share})}\n'
    )
    with Daemon(path, socket=tmp_path / "s.sock") as running:
        yield running.listens()


def toml(value: Any) -> str:
    import json

    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def expected(images: Path, epochs: int) -> list[Any]:
    with Loader(images, **options()) as alone:
        return [digests(alone) for _ in range(epochs)]


def together(loaders: Sequence[Iterable[Any]], epochs: int) -> list[list[Any]]:
    """What each sees, all at once."""
    seen: list[list[Any]] = [[] for _ in loaders]

    def run(number: int) -> None:
        seen[number] = [digests(loaders[number]) for _ in range(epochs)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(loaders))]
    with at_most(60, "all clients"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    return seen


def test_four_clients_get_every_batch_of_one_decode(images: Path, tmp_path: Path) -> None:
    with daemon(images, tmp_path, clients=4) as running, ExitStack() as stack:
        loaders = [stack.enter_context(Loader(running.url, pipeline="train")) for _ in range(4)]
        seen = together(loaders, 3)
        assert all(each == expected(images, 3) for each in seen)
        reads = loaders[0].stats()["read"]["reads"]
        # 61 records an epoch; one epoch and what is prefetched of it may have been read ahead.
        assert reads <= 61 * 4, "each record was read once"


def test_who_joins_begins_with_the_next_epoch(images: Path, tmp_path: Path) -> None:
    whole = expected(images, 3)
    with daemon(images, tmp_path) as running, Loader(running.url, pipeline="train") as first:
        batches = iter(first)
        next(batches)
        with Loader(running.url, pipeline="train") as second:
            assert (first.epoch, second.epoch) == (0, 1)
            assert second.state_dict()["epoch"] == 1
            for _ in batches:
                pass
            assert together([first, second], 2) == [whole[1:], whole[1:]]


def test_each_client_keeps_its_own_token(images: Path, tmp_path: Path) -> None:
    with (
        daemon(images, tmp_path, clients=2) as running,
        Loader(running.url, pipeline="train") as one,
        Loader(running.url, pipeline="train") as two,
    ):
        first, second = iter(one), iter(two)
        for _ in range(2):
            next(first)
        for _ in range(5):
            next(second)
        states = [one.state_dict(), two.state_dict()]
        rows = [digests_of for (digests_of,) in together([first, second], 1)]
    assert [state["position"] for state in states] == [16, 40]
    # Each goes on by itself from where it was.
    for state, rest in zip(states, rows, strict=True):
        with Loader(images, **options()) as alone:
            alone.load_state_dict(state)
            assert digests(alone) == rest


def test_who_goes_back_in_an_epoch_is_waited_for_and_an_earlier_epoch_is_refused(
    images: Path, tmp_path: Path
) -> None:
    whole = expected(images, 2)
    with (
        daemon(images, tmp_path, clients=2) as running,
        Loader(running.url, pipeline="train") as one,
        Loader(running.url, pipeline="train") as two,
    ):
        batches = iter(one)
        next(batches)
        state = one.state_dict()
        next(batches)
        others = iter(two)
        for _ in range(3):
            next(others)
        one.load_state_dict(state)
        # Seven batches are left of eight; the other one has five.
        seen: dict[str, int] = {}
        threads = [
            threading.Thread(target=lambda: seen.update(one=sum(1 for _ in one))),
            threading.Thread(target=lambda: seen.update(two=sum(1 for _ in others))),
        ]
        with at_most(60, "both"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert seen == {"one": 7, "two": 5}
        assert together([one, two], 1) == [[whole[1]], [whole[1]]]
        one.load_state_dict(state)
        with pytest.raises(ConfigError, match=r"the shared feed is at epoch 2.*without share="):
            next(iter(one))


def test_who_does_not_give_back_is_detached_by_name_and_the_others_go_on(
    images: Path, tmp_path: Path
) -> None:
    with daemon(images, tmp_path, clients=2, laggards="detach", patience_s=1) as running:
        with Loader(running.url, pipeline="train") as quick, Loader(running.url, pipeline="train") as slow:
            stalled = iter(slow)
            next(stalled)
            with at_most(60, "the quick one"):
                assert digests(quick) == expected(images, 1)[0]
            with pytest.raises(Detached, match=r"held \d batches for 1 s.*laggards"):
                for _ in stalled:
                    pass
        with Loader(running.url, pipeline="train", timeout=20) as again:
            assert again.epoch >= 0


def test_other_settings_are_refused_with_the_difference(images: Path) -> None:
    """Loaders of one process share its daemon."""
    with Loader(images, **options(share="trials")) as one:
        with Loader(images, **options(share="trials")):
            pass
        for differs, said in [
            ({"seed": 4}, "seed is 4 here, 3 there"),
            ({"batch_size": 4}, "batch_size is 4 here, 8 there"),
        ]:
            with pytest.raises(ConfigError, match=rf'shared feed "trials" runs with other settings: {said}'):
                Loader(images, **options(share="trials", **differs))
        with Loader(images, **options(share="others", seed=4)):
            pass
        # What changes no row is each client's own.
        with Loader(images, **options(share="trials", num_workers=1, read_ahead_bytes=1 << 20)):
            pass
        assert len(digests(one)) == 8
    with pytest.raises(ConfigError, match="share= takes a name, or a mapping"):
        Loader(images, **options(share=3))
    with pytest.raises(ConfigError, match=r"patience_s.*between 1 and"):
        Loader(images, **options(share={"name": "x", "patience_s": 0}))


TRIAL = """
    from fuelrail.numpy import Loader, transforms as T
    share = {"name": sys.argv[2], "clients": 2}
    with Loader(sys.argv[1], transforms=[T.Resize((8, 8))], batch_size=8, shuffle=True, share=share) as loader:
        say(loader.daemon_pid)
        say([int(batch["index"].sum()) for batch in loader])
"""


def test_processes_that_name_a_feed_find_each_other(images: Path) -> None:
    name = f"trials {os.getpid()}"
    with Script(TRIAL, images, name) as one, Script(TRIAL, images, name) as two:
        daemons = {one.hears(), two.hears()}
        assert len(daemons) == 1, "one daemon"
        assert one.hears() == two.hears()
    wait_until(lambda: all(dead(pid) for pid in daemons), 20, "the daemon ends with the last")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("weights", [1.0 + at % 3 for at in range(61)]), ("order", list(range(40)))],
)
def test_weights_and_orders_are_compared_by_what_they_are(
    name: str, numbers: list[Any], images: Path
) -> None:
    same = options(share=f"shared {name}", shuffle=False, **{name: numbers})
    with Loader(images, **same):
        with Loader(images, **same):
            pass
        with pytest.raises(ConfigError, match=f"sampling|{name}"):
            Loader(images, **{**same, name: numbers[::-1]})


def test_batches_are_copies_that_may_be_written(images: Path) -> None:
    torch = pytest.importorskip("torch")
    from fuelrail.torch import Loader as OfTorch

    same = options(share={"name": "trials", "clients": 2})
    with OfTorch(images, **same) as one, OfTorch(images, **same) as two:
        first, second = next(iter(one)), next(iter(two))
        assert torch.equal(first["image"], second["image"])
        first["image"].zero_()
        assert second["image"].abs().sum() > 0


CLIENT = """
    from fuelrail.numpy import Loader
    import numpy as np
    with Loader(sys.argv[1], pipeline="train", timeout=60) as loader:
        for _ in range(200):
            for batch in loader:
                say([batch.epoch, batch.position, int(batch["index"].sum())])
"""


def test_kills_of_some_hurt_no_other_and_leave_nothing(images: Path, tmp_path: Path) -> None:
    sums = {}
    with Loader(images, **options()) as alone:
        for _ in range(3):
            for batch in alone:
                sums[batch.epoch, batch.position] = int(batch["index"].sum())
    with daemon(images, tmp_path, clients=3) as running:
        killed = [Script(CLIENT, running.url) for _ in range(2)]
        with Loader(running.url, pipeline="train", timeout=60) as loader:
            for epoch in range(3):
                for number, batch in enumerate(loader):
                    assert sums[batch.epoch, batch.position] == int(batch["index"].sum())
                    if (epoch, number) in ((0, 3), (1, 2)):
                        killed[epoch].hears()
                        os.kill(killed[epoch].pid, signal.SIGKILL)
            assert batch.epoch == 2
            os.kill(running.pid, signal.SIGKILL)
            with pytest.raises(FuelrailError, match=r"gone|died"):
                for _ in range(5):
                    list(loader)
    for script in killed:
        wait_until(
            lambda script=script: not Path(f"/proc/{script.pid}/fd").exists() or dead(script.pid), 10, "gone"
        )


def dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


# Bagging --------------------------------------------------------------------------------------------------------------


def weights(images: Path, **further: Any) -> dict[tuple[int, int], float]:
    found = {}
    with Loader(images, **options(**further)) as loader:
        for _ in range(3):
            for batch in loader:
                assert batch["weight"].dtype == np.float32
                for position, weight in zip(
                    batch["position"].tolist(), batch["weight"].tolist(), strict=True
                ):
                    found[batch.epoch, position] = weight
    return found


def test_a_models_weights_depend_on_seed_model_and_place_alone(images: Path) -> None:
    one = weights(images, bagging=1)
    assert one == weights(images, bagging=1, batch_size=5, num_workers=1)
    assert one != weights(images, bagging=2) and one != weights(images, bagging=1, seed=4)
    assert 0.7 < sum(one.values()) / len(one) < 1.3
    assert set(one.values()) >= {0.0, 1.0, 2.0}


def test_clients_of_a_shared_feed_are_models_of_an_ensemble(images: Path) -> None:
    share = {"name": "ensemble", "clients": 2}
    same = options(share=share, bagging=True)
    with Loader(images, **same) as one, Loader(images, **same) as two:
        first, second = next(iter(one)), next(iter(two))
        assert np.array_equal(first["index"], second["index"])
        assert not np.array_equal(first["weight"], second["weight"])
        assert first["weight"].tolist() == [weights(images, bagging=0)[0, at] for at in range(8)]
    with pytest.raises(ConfigError, match="bagging=True takes this client's number"):
        Loader(images, **options(bagging=True))
    with pytest.raises(ConfigError, match="bagging="):
        Loader(images, **options(bagging=-1))
