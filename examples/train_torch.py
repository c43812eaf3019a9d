"""The loop as you would write it: a folder of class folders, a model, ten lines.

    .venv/bin/python examples/train_torch.py build/demo/digits/train

`make demo` writes that folder; any other of the same shape will do.
"""

import sys

import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model

chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]

with Loader(sys.argv[1], transforms=chain, batch_size=64, shuffle=True, seed=1) as loader:
    model = build_model("small_cnn", len(loader.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(3):
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {loader.stats()['verdict']['text']}")
