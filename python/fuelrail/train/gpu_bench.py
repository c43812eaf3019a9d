"""`fuelrail bench --gpu`: how much the input slows a training step on the GPU, stage by stage.

    S    the step on one batch that stays on the device
    S+L  the same while the daemon decodes as many batches, which are not copied to the device
    R    batches that need no decoding: only the copy from shared memory to the device
    P    photographs decoded from the page cache
    C    the same from a cold disk

    contention = S+L - S    transfer = R - S    preparation = P - max(R, S+L)    fetch = C - P    fed = S / P

Everything is measured in one process, interleaved (S, S+L, R, P, C, then the peers, and again), so that a machine that
slows down slows all of them. Figures are medians over the repeats.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fuelrail
from fuelrail.errors import FuelrailError
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T

from .models import build_model

MODELS = ("resnet18", "resnet50", "vit_s_16")
PEERS = {"torchvision": "torch's DataLoader with torchvision", "timm": "timm's PrefetchLoader"}

#: Steps before the clock starts.
WARM = 5


@dataclass
class Case:
    """One model, and milliseconds per step for each way of feeding it."""

    model: str
    times: dict[str, list[float]] = field(default_factory=dict)
    exposed: list[float] = field(default_factory=list)

    def note(self, way: str, milliseconds: float) -> None:
        """Records one measurement."""
        self.times.setdefault(way, []).append(milliseconds)

    def median(self, way: str) -> float | None:
        """The median for one way; None if it was not measured."""
        found = self.times.get(way)
        return statistics.median(found) if found else None

    def row(self) -> dict[str, Any]:
        """The line of the table."""
        s, load, r, p, c = (self.median(way) for way in ("S", "S+L", "R", "P", "C"))
        line: dict[str, Any] = {"model": self.model, **{way: self.median(way) for way in self.times}}
        if s and p:
            line["fed_percent"] = 100 * s / p
        if s and load:
            line["contention"] = load - s
        if s and r:
            line["transfer"] = r - s
        if p and r and load:
            line["preparation"] = p - max(r, load)
        if p and c:
            line["fetch"] = c - p
        if self.exposed:
            line["exposed_copy_percent"] = statistics.median(self.exposed)
        spreads = [(max(each) - min(each)) / statistics.median(each) for each in self.times.values()]
        line["spread_percent"] = 100 * max(spreads, default=0.0)
        return line


def main(argv: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    arguments = parser().parse_args(argv)
    try:
        return Bench(arguments).run()
    except (FuelrailError, ValueError, OSError) as error:
        print(f"fuelrail bench --gpu: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(prog="fuelrail bench --gpu", description=__doc__.partition("\n\n")[0])
    parser.add_argument("data", nargs="?", type=Path, help="image folder (default: generated photographs)")
    parser.add_argument("--gpu", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", help='"cuda" (default where there is one), "cuda:1" or "cpu"')
    parser.add_argument(
        "--models", default=",".join(MODELS), help="comma-separated; torchvision's names and vit_s_16"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; empty for none")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=30, help="steps of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--num-workers", type=int, help="threads or processes that decode (default: one per core)"
    )
    parser.add_argument("--minutes", type=float, default=10, help="begin no further repeat after this time")
    parser.add_argument("--no-cold", action="store_true", help="leave C out")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


class Bench:
    """The measurements of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.batch_size: int = arguments.batch_size
        self.size: int = arguments.size
        self.steps: int = arguments.steps
        self.repeats, self.minutes, self.cold = arguments.repeats, arguments.minutes, not arguments.no_cold
        self.json, self.data = arguments.json, arguments.data
        for name in ("batch_size", "size", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is a whole number from 1 on")
        self.device = device(arguments.device)
        self.workers = arguments.num_workers or len(os.sched_getaffinity(0))
        self.models = names(arguments.models)
        self.peers = [peer for peer in names(arguments.peers) if self._has(peer)]
        self.on_gpu = self.device.type == "cuda"

    def _has(self, peer: str) -> bool:
        if peer not in PEERS:
            raise ValueError(f"--peers {peer}: there are {', '.join(PEERS)}")
        try:
            __import__("torchvision" if peer == "torchvision" else "timm.data")
        except ModuleNotFoundError as error:
            print(f"{PEERS[peer]}: left out, {error.name} is not installed (pip install {error.name})")
            return False
        if peer == "timm" and self.device.type != "cuda":
            print("timm's PrefetchLoader: left out, it needs a CUDA device")
            return False
        return True

    def run(self) -> int:
        """Measures and prints."""
        began = time.monotonic()
        print(self._where())
        cases = [Case(name) for name in self.models]
        with tempfile.TemporaryDirectory(prefix="fuelrail-bench-", dir=memory_folder()) as folder:
            data = self.data or photographs(Path(folder, "photos"), self._needed())
            raw = raw_pixels(Path(folder, "raw.npy"), self._needed(), self.size)
            print(f"data: {self._described(data)}")
            for repeat in range(self.repeats):
                for case in cases:
                    if repeat and time.monotonic() - began > 60 * self.minutes:
                        print(f"{self.minutes:g} minutes are over: {repeat} of {self.repeats} repeats")
                        break
                    self._measure(case, data, raw)
        rows = [case.row() for case in cases]
        print_table(rows)
        if self.json is not None:
            self.json.write_text(json.dumps({"where": self._where(), "rows": rows}, indent=2) + "\n")
        return 0

    def _needed(self) -> int:
        """The number of images for a measurement within one epoch, within bounds."""
        return min(self.batch_size * (self.steps + WARM + 4), 8192)

    def _where(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else platform.processor() or "CPU"
        return (
            f"{self.device} ({name}), {self.workers} decoding threads, torch {torch.__version__}, "
            f"fuelrail {fuelrail.__version__}, batch {self.batch_size}, {self.size} px, {self.steps} steps, "
            f"{'bf16 autocast, channels_last' if self.on_gpu else 'fp32'}"
        )

    def _described(self, data: Path) -> str:
        if self.data is not None:
            return str(data)
        return f"{self._needed()} generated JPEGs of 500 x 375 in {memory_folder()}, each of bytes of its own"

    def _measure(self, case: Case, data: Path, raw: Path) -> None:
        step = Step(case.model, self.device, self.batch_size, self.size)
        chain = [T.RandomResizedCrop(self.size), T.RandomHorizontalFlip(), T.Normalize(*T.IMAGENET)]
        common: dict[str, Any] = {
            **{"batch_size": self.batch_size, "drop_last": True, "shuffle": True, "layout": "nhwc"},
            **{"num_workers": self.workers, "prefetch_factor": 4},
        }
        place: dict[str, Any] = {"device": self.device} if self.on_gpu else {}
        case.note("S", self._timed(step, lambda: self._still(step)))
        with Loader(data, transforms=chain, **common) as loader:
            case.note("S+L", self._timed(step, lambda: self._beside(step, loader)))
        with Loader(raw, transforms=[T.Normalize(*T.IMAGENET)], **common, **place) as loader:
            case.note("R", self._timed(step, lambda: epochs(loader)))
        warm(data)
        with Loader(data, transforms=chain, **common, **place) as loader:
            milliseconds = self._timed(step, lambda: epochs(loader))
            case.note("P", milliseconds)
            if (waited := loader.stats().get("copy_wait_s")) is not None and self.on_gpu:
                case.exposed.append(100 * 1e3 * waited / (milliseconds * (self.steps + WARM)))
        if self.cold:
            chill(data)
            with Loader(data, transforms=chain, **common, **place) as loader:
                case.note("C", self._timed(step, lambda: epochs(loader)))
        for peer in self.peers:
            warm(data)
            case.note(peer, self._timed(step, functools.partial(PEER[peer], self, data)))

    def _still(self, step: Step) -> Iterator[Any]:
        while True:
            yield step.images, step.labels

    def _beside(self, step: Step, loader: Loader) -> Iterator[Any]:
        """The batch that stays, while a loader decodes as many: each is released if it is there."""
        iteration = loader._feed.begin()[0]
        while True:
            if loader._feed.poll(iteration) is None and loader._feed.batches_left(iteration) == 0:
                iteration = loader._feed.begin()[0]
            yield step.images, step.labels

    def _timed(self, step: Step, feed: Callable[[], Iterator[Any]]) -> float:
        """Milliseconds per step."""
        batches = feed()
        for _ in range(WARM):
            step(*next(batches))
        self._settle()
        began = time.perf_counter()
        for _ in range(self.steps):
            step(*next(batches))
        self._settle()
        return 1e3 * (time.perf_counter() - began) / self.steps

    def _settle(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


class Step:
    """A training step: forward, backward, SGD."""

    def __init__(self, name: str, device: torch.device, batch_size: int, size: int) -> None:
        torch.manual_seed(0)
        self.device = device
        self.autocast = device.type == "cuda"
        self.model = model(name, size).to(device)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(batch_size, 3, size, size, device=device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 1000, (batch_size,), device=device)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Once."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def model(name: str, size: int) -> nn.Module:
    """A torchvision model, or ViT-S/16, which torchvision does not have."""
    if name != "vit_s_16":
        return build_model(name, 1000)
    made: nn.Module = import_module("torchvision.models").VisionTransformer(
        image_size=size, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )
    return made


def epochs(loader: Any) -> Iterator[Any]:
    """Endless batches."""
    while True:
        for batch in loader:
            images, labels = batch
            yield images, labels


def of_torchvision(bench: Bench, data: Path) -> Iterator[Any]:
    """torch's DataLoader over torchvision's image folder, as its examples have it."""
    datasets, theirs = import_module("torchvision.datasets"), import_module("torchvision.transforms")
    chain = theirs.Compose(
        [
            theirs.RandomResizedCrop(bench.size),
            theirs.RandomHorizontalFlip(),
            theirs.ToTensor(),
            theirs.Normalize(*T.IMAGENET),
        ]
    )
    options: dict[str, Any] = {
        **{"batch_size": bench.batch_size, "shuffle": True, "drop_last": True, "pin_memory": bench.on_gpu},
        **{"num_workers": bench.workers, "persistent_workers": True, "prefetch_factor": 4},
    }
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(str(data), chain), **options)
    for images, labels in epochs(loader):
        moved = images.to(bench.device, non_blocking=True, memory_format=torch.channels_last)
        yield moved, labels.to(bench.device, non_blocking=True)


def of_timm(bench: Bench, data: Path) -> Iterator[Any]:
    """timm's loader, which sends bytes and normalises on the GPU."""
    timm = import_module("timm.data")
    options: dict[str, Any] = {
        **{"input_size": (3, bench.size, bench.size), "batch_size": bench.batch_size, "is_training": True},
        **{"num_workers": bench.workers, "use_prefetcher": True, "device": bench.device},
        **{"mean": T.IMAGENET[0], "std": T.IMAGENET[1], "persistent_workers": True},
    }
    loader = timm.create_loader(timm.ImageDataset(str(data)), **options)
    for images, labels in epochs(loader):
        yield images.to(memory_format=torch.channels_last), labels


PEER: dict[str, Callable[[Bench, Path], Iterator[Any]]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
}


# Data -----------------------------------------------------------------------------------------------------------------


def memory_folder() -> str | None:
    """A folder in memory: the page cache is warm from the start."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def photographs(folder: Path, count: int) -> Path:
    """JPEGs of 500 x 375 of about 100 KB: 64 pictures, and copies of them that differ in a comment."""
    try:
        import numpy
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ValueError(
            f"generated photographs need {error.name} (pip install pillow numpy); or give a folder of your own"
        ) from None
    pictures = []
    for number in range(min(64, count)):
        random = numpy.random.default_rng(number)
        pixels = numpy.full((375, 500, 3), 118.0)
        for octave in range(2, 8):
            coarse = random.normal(0, 46 / 2 ** (octave / 2), (2**octave, 2**octave)).astype(numpy.float32)
            pixels += numpy.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))[
                ..., None
            ]
        pixels += random.normal(0, 7, (375, 500, 3))
        file = folder / f"{number}.jpg"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(file, quality=92)
        pictures.append(file.read_bytes())
        file.unlink()
    for number in range(count):
        place = folder / f"class-{number % 10}"
        place.mkdir(exist_ok=True)
        text = f"copy {number}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        picture = pictures[number % len(pictures)]
        (place / f"{number:05}.jpg").write_bytes(picture[:2] + comment + picture[2:])
    return folder


def raw_pixels(file: Path, count: int, size: int) -> Path:
    """Rows of uint8 pixels of the final size, with labels, that need no decoding."""
    import numpy

    count = min(count, max(64, (2 << 30) // (3 * size * size)))
    rows = numpy.lib.format.open_memmap(file, mode="w+", dtype=numpy.uint8, shape=(count, size, size, 3))
    random = numpy.random.default_rng(0)
    for row in rows:
        row[:] = random.integers(0, 256, (size, size, 3), dtype=numpy.uint8)
    labels = file.with_name("labels.npy")
    numpy.save(labels, numpy.arange(count) % 10)
    return file


def warm(folder: Path) -> None:
    """Reads all files once."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.read_bytes()


def chill(folder: Path) -> None:
    """Drops files from the page cache, where they are on a disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            opened = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(opened)


# Output ---------------------------------------------------------------------------------------------------------------


def names(text: str) -> list[str]:
    """Comma-separated names."""
    return [name for name in text.split(",") if name]


def device(name: str | None) -> torch.device:
    """The requested device, or the first GPU."""
    if name is None:
        if not torch.cuda.is_available():
            raise ValueError("torch finds no CUDA device here; --device cpu tries the command without one")
        name = "cuda"
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).partition(chr(10))[0]}") from None
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per model; milliseconds per step, except percentages."""
    ways = ["S", "S+L", "R", "P", "C", *PEERS]
    columns = [way for way in ways if any(way in row for row in rows)]
    further = {"fed_percent": "fed %", "exposed_copy_percent": "exposed copy %", "spread_percent": "spread %"}
    columns += [name for name in further if any(name in row for row in rows)]
    print("\nmilliseconds a step (medians)")
    print("  ".join([f"{'model':12}", *(f"{further.get(name, name):>14}" for name in columns)]))
    for row in rows:
        cells = [f"{row[name]:14.1f}" if row.get(name) is not None else f"{'-':>14}" for name in columns]
        print("  ".join([f"{row['model']:12}", *cells]))
    print(
        "\nS the step alone, S+L while the daemon decodes, R without decoding, P from the page cache, C cold;"
    )
    print("fed = S / P")
