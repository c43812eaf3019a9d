"""The trainer of `make demo-kafka`: examples/train_kafka.py, and it says in JSON what it trains on.

Its checkpoint holds, beside weights and the loader's state, the (partition, offset) of every record that the weights
have seen; that is for the demo's table only.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model

#: Small enough to train on faster than a slow machine's two cores are asked to.
SIDE = 16
CHAIN = [T.RandomResizedCrop(SIDE, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
VIEW = [T.Resize((SIDE, SIDE)), T.Normalize(*T.IMAGENET)]
STREAM = {"start": "beginning", "label": "header:label", "window_records": 1024, "window_seconds": 2.0}


def main(url: str, unseen: str, saved: Path, steps: int, every: int, batch: int) -> None:
    """Trains up to this step, from the checkpoint if there is one."""
    with Loader(unseen, transforms=VIEW, batch_size=256) as loader:
        classes = len(loader.classes)
        test = [(images.clone(), labels.clone()) for images, labels in loader]
    model = build_model("small_cnn", classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    options: dict[str, Any] = {"transforms": CHAIN, "batch_size": batch, "shuffle": True, "seed": 1}
    step, seen, fixed = 0, [], 0
    with Loader(url, source_options=STREAM, **options) as loader:
        if saved.exists():
            state = torch.load(saved, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
            step, seen = state["step"], state["seen"]
            window = state["loader"]["stream"]
            fixed = window["first"] + window["count"]
            say(resumed=f"goes on behind step {step}, with {len(seen):,} records in its weights")
        began, rows = time.monotonic(), 0
        for data in loader:
            images, labels = data
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            rows += data.rows
            # "index" holds the partition above 48 bits of offset.
            names = [[index >> 48, index & ((1 << 48) - 1)] for index in data["index"].tolist()]
            seen += names
            stream = loader.stats()["stream"]
            figures = {
                "rate": rows / (time.monotonic() - began),
                "lag": stream["lag"],
                "window": stream["window"],
            }
            again = data.position + data.rows <= fixed
            say(step=step, names=names, fixed=again, loss=loss.item(), **figures)
            if step % every == 0 or step == steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                state |= {"seen": seen, "loader": loader.state_dict()}
                torch.save(state, saved.with_suffix(".new"))
                # Whole or not at all: a kill during the write leaves the checkpoint before it.
                saved.with_suffix(".new").replace(saved)
                loader.checkpoint_saved(state["loader"])
            if step == steps:
                break
    say(done=True, seen=seen, accuracy=accuracy(model, test))


def accuracy(model: torch.nn.Module, test: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The share of images whose class it says."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test)
    return right / sum(len(labels) for _, labels in test)


def say(**what: Any) -> None:
    """A line for the demo."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
