"""Takes batches by the way that leads to a GPU, with numpy's arrays as the GPU's memory, and checks each byte.

    LD_LIBRARY_PATH=<folder of the stand-in> python reader.py FOLDER BATCHES [auto|require|off] [restart|text|kill]

restart   saves and loads the state now and then, with copies on their way
text      reads captions too
kill      kills the daemon after so many batches

Prints a line of JSON: batches, wrong rows, whether the ring is page-locked, the first records that were seen.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from fuelrail import FuelrailError, _native
from fuelrail import fields as F
from fuelrail.numpy import Loader
from fuelrail.numpy import transforms as T
from fuelrail.uploads import Place, Room, Uploads

DTYPES = {"u8": np.uint8, "i64": np.int64, "f32": np.float32}


class Host(Place[np.ndarray]):
    """Memory of this process. What leaves the hands of the loader stays: a copy may still be on its way to it."""

    ordinal = 0
    stream = 1

    def __init__(self) -> None:
        self.kept: deque[np.ndarray] = deque(maxlen=10_000)

    @contextmanager
    def begin(self, batch: int) -> Iterator[None]:
        yield

    def room(self, at: int, field: Mapping[str, Any], rows: int) -> Room[np.ndarray]:
        dtype = np.dtype(DTYPES[field["dtype"]])
        array = np.full((rows, *field.get("shape", ())), 77, dtype)
        self.kept.append(array)
        return Room(array, array.ctypes.data, array.nbytes)

    def finish(
        self, at: int, array: np.ndarray, left: Mapping[str, Any], beside: np.ndarray | None
    ) -> np.ndarray:
        raise AssertionError("bytes are asked for")

    def mark(self, copied: _native.Copied) -> _native.Copied:
        return copied

    def hand_over(self, mark: _native.Copied, arrays: Sequence[np.ndarray]) -> None:
        mark.before(0)

    def asked(self) -> None:
        pass

    def drop(self, mark: _native.Copied) -> None:
        mark.before(0)


class Uploading(Loader):
    """numpy's Loader over that place."""

    pin_ = "auto"

    def _opened(self) -> None:
        self.place = Host()
        self._uploads = Uploads(self._feed, self.place, self._attached["layout"], pin=self.pin_)

    def _take(self, iteration: int):
        taken = self._uploads.take(iteration, self._timeout)
        if taken is None:
            return None
        native, tensors, columns = taken
        return native, self._convert(native, tensors, columns)


def main() -> None:
    folder, count, *further = sys.argv[1:]
    Uploading.pin_ = next((each for each in further if each in ("auto", "require", "off")), "auto")
    text = {"image": F.Image([T.CenterCrop(32)]), "caption": F.Text("txt", max_bytes=64)}
    options: dict[str, Any] = {
        **({"fields": text} if "text" in further else {"transforms": [T.CenterCrop(32)]}),
        "batch_size": 4,
        "shuffle": True,
        "seed": 5,
        "num_workers": 1,
        "prefetch_factor": 1,
    }
    # What each record is, by the way without a GPU.
    records: dict[int, tuple[Any, ...]] = {}
    with Loader(folder, **{**options, "shuffle": False}) as plain:
        for batch in plain:
            records.update(rows(batch))
    report: dict[str, Any] = {"batches": 0, "wrong": 0, "seen": []}

    def check(batch: Any) -> None:
        found = rows(batch)
        report["wrong"] += sum(found[index] != records[index] for index in found)
        report["seen"] += batch["index"].tolist() if len(report["seen"]) < 200 else []
        report["batches"] += 1

    with Uploading(folder, **options) as loader:
        while report["batches"] < int(count):
            for batch in loader:
                check(batch)
                if "restart" in further and report["batches"] % 7 == 3:
                    loader.load_state_dict(loader.state_dict())
                    break
                if report["batches"] == int(count):
                    break
        stats = loader.stats()
        if "kill" in further:
            report |= killed(loader, check)
    report |= {
        "pinned": stats["pinned"],
        "copied": stats["copied_batches"],
        "uploaded": stats["uploaded_bytes"],
    }
    print(json.dumps(report))


def rows(batch: Any) -> dict[int, tuple[Any, ...]]:
    """What a batch holds of each record."""
    captions = batch.get("caption") or [""] * batch.rows
    return {
        index: (batch["image"][at].tobytes(), int(batch["label"][at]), captions[at])
        for at, index in enumerate(batch["index"].tolist())
    }


def killed(loader: Loader, check: Callable[[Any], None]) -> dict[str, Any]:
    """Batches that came after the daemon's death, and the error behind them."""
    batches = iter(loader)
    check(next(batches))
    os.kill(loader.daemon_pid, signal.SIGKILL)
    after = 0
    try:
        for batch in batches:
            check(batch)
            after += 1
    except FuelrailError as error:
        return {"after_death": after, "error": type(error).__name__}
    return {"after_death": after, "error": None}


if __name__ == "__main__":
    main()
