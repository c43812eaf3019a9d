"""Local SGD: each rank takes some steps by itself, then all ranks average their weights.

    .venv/bin/torchrun --nproc-per-node 2 examples/local_sgd.py build/demo/digits/train build/local.pt 20

The ranks talk once in `APART` steps instead of in every one, which suits slow links between machines. Start it again
with a larger number of rounds, and it continues from the last average: the checkpoint has weights and the loader's
state, which are the same on all ranks, so it may also continue on another number of ranks.

torchft has fault-tolerant variants (`torchft.local_sgd.LocalSGD` and `DiLoCo`). Both need a `torchft.manager.Manager`,
which needs a process group of torchft's and the address of a running lighthouse server (TORCHFT_LIGHTHOUSE); this
example needs torch alone.
"""

import hashlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model

folder, saved, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
APART = 3
# Before the Loader is made, which takes rank and world size from here.
dist.init_process_group("gloo")


def average(model: torch.nn.Module) -> None:
    """Gives all ranks the mean of their weights and of batch norm's statistics."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            dist.all_reduce(value)
            value /= dist.get_world_size()


chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]
with Loader(folder, transforms=chain, batch_size=8, shuffle=True, seed=1) as loader:
    torch.manual_seed(1)  # the same first weights on all ranks
    model = build_model("small_cnn", len(loader.classes))
    # Without momentum, which each rank would have of its own: averaged weights are all that a checkpoint needs.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    averages = step = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        loader.load_state_dict(state["loader"])
        averages = state["averages"]

    while averages < rounds:
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % APART == 0:
                average(model)
                averages += 1
                if dist.get_rank() == 0:
                    state = {"model": model.state_dict(), "loader": loader.state_dict(), "averages": averages}
                    torch.save(state, saved.with_suffix(".new"))
                    # Whole or not at all: a kill during the write leaves the checkpoint before it.
                    saved.with_suffix(".new").replace(saved)
                    print(f"round {averages}: loss {loss.item():.3f} after {APART} steps of each rank")
                if averages == rounds:
                    break

    mine = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    digests: list = [None] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.sha256(mine).hexdigest()[:16])
    if dist.get_rank() == 0:
        print(f"{len(set(digests))} different models on {len(digests)} ranks: {digests[0]}")

# None leaves while another still talks to it.
dist.barrier()
dist.destroy_process_group()
