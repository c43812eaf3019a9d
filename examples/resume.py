"""Exact resume in a loop of your own: the loader's token is saved with the weights it belongs to.

    .venv/bin/python examples/resume.py build/demo/digits/train build/resume.pt

Stop it with ctrl-C or kill -9 and start it again: it continues with the first sample that the saved weights
have not seen, in the same order. `fuelrail.train.Trainer` does this, and more, for you.
"""

import sys
from pathlib import Path

import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model

folder, saved = sys.argv[1], Path(sys.argv[2])
chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]

with Loader(folder, transforms=chain, batch_size=64, shuffle=True, seed=1) as loader:
    model = build_model("small_cnn", len(loader.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    step = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        step = state["step"]
        print(f"going on after step {step}, in epoch {loader.epoch + 1}")

    # The loader knows which epoch it stands in: nothing else needs to be restored for the order.
    for epoch in range(loader.epoch, 10):
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 10 == 0:
                # After the step on the batch in hand: the token then says "this batch is done".
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save({**state, "loader": loader.state_dict()}, saved.with_suffix(".new"))
                # Whole or not at all: a kill during the write leaves the checkpoint before it.
                saved.with_suffix(".new").replace(saved)
                print(f"epoch {epoch + 1}: step {step}, loss {loss.item():.3f}")
