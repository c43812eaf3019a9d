"""A hyper-parameter search with Hyperopt: several searches at once, whose trials train on one shared feed.

    .venv/bin/python examples/tune_hyperopt.py build/demo/digits/train 2 5

`fmin` runs its trials one after the other. Here two processes search with a seed each, for five trials, and `share=` has
each image read, decoded and augmented once for both. A process keeps its Loader from trial to trial, so that both
are in the same epoch all the time: trials that run at the same time get the same batches.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from math import log
from multiprocessing import get_context

import numpy as np
import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model
from hyperopt import STATUS_FAIL, STATUS_OK, Trials, fmin, hp, tpe

EPOCHS = 2
SPACE = {"lr": hp.loguniform("lr", log(1e-4), log(0.1)), "momentum": hp.uniform("momentum", 0.0, 0.95)}


def search(folder: str, seed: int, searches: int, trials: int) -> tuple[int, list[tuple[float, dict]]]:
    """One search, in a process of its own: its daemon, and loss and hyper-parameters of each finite trial."""
    chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
    feed = {"name": "hyperopt", "clients": searches}
    with Loader(folder, transforms=chain, batch_size=16, shuffle=True, seed=1, share=feed) as loader:

        def objective(chosen: dict) -> dict:
            torch.manual_seed(1)
            model = build_model("small_cnn", len(loader.classes))
            optimizer = torch.optim.SGD(model.parameters(), **chosen)
            for _ in range(EPOCHS):
                total = 0.0
                for images, labels in loader:
                    loss = torch.nn.functional.cross_entropy(model(images), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(labels)
            # The loss in training keeps this short; a search of yours would measure on held-out images.
            mean = total / loader.num_samples
            return {"loss": mean, "status": STATUS_OK if np.isfinite(mean) else STATUS_FAIL, **chosen}

        done = Trials()
        generator = np.random.default_rng(seed)
        fmin(objective, SPACE, tpe.suggest, trials, trials=done, rstate=generator, show_progressbar=False)
        good = [each for each in done.results if each["status"] == STATUS_OK]
        tried = [(each["loss"], {name: each[name] for name in SPACE}) for each in good]
        return loader.daemon_pid, tried


if __name__ == "__main__":
    folder, searches, trials = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with ProcessPoolExecutor(searches, get_context("spawn")) as pool:
        running = [pool.submit(search, folder, seed, searches, trials) for seed in range(searches)]
        found = [each.result() for each in running]
    for seed, (daemon, tried) in enumerate(found):
        losses = ", ".join(f"{loss:.3f}" for loss, _ in tried)
        print(f"search {seed}: fed by daemon {daemon}; loss by trial {losses}")
    loss, chosen = min((each for _, tried in found for each in tried), key=lambda each: each[0])
    print(f"best: loss {loss:.3f}, {chosen}")
