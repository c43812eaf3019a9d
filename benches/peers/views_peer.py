"""One view of a photograph, or DINO's ten, by torchvision v2 on Pillow or by DALI on the CPU; one thread.

The chain is that of `benches/src/views.rs`. Files are read before the clock starts; CPU time is that of the process.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Number of views, their size, and the share of the picture that each shows.
VIEWS = {
    "one": [(1, 224, (0.4, 1.0))],
    "ten": [(2, 224, (0.4, 1.0)), (8, 96, (0.05, 0.4))],
}


def main() -> None:
    """Measures; prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=("torch", "dali"), required=True)
    parser.add_argument("--task", choices=tuple(VIEWS), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    files = [path.read_bytes() for path in sorted(arguments.data.rglob("*")) if path.is_file()]
    make = {"torch": by_torch, "dali": by_dali}[arguments.peer]
    records = make(files, arguments.task)
    for _ in islice(records, 10):
        pass
    began = time.process_time()
    for _ in islice(records, arguments.images):
        pass
    cpu = time.process_time() - began
    print(json.dumps({"images": arguments.images, "cpu_ms": 1000 * cpu / arguments.images}))


def by_torch(files: list[bytes], task: str) -> Iterator[Any]:
    """torchvision's transforms, as DINO's scripts have them: a Pillow image, decoded once for all views."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2 as T

    torch.set_num_threads(1)

    def chain(size: int, scale: tuple[float, float]) -> Callable[[Any], Any]:
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale),
                T.RandomHorizontalFlip(),
                T.ColorJitter(0.4, 0.4, 0.2, 0.1),
                T.RandomGrayscale(0.2),
                T.GaussianBlur(9),
                T.ToImage(),
                T.ToDtype(torch.float32, scale=True),
                T.Normalize(MEAN, STD),
            ]
        )

    chains = [chain(size, scale) for count, size, scale in VIEWS[task] for _ in range(count)]
    for data in cycle(files):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        yield [view(image) for view in chains]


def by_dali(files: list[bytes], task: str) -> Iterator[Any]:
    """DALI's operators on the CPU with the same arguments, in batches of one thread."""
    import numpy
    from nvidia.dali import fn, pipeline_def, types

    batch = 10
    data = cycle([numpy.frombuffer(file, dtype=numpy.uint8) for file in files])

    def view(encoded: Any, image: Any, size: int, scale: tuple[float, float]) -> Any:
        uniform = fn.random.uniform
        if task == "one":
            # Decodes no more than the crop.
            image = fn.decoders.image_random_crop(encoded, device="cpu", random_area=list(scale))
            image = fn.resize(image, size=[size, size])
        else:
            image = fn.random_resized_crop(image, size=size, random_area=list(scale))
        image = fn.flip(image, horizontal=fn.random.coin_flip())
        gray = fn.cast(fn.random.coin_flip(probability=0.2), dtype=types.FLOAT)
        image = fn.color_twist(
            image,
            brightness=uniform(range=(0.6, 1.4)),
            contrast=uniform(range=(0.6, 1.4)),
            saturation=uniform(range=(0.8, 1.2)) * (1 - gray),
            hue=uniform(range=(-36.0, 36.0)),
        )
        image = fn.gaussian_blur(image, window_size=9, sigma=uniform(range=(0.1, 2.0)))
        mean, std = ([255 * value for value in values] for values in (MEAN, STD))
        return fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std)

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None, seed=0, prefetch_queue_depth=1)
    def pipeline() -> Any:
        encoded = fn.external_source(source=lambda _: next(data), batch=False)
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        views = [
            view(encoded, image, size, scale) for count, size, scale in VIEWS[task] for _ in range(count)
        ]
        return tuple(views)

    built = pipeline()
    built.build()
    while True:
        views = built.run()
        for row in range(batch):
            yield [of_batch[row] for of_batch in views]


if __name__ == "__main__":
    main()
