"""Two sources as one: a folder of your own photographs, drawn three times as often as shards from elsewhere.

    .venv/bin/python examples/mix.py build/demo/digits/train "shards/train-*.tar"

Every batch holds both in nearly their shares, and `batch["part"]` says which a row is from, for a loss of its own
or for counting. No record of a part comes again before all others of it have come, also across epochs; the state
continues exactly, on any number of ranks.
"""

import sys

import torch
from fuelrail import Mix, Source
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model

own, web = sys.argv[1], sys.argv[2]
# Both parts name the same classes, so that a label means the same in each.
with Loader(own, transforms=[T.Resize((32, 32))]) as loader:
    classes = loader.classes
mix = Mix(
    {"own": Source(own), "web": Source(web, classes=classes)},
    weights={"own": 3, "web": 1},
    samples_per_epoch=1000,
)
chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]

with Loader(mix, transforms=chain, batch_size=100, shuffle=True, seed=1) as loader:
    model = build_model("small_cnn", len(classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(2):
        drawn = torch.zeros(2, dtype=torch.int64)
        for batch in loader:
            loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            drawn += torch.bincount(batch["part"], minlength=2)
        print(f"epoch {epoch + 1}: {drawn[0]} own, {drawn[1]} web, loss {loss.item():.3f}")
