"""What every peer does: one task, one consumer, one way to count.

    A   RandomResizedCrop(224, scale 0.08-1, ratio 3/4-4/3, bilinear, antialias) + flip + normalise, f32 NCHW
    B   Resize(256, antialias) + CenterCrop(224) + normalise, f32 NCHW
    C   as A without normalise, u8 NHWC: what goes to a GPU

A peer gives `batches(settings)`: an iterator of image tensors. Importing is over before the clock starts;
opening the loader, starting and ending its workers are inside. CPU seconds are user + system of this process
and of every child it has waited for, taken after the loader is closed, so workers and daemon are in them to
the last one.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """One measurement: `images` images of folder `data`, in whole batches, by `workers` workers."""

    task: str
    data: Path
    images: int
    batch_size: int
    workers: int


def measure(batches: Callable[[Settings], Iterator[torch.Tensor]]) -> None:
    """Parses the command line, runs `batches` for the images asked for, prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=("A", "B", "C"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    settings = Settings(**vars(parser.parse_args()))

    print("ready", flush=True)
    cpu, began = _cpu_seconds(), time.perf_counter()
    first, seen, touched = 0.0, 0, 0.0
    source = batches(settings)
    for images in source:
        _check(images, settings)
        touched += _touch(images)
        seen += len(images)
        if not first:
            first = time.perf_counter() - began
        last = time.perf_counter() - began
        del images
        if seen >= settings.images:
            break
    # Ends the workers or the daemon and waits for them: only then does the kernel add their time to ours.
    source.close()  # type: ignore[attr-defined]
    found = {
        "images": seen,
        "first_batch_s": first,
        "seconds": last,
        "images_per_s": seen / last,
        "cpu_s_per_1000": 1000 * (_cpu_seconds() - cpu) / seen,
        "touched": touched,
        "settings": {**asdict(settings), "data": str(settings.data)},
    }
    print(json.dumps(found), flush=True)


def _touch(images: torch.Tensor) -> float:
    """Reads one element of each page of the batch, as a training step that uses it would at least."""
    page = 4096 // images.element_size()
    pages = images.as_strided((-(-images.numel() // page),), (page,), images.storage_offset())
    return float(pages.sum(dtype=torch.float64))


def _check(images: torch.Tensor, settings: Settings) -> None:
    """A peer that gave something else would be compared with nothing."""
    wanted = torch.uint8 if settings.task == "C" else torch.float32
    assert images.dtype == wanted, f"{images.dtype}, not {wanted}"
    assert images.shape[1:] == (3, 224, 224), f"shape {tuple(images.shape)}, not (N, 3, 224, 224)"
    dense = torch.channels_last if settings.task == "C" else torch.contiguous_format
    assert images.is_contiguous(memory_format=dense), "the memory order is not the task's"


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
