"""Training on a live Kafka stream with exact resume: kill -9 it, start it again, and nothing is lost or repeated.

    tests/kafka/broker.py start --dir /tmp/kafka        # prints HOST:PORT; stop it with: broker.py stop --dir /tmp/kafka
    .venv/bin/fuelrail produce build/demo/digits/train kafka://HOST:PORT/digits --partitions 4 --forever --rate 500/s
    .venv/bin/python examples/train_kafka.py kafka://HOST:PORT/digits build/stream.pt 500

`make demo` writes the digits. The loop is the one for a folder; three things are different: there are no epochs, a step
number says when to stop, and the loader is told when a checkpoint is safe, so that lag monitors see the progress.
"""

import sys
from pathlib import Path

import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model

url, saved, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
# Shuffled within windows of 2,048 records; when fewer have come after a second, of those.
stream = {
    "label": "header:label",
    "window_records": 2048,
    "window_seconds": 1.0,
    "properties": {"group.id": "digits-trainer"},
}

with Loader(url, source_options=stream, transforms=chain, batch_size=64, shuffle=True, seed=1) as loader:
    model = build_model("small_cnn", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    step = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        step = state["step"]
        print(f"going on after step {step}")

    batches = iter(loader)
    while step < steps:
        images, labels = next(batches)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 10 == 0 or step == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save({**state, "loader": loader.state_dict()}, saved.with_suffix(".new"))
            # Whole or not at all: a kill during the write leaves the checkpoint before it.
            saved.with_suffix(".new").replace(saved)
            # Only now may the broker hear that these records are done. Nothing is ever read back from there.
            loader.checkpoint_saved(loader.state_dict())
            lag = loader.stats()["stream"]["lag"]
            print(f"step {step}: loss {loss.item():.3f}, {lag} records behind the end of the stream")
