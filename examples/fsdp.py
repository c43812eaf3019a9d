"""A model sharded over ranks by FSDP2 (`fully_shard`), on CPUs (gloo) or GPUs (nccl).

    .venv/bin/torchrun --nproc-per-node 2 examples/fsdp.py build/demo/digits/train
    .venv/bin/torchrun --nproc-per-node 4 examples/fsdp.py build/demo/digits/train 2

The mesh has two dimensions: ranks that split the data, and ranks that need the same rows, as tensor parallelism
does. The second number is the size of the latter: 2 ranks and 1 (the default) are a 2 x 1 mesh, 4 ranks and 2 are
2 x 2. `mesh=` and `data_dims=` tell the Loader; without a mesh, `replication=2` would say the same.
"""

import sys

import torch
import torch.distributed as dist
from fuelrail.torch import Loader
from fuelrail.torch import transforms as T
from fuelrail.train import build_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

folder, tensor = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device == "cuda" else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh(device, (ranks // tensor, tensor), mesh_dim_names=("data", "tensor"))
chain = [T.RandomResizedCrop(32, scale=(0.6, 1.0)), T.Normalize(*T.IMAGENET)]

with Loader(
    folder, transforms=chain, batch_size=8, shuffle=True, seed=1, mesh=mesh, data_dims=["data"]
) as loader:
    torch.manual_seed(1)  # the same first weights on all ranks, of which each then keeps its part
    model = build_model("small_cnn", len(loader.classes)).to(device)
    fully_shard(model, mesh=mesh["data"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(2):
        seen = []
        for batch in loader:
            images, labels = batch["image"].to(device), batch["label"].to(device)
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += batch["position"].tolist()
        everyone: list = [None] * ranks
        dist.all_gather_object(everyone, seen)
        if rank == 0:
            held = sum(each.to_local().numel() for each in model.parameters())
            whole = sum(each.numel() for each in model.parameters())
            rows = ", ".join(str(len(each)) for each in everyone)
            different = len({position for each in everyone for position in each})
            print(f"epoch {epoch + 1}: rank 0 holds {held} of {whole} weights; loss {loss.item():.3f}")
            print(f"rows by rank {rows}; {different} different samples of {loader.num_samples}")

# None leaves while another still talks to it.
dist.barrier()
dist.destroy_process_group()
