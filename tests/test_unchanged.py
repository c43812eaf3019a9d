"""What an older build delivered is delivered still: recorded tokens continue with the recorded batches.

The data is made here, byte for byte the same everywhere; `unchanged.json` holds what the build of 25 November 2026 made
of it. A change that is meant (a new order, other pixels) records it again and says so in the changelog:

    python tests/test_unchanged.py > tests/unchanged.json
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import Mix, Source
from fuelrail.numpy import Loader, transforms

T = transforms
RECORDED = Path(__file__).with_name("unchanged.json")
COUNT = 60
BATCH = 7
STOP = 3

GEOMETRY = [T.RandomResizedCrop(16), T.RandomHorizontalFlip()]
STEPS = [T.Resize((20, 24)), T.RandomRotation(30), T.ColorJitter(0.3, 0.3, 0.3), T.RandomCrop(16)]


def picture(number: int) -> bytes:
    """A binary PPM of noise with a size of its own."""
    width, height = 20 + number % 13, 17 + number % 7
    return b"P6\n%d %d\n255\n" % (width, height) + noise(number, width * height * 3)


def noise(seed: int, count: int) -> bytes:
    return hashlib.shake_128(b"%d" % seed).digest(count)


def write(root: Path) -> None:
    """A folder, tar shards, lists and arrays of the same pictures."""
    for number in range(COUNT):
        path = root / "folder" / f"class {number % 4}" / f"{number:03d}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard, COUNT, 2):
                text = json.dumps({"box": [number, 0.5, 1, 2]}).encode()
                for ending, data in (
                    ("cls", b"%d" % (number % 5)),
                    ("json", text),
                    ("ppm", picture(number)),
                ):
                    member = tarfile.TarInfo(f"{number:03d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    rows = [(f"class {number % 4}/{number:03d}.ppm", number) for number in range(COUNT)]
    lines = [f"{path},{['cat', 'dog', 'bee'][number % 3]},{number / 4}" for path, number in rows]
    (root / "list.csv").write_text("\n".join(["path,label,score", *lines]) + "\n")
    lines = [json.dumps({"file_name": path, "label": number % 6}) for path, number in rows]
    (root / "list.jsonl").write_text("\n".join(lines) + "\n")
    images = np.frombuffer(noise(1, COUNT * 12 * 12 * 3), np.uint8).reshape(COUNT, 12, 12, 3)
    np.savez(root / "arrays.npz", images=images, labels=np.arange(COUNT) % 10)


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "folder": lambda root: {"source": root / "folder", "transforms": GEOMETRY, "shuffle": True, "seed": 1},
    "folder, a part": lambda root: {
        "source": root / "folder",
        "transforms": STEPS,
        "shuffle": True,
        "split": "train[:60%]",
    },
    "tar": lambda root: {
        "source": root / "shard-{0..1}.tar",
        "transforms": GEOMETRY,
        "fields": ["json:box"],
        "shuffle": True,
        "seed": 2,
    },
    "csv": lambda root: {
        "source": Source(root / "list.csv", root=str(root / "folder"), fields=["score"]),
        "transforms": STEPS,
        "shuffle": True,
    },
    "jsonl by class": lambda root: {
        "source": Source(root / "list.jsonl", root=str(root / "folder")),
        "transforms": GEOMETRY,
        "sampling": "class_balanced",
        "shuffle": True,
    },
    "npz": lambda root: {"source": root / "arrays.npz", "transforms": [T.Resize((8, 8))], "shuffle": True},
    "mixture": lambda root: {
        "source": Mix({"a": root / "shard-0.tar", "b": root / "arrays.npz"}, weights={"a": 1, "b": 2}),
        "transforms": GEOMETRY,
        "shuffle": True,
    },
    "synthetic": lambda _: {
        "source": "synthetic://?count=60&width=40&height=30",
        "transforms": GEOMETRY,
        "shuffle": True,
    },
}


def deliver(root: Path, case: str, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Digests of an epoch's batches (of what is left after `state`), and a token taken within it."""
    arguments = CASES[case](root)
    with Loader(arguments.pop("source"), batch_size=BATCH, num_workers=2, **arguments) as loader:
        if state is not None:
            loader.load_state_dict(state)
        digests: list[str] = []
        token = None
        for batch in loader:
            hashed = hashlib.sha256()
            for name in ("image", "label", "index", "position"):
                hashed.update(np.ascontiguousarray(batch[name]).tobytes())
            digests.append(hashed.hexdigest()[:16])
            if len(digests) == STOP:
                token = loader.state_dict()
        return {"batches": digests, "token": token, "classes": loader.classes}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unchanged")
    write(root)
    return root


@pytest.mark.parametrize("case", CASES)
def test_an_older_build_s_batches_and_tokens_still_fit(case: str, data: Path) -> None:
    recorded = json.loads(RECORDED.read_text())[case]
    assert deliver(data, case) == recorded
    assert deliver(data, case, recorded["token"])["batches"] == recorded["batches"][STOP:]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        json.dump({case: deliver(Path(folder), case) for case in CASES}, sys.stdout, indent=1)
        print()
