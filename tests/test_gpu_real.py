"""What needs a CUDA device: batches on it, bit by bit, while copies and steps are slow. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fuelrail import fields as F
from support import T

torch = pytest.importorskip("torch")
from fuelrail.torch import Loader  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

#: About a millisecond of a busy stream.
MILLISECOND = 1_500_000


def options(**further: Any) -> dict[str, Any]:
    return {"transforms": [T.CenterCrop(32)], "batch_size": 4, "shuffle": True, "seed": 5, **further}


def records(folder: Path, **further: Any) -> torch.Tensor:
    """The image of each record, on the device, by the way over the CPU."""
    found: dict[int, torch.Tensor] = {}
    with Loader(folder, **options(shuffle=False, **further)) as loader:
        for batch in loader:
            for at, index in enumerate(batch["index"].tolist()):
                found[index] = batch["image"][at].clone()
    return torch.stack([found[index] for index in range(len(found))]).cuda()


def slow_copies(loader: Loader, cycles: int) -> None:
    """Keeps the side stream busy before each copy."""
    place = loader._uploads._place
    begin = place.begin

    @contextmanager
    def late(batch: int) -> Iterator[None]:
        with begin(batch):
            torch.cuda._sleep(cycles)
            yield

    place.begin = late


@pytest.mark.parametrize("buffers", [None, 3])
@pytest.mark.parametrize("slow", ["copies", "steps"])
def test_no_slot_of_ten_thousand_and_no_tensor_is_written_early(
    pictures: Path, slow: str, buffers: int | None
) -> None:
    expected = records(pictures)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    taken = 0
    with Loader(
        pictures,
        **options(device="cuda", pin="require", device_buffers=buffers, num_workers=4, prefetch_factor=1),
    ) as loader:
        if slow == "copies":
            slow_copies(loader, MILLISECOND // 10)
        while taken < 5_000:
            for batch in loader:
                if slow == "steps":
                    torch.cuda._sleep(MILLISECOND // 10)
                # On the device, when its stream comes to it: nothing here waits for a copy.
                index = batch["index"].pin_memory().cuda(non_blocking=True)
                wrong += (batch["image"] != expected[index]).flatten(1).any(dim=1).sum()
                taken += 1
        stats = loader.stats()
    assert int(wrong) == 0
    assert stats["pinned"] and stats["copied_batches"] == 0


def test_batches_may_be_kept(pictures: Path) -> None:
    expected = records(pictures)
    with Loader(pictures, **options(device="cuda")) as loader:
        kept = [batch for _ in range(4) for batch in loader]
        for batch in kept:
            assert torch.equal(batch["image"], expected[batch["index"].cuda()])
            assert batch["label"].device.type == "cuda" and batch["label"].dtype == torch.int64


def test_another_stream_may_take_the_next_batch(pictures: Path) -> None:
    expected = records(pictures)
    streams = [torch.cuda.Stream() for _ in range(3)]
    checks = []
    with Loader(pictures, **options(device="cuda")) as loader:
        slow_copies(loader, MILLISECOND)
        for at, batch in enumerate(loader):
            with torch.cuda.stream(streams[at % 3]):
                index = batch["index"].cuda()
            del index
        batches = iter(loader)
        for at in range(12):
            with torch.cuda.stream(streams[at % 3]):
                batch = next(batches)
                checks.append((batch["image"] != expected[batch["index"].cuda()]).sum())
                del batch
    torch.cuda.synchronize()
    assert sum(map(int, checks)) == 0


def test_a_graph_over_fixed_buffers_sees_each_batch(pictures: Path) -> None:
    expected = records(pictures).double().sum(dim=(1, 2, 3))
    graphs: dict[int, Any] = {}
    with Loader(pictures, **options(device="cuda", device_buffers=2, drop_last=True)) as loader:
        for _ in range(4):
            for batch in loader:
                image = batch["image"]
                if image.data_ptr() not in graphs:
                    graph, out = torch.cuda.CUDAGraph(), torch.empty(4, dtype=torch.float64, device="cuda")
                    image.double()
                    torch.cuda.synchronize()
                    with torch.cuda.graph(graph):
                        out.copy_(image.double().sum(dim=(1, 2, 3)))
                    graphs[image.data_ptr()] = graph, out
                graph, out = graphs[image.data_ptr()]
                graph.replay()
                assert torch.equal(out, expected[batch["index"].cuda()])
    assert len(graphs) == 2


@pytest.mark.parametrize("pin", ["auto", "off"])
def test_fields_of_every_kind_arrive(pictures: Path, pin: str) -> None:
    named = {
        "image": F.Image([T.CenterCrop(32)]),
        "views": F.Views(3, [T.RandomCrop(16)]),
        "caption": F.Text("txt", max_bytes=32),
    }
    same = {"fields": named, "batch_size": 4, "shuffle": True, "seed": 3}
    with Loader(pictures, **same) as plain, Loader(pictures, device="cuda", pin=pin, **same) as loader:
        assert loader.stats()["pinned"] == (pin == "auto")
        for one, other in zip(plain, loader, strict=True):
            assert one["caption"] == other["caption"]
            for name in ("image", "views", "label"):
                assert other[name].device.type == "cuda" and torch.equal(one[name], other[name].cpu())


def test_a_loader_that_ends_early_leaves_nothing(pictures: Path) -> None:
    for _ in range(20):
        loader = Loader(pictures, **options(device="cuda"))
        slow_copies(loader, MILLISECOND)
        next(iter(loader))
        loader.close()
        loader.close()
    torch.cuda.synchronize()
