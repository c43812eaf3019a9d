"""A hyper-parameter search with Ray Tune: all trials train on the batches of one shared feed, and ASHA stops bad ones.

    .venv/bin/python examples/tune_ray.py build/demo/digits/train build/tune 4

Each trial is a process, and all run at once. `share=` has each image read, decoded and augmented once for all of them,
and every trial gets the same batches, so trials differ in their hyper-parameters alone. A stopped trial no longer reads
from the feed, also if it was the one which started the daemon, and the others continue.
"""

import sys
from pathlib import Path

import ray
import torch
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

EPOCHS = 8


def trial(config: dict) -> None:
    """One trial, in a process of its own."""
    chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
    # The first batch waits until all trials have joined, so that none misses the first epoch.
    feed = {"name": "ray", "clients": config["trials"]}
    with Loader(
        config["folder"], transforms=chain, batch_size=16, shuffle=True, seed=1, share=feed
    ) as loader:
        torch.manual_seed(1)
        model = made(loader)
        optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=config["momentum"])
        for _ in range(EPOCHS):
            total = 0.0
            for images, labels in loader:
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(labels)
            # The loss in training keeps this short; a search of yours would measure on held-out images.
            tune.report({"loss": total / loader.num_samples, "daemon": loader.daemon_pid})


def made(loader: Loader) -> torch.nn.Module:
    """A model for these classes."""
    # Not in a function that uses torch: Ray would take `.classes` for the module torch.classes, and fail to pickle it.
    return build_model("small_cnn", len(loader.classes))


if __name__ == "__main__":
    # Ray starts the trials in folders of their own.
    folder, storage, trials = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3])
    # As many slots as trials, however many cores there are: all wait for the slowest.
    ray.init(num_cpus=trials, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    space = {
        "lr": tune.loguniform(1e-5, 0.1),
        "momentum": tune.uniform(0.0, 0.95),
        "folder": str(folder),
        "trials": trials,
    }
    results = tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            search_alg=BasicVariantGenerator(random_state=1),
            scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=2),
        ),
        run_config=tune.RunConfig(name="digits", storage_path=str(storage), verbose=0),
    ).fit()
    ray.shutdown()
    for number, result in enumerate(results):
        losses = list(result.metrics_dataframe["loss"])
        state = "complete" if len(losses) == EPOCHS else "stopped"
        chosen = f"lr {result.config['lr']:.3g}, momentum {result.config['momentum']:.3g}"
        told = ", ".join(f"{loss:.3f}" for loss in losses)
        print(
            f"trial {number}: {state}, {chosen}; fed by daemon {result.metrics['daemon']}; loss by epoch {told}"
        )
    best = results.get_best_result(scope="all")
    print(
        f"best: loss {best.metrics['loss']:.3f}, lr {best.config['lr']:.3g}, momentum {best.config['momentum']:.3g}"
    )
