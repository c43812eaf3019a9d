"""Data-parallel training with Ray Train: the workers take their ranks by themselves, and share one daemon per node.

    .venv/bin/python examples/ray_train.py build/demo/digits/train build/ray 2

The loader's state is in each checkpoint. If a worker fails, Ray Train starts all of them again, and they continue with
the samples that the last checkpoint has not seen. Running the command again with more epochs continues the same way.
With `fail` as a further argument, a worker of a new run kills itself in the second epoch.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig, get_checkpoint, report
from ray.train.torch import TorchTrainer, prepare_model
from torch.nn.parallel import DistributedDataParallel

WORKERS = 2
APART = 3  # steps between checkpoints


def gathered(value: object) -> list:
    """The value of each worker."""
    values: list = [None] * WORKERS
    dist.all_gather_object(values, value)
    return values


def made(loader: Loader) -> DistributedDataParallel:
    """A model for these classes, in DistributedDataParallel."""
    # Not in a function that uses torch: Ray would take `.classes` for the module torch.classes, and fail to pickle it.
    return prepare_model(build_model("small_cnn", len(loader.classes)))


def work(config: dict) -> None:
    """What each worker does. Ray Train has made the process group, from which the Loader takes its rank."""
    chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
    with Loader(config["folder"], transforms=chain, batch_size=8, shuffle=True, seed=1) as loader:
        torch.manual_seed(1)
        model = made(loader)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        began = step = 0
        seen: list[int] = []  # the samples of this epoch, on all workers
        if resumed := get_checkpoint():
            with resumed.as_directory() as saved:
                state = torch.load(Path(saved, "state.pt"), weights_only=True)
            model.module.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
            began = step = state["step"]
            seen = state["seen"]

        for epoch in range(loader.epoch + 1, config["epochs"] + 1):
            for batch in loader:
                images, labels = batch
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                for rows in gathered(batch["index"].tolist()):
                    seen += rows
                if config["fail"] and not resumed and epoch == 2 and dist.get_rank() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                is_whole = len(seen) == loader.num_samples
                if step % APART == 0 or is_whole:
                    said = {"epoch": epoch, "step": step, "began": began, "loss": loss.item()}
                    said |= {"rows": len(seen), "samples": len(set(seen))}
                    said |= {"daemons": len(set(gathered(loader.daemon_pid)))}
                    seen = [] if is_whole else seen
                    state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
                    state |= {"loader": loader.state_dict(), "step": step, "seen": seen}
                    save(said, state)


def save(said: dict, state: dict) -> None:
    """Reports to Ray Train, with a checkpoint by one worker: its contents are the same on all."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder, "state.pt"))
        report(said, checkpoint=Checkpoint.from_directory(folder) if dist.get_rank() == 0 else None)


if __name__ == "__main__":
    # Ray starts the workers in folders of their own.
    folder, storage, epochs = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3])
    # On this machine alone; in a cluster, ray.init().
    ray.init(num_cpus=WORKERS, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    trainer = TorchTrainer(
        work,
        train_loop_config={"folder": str(folder), "epochs": epochs, "fail": "fail" in sys.argv[4:]},
        scaling_config=ScalingConfig(num_workers=WORKERS),
        # A run of the same name in the same storage continues from its last checkpoint.
        run_config=RunConfig(
            name="digits", storage_path=str(storage), failure_config=FailureConfig(max_failures=1)
        ),
    )
    result = trainer.fit()
    ray.shutdown()
    for said in result.metrics_dataframe.to_dict("records"):
        print(
            "epoch {epoch}, step {step} (started from {began}): loss {loss:.3f}; "
            "{samples} samples in {rows} rows, from {daemons} daemon".format(**said)
        )
