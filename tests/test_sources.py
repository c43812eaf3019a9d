"""What every source promises, asked of every source as a user would: the same images, whatever they are stored in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest
from fuelrail import FuelrailError, Source, SourceError
from support import AUGMENT, SLACK, TINY, Loader, T, at_most, digests, indices, row_digests, seeds


@pytest.fixture(scope="session")
def sources(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """The images of one folder in every kind of source."""
    cache = tmp_path_factory.mktemp("cache")
    made = {}
    for name, make in formats.ALL.items():
        into = tmp_path_factory.mktemp("source")
        source = make(images, into)
        made[name] = Source(source._addresses, **{**source._options, "cache_dir": cache})
    return made


KINDS = list(formats.ALL)
OPTIONS: dict[str, Any] = {"transforms": AUGMENT, "shuffle": True, "seed": 5, "batch_size": 7}


@pytest.mark.parametrize("kind", formats.FILES)
def test_every_kind_holds_the_images_of_the_folder_in_its_order(
    kind: str, images: Path, sources: dict[str, Source]
) -> None:
    plain = {"transforms": [T.Resize((24, 24))], "batch_size": 10}
    with Loader(images, **plain) as folder, Loader(sources[kind], **plain) as loader:
        assert loader.num_samples == folder.num_samples
        for ours, theirs in zip(loader, folder, strict=True):
            assert np.array_equal(ours["image"], theirs["image"])
            assert np.array_equal(ours["label"], theirs["label"])


@pytest.mark.parametrize("kind", formats.ARRAYS)
def test_every_kind_of_array_holds_the_pixels_that_were_saved(
    kind: str, images: Path, sources: dict[str, Source]
) -> None:
    expected, labels = formats.pixels(images)
    with Loader(sources[kind], transforms=[T.CenterCrop(24)], batch_size=10, layout="nhwc") as loader:
        batches = list(loader)
    assert np.array_equal(
        np.concatenate([batch["image"] for batch in batches]).transpose(0, 2, 3, 1), expected
    )
    assert np.array_equal(np.concatenate([batch["label"] for batch in batches]), labels)


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_comes_once_an_epoch_over_all_ranks(kind: str, sources: dict[str, Source]) -> None:
    options = {"transforms": TINY, "shuffle": True, "batch_size": 4}
    for world in (1, 3):
        loaders = [Loader(sources[kind], rank=rank, world_size=world, **options) for rank in range(world)]
        orders = []
        for _ in range(2):
            seen = [indices(loader) for loader in loaders]
            assert sorted(index for of_rank in seen for index in of_rank) == list(range(61))
            orders.append(seen)
        assert orders[0] != orders[1], "every epoch has an order of its own"
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(
    kind: str, sources: dict[str, Source]
) -> None:
    with Loader(sources[kind], num_workers=1, **OPTIONS) as one:
        expected = digests(one)
    other = {"num_workers": 3, "prefetch_factor": 5, "read_backend": "threads", "read_ahead_bytes": 100_000}
    with Loader(sources[kind], **other, **OPTIONS) as three:
        assert digests(three) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_taken_at_every_step_restores_the_same_rest(kind: str, sources: dict[str, Source]) -> None:
    with Loader(sources[kind], **OPTIONS) as loader:
        tokens, batches = [], []
        for batch in loader:
            batches.append(row_digests([batch]))
            tokens.append(loader.state_dict())
        for step, token in enumerate(tokens):
            loader.load_state_dict(token)
            rest = row_digests(loader) if loader.epoch == 0 else {}
            expected = {p: row for later in batches[step + 1 :] for p, row in later.items()}
            assert rest == expected, step


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_in_the_middle_leaves_at_once(kind: str, sources: dict[str, Source]) -> None:
    with Loader(sources[kind], **OPTIONS) as loader:
        next(iter(loader))
        with at_most(1 * SLACK, "closing a loader in the middle of an epoch"):
            loader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_is_two_parts_of_any_source(kind: str, sources: dict[str, Source]) -> None:
    keys = []
    for split in ("train[:70%]", "train[70%:]"):
        source = Source(sources[kind]._addresses, **{**sources[kind]._options, "split": split})
        with Loader(source, transforms=TINY, batch_size=61) as loader:
            keys.append({key for batch in loader for key in loader.keys(batch)})
    assert len(keys[0]) + len(keys[1]) == 61 and not keys[0] & keys[1]


def files_of(source: Source) -> list[Path]:
    """The files behind a source made by `formats`."""
    folder = Path(source._addresses[0]).parent
    return sorted(path for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_cut_short_under_a_run_stops_it_with_its_name(
    kind: str, images: Path, tmp_path: Path
) -> None:
    if kind in ("csv", "jsonl", "tar.gz"):
        pytest.skip("the list is in memory, and an unpacked copy is not what was cut")
    source = formats.ALL[kind](images, tmp_path)
    source = Source(source._addresses, **{**source._options, "cache_dir": tmp_path / "cache"})
    with Loader(source, transforms=TINY, batch_size=1, read_ahead_bytes=1, prefetch_factor=1) as loader:
        batches = iter(loader)
        next(batches)
        for path in files_of(source):
            if path.name != "labels.npy":
                os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(FuelrailError) as raised:
            for _ in range(3):
                list(batches)
                batches = iter(loader)
        assert any(path.name in str(raised.value) for path in files_of(source)), raised.value


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "parquet", "arrow", "csv", "jsonl", "h5", "npy", "npz"])
def test_an_empty_file_and_one_of_garbage_are_refused_by_name(ending: str, tmp_path: Path) -> None:
    random = seeds()
    for content in (b"", b"\x00" * 1024, random.randbytes(5000)):
        path = tmp_path / f"broken.{ending}"
        path.write_bytes(content)
        with (
            at_most(10 * SLACK, "refusing a broken file"),
            pytest.raises((SourceError, FuelrailError)) as raised,
        ):
            Loader(Source(path, cache_dir=tmp_path / "cache"), transforms=TINY)
        assert "broken" in str(raised.value), raised.value


def test_fields_arrive_as_tensors_of_the_same_batch(images: Path, tmp_path: Path) -> None:
    source = formats.parquet(images, tmp_path)
    options = {**source._options, "fields": ["box"]}
    with Loader(Source(source._addresses, **options), transforms=TINY, batch_size=9, shuffle=True) as loader:
        assert loader.shapes == {"image": (3, 8, 8), "box": (4,)}
        for batch in loader:
            assert batch["box"].dtype == np.float32 and batch["box"].shape == (batch.rows, 4)
            assert np.array_equal(batch["box"][:, 0], batch["index"].astype(np.float32))
