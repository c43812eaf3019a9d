"""What every source promises, asked of every source as a user would: the same images, whatever they are stored in."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import formats
import numpy as np
import photographs
import pytest
import stores
from formats import KINDS, Kind
from fuelrail import ConfigError, FuelrailError, Mix, Source, SourceError
from support import (
    AUGMENT,
    GATE,
    SLACK,
    TINY,
    Footprint,
    Loader,
    Script,
    T,
    at_most,
    digests,
    indices,
    row_digests,
    seeds,
)

#: The same behind a network: what each is a kind of.
REMOTE = {
    f"{place} {name}": name
    for place, names in {
        "s3": ("folder", "tar", "parquet", "csv", "hdf5", "npy"),
        "http": ("tar", "parquet", "csv", "hdf5", "npy"),
    }.items()
    for name in names
}
NAMES = [*KINDS, *REMOTE]
ONCE = [name for name in NAMES if KINDS[REMOTE.get(name, name)].once]
FILES = [name for name in NAMES if KINDS[REMOTE.get(name, name)].holds == "files"]
PIXELS = [name for name in NAMES if KINDS[REMOTE.get(name, name)].holds == "pixels"]


@dataclass
class Made:
    """A source of some images."""

    kind: Kind
    source: Source | Mix
    #: The files it is made of, here or before they were uploaded.
    files: list[Path]
    #: Hands changed files to the server.
    publish: Any = lambda: None

    def loader(self, transforms: list[Any] = TINY, **options: Any) -> Loader:
        """A loader of it; records without images take no transforms."""
        own = dict(self.kind.options)
        if "weights" in own:
            with Loader(self.source, transforms=transforms) as plain:
                own["weights"] = own["weights"](plain.num_samples)
        if self.kind.holds != "tokens":
            options["transforms"] = transforms
        return Loader(self.source, **own, **options)


class Maker:
    """Makes sources of any name in NAMES; its servers start when one is asked for."""

    def __init__(self, root: Path, environment: pytest.MonkeyPatch) -> None:
        self._root, self._environment = root, environment
        self._count = 0
        self._servers: dict[str, Any] = {}
        self._contexts: list[Any] = []

    def __call__(self, name: str, images: Path) -> Made:
        self._count += 1
        prefix = f"{self._count:03}"
        into = self._root / prefix
        into.mkdir()
        kind = KINDS[REMOTE.get(name, name)]
        source = kind.make(images, into)
        files = sorted(path for path in into.rglob("*") if path.is_file())
        if name not in REMOTE:
            return Made(kind, source, files)
        place = name.split()[0]
        server = self.server(place)
        if name.endswith("csv"):
            # A list behind a network is of files on this machine.
            source._options["root"] = into
        addresses = [
            f"{server.address}{prefix}{address.removeprefix(str(into))}" for address in source._addresses
        ]

        def publish() -> None:
            if place != "http":
                server.upload(into, f"{prefix}/")
                for file in files:
                    if not file.exists():
                        server.delete(f"{prefix}/{file.relative_to(into)}")

        publish()
        return Made(kind, Source(addresses, **source._options), files, publish)

    def server(self, place: str) -> Any:
        if place not in self._servers:
            if place == "http":
                self._servers[place] = stores.Web(self._root)
            else:
                context = stores.running(place, self._root / "server")
                self._servers[place] = context.__enter__()
                self._contexts.append(context)
                for variable, value in self._servers[place].environment.items():
                    self._environment.setenv(variable, value)
        return self._servers[place]

    def stop(self) -> None:
        for context in self._contexts:
            context.__exit__(None, None, None)
        if "http" in self._servers:
            self._servers["http"].stop()


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        maker = Maker(tmp_path_factory.mktemp("sources"), environment)
        # Before the first loader: this process's daemon inherits the environment that it is started in.
        maker.server("s3")
        yield maker
        maker.stop()


@pytest.fixture(scope="session")
def shared(make: Maker, images: Path) -> Any:
    """Each name's source of the same images, made once and left alone."""
    made: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in made:
            made[name] = make(name, images)
        return made[name]

    return get


OPTIONS: dict[str, Any] = {"shuffle": True, "seed": 5, "batch_size": 7}


# What is in it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_kind_holds_the_images_of_the_folder_in_its_order(name: str, images: Path, shared: Any) -> None:
    plain: dict[str, Any] = {"transforms": [T.Resize((24, 24))], "batch_size": 10}
    with Loader(images, **plain) as folder, shared(name).loader(**plain) as loader:
        assert loader.num_samples == folder.num_samples
        for ours, theirs in zip(loader, folder, strict=True):
            assert np.array_equal(ours["image"], theirs["image"])
            assert np.array_equal(ours["label"], theirs["label"])


@pytest.mark.parametrize("name", PIXELS)
def test_every_kind_of_array_holds_the_pixels_that_were_saved(name: str, images: Path, shared: Any) -> None:
    expected, labels = formats.pixels(images)
    with shared(name).loader([T.CenterCrop(24)], batch_size=10, layout="nhwc") as loader:
        batches = list(loader)
    assert np.array_equal(
        np.concatenate([batch["image"] for batch in batches]).transpose(0, 2, 3, 1), expected
    )
    assert np.array_equal(np.concatenate([batch["label"] for batch in batches]), labels)


def test_fields_arrive_as_tensors_of_the_same_batch(images: Path, tmp_path: Path) -> None:
    source = formats.parquet(images, tmp_path)
    options = {**source._options, "fields": ["box"]}
    with Loader(Source(source._addresses, **options), transforms=TINY, batch_size=9, shuffle=True) as loader:
        assert loader.shapes == {"image": (3, 8, 8), "box": (4,)}
        for batch in loader:
            assert batch["box"].dtype == np.float32 and batch["box"].shape == (batch.rows, 4)
            assert np.array_equal(batch["box"][:, 0], batch["index"].astype(np.float32))


# Order ----------------------------------------------------------------------------------------------------------------


def epochs(made: Made, world: int, count: int, **options: Any) -> list[tuple[list[int], list[int]]]:
    """For each epoch (positions, record numbers) in the order of the positions, over all ranks."""
    loaders = [made.loader(rank=rank, world_size=world, **options) for rank in range(world)]
    try:
        found = []
        for _ in range(count):
            pairs = []
            for loader in loaders:
                for batch in loader:
                    pairs += zip(batch["position"].tolist(), batch["index"].tolist(), strict=True)
            pairs.sort()
            found.append(([position for position, _ in pairs], [index for _, index in pairs]))
        return found
    finally:
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_count_delivers_the_same_epoch_and_each_sample_once(name: str, shared: Any) -> None:
    made = shared(name)
    options = {**OPTIONS, "batch_size": 4}
    alone = epochs(made, 1, 2, **options)
    assert alone[0] != alone[1], "every epoch has an order of its own"
    for positions, records in alone:
        assert positions == list(range(len(records)))
        if name in ONCE:
            assert sorted(records) == list(range(len(records)))
    for world in (2, 4):
        assert epochs(made, world, 2, **options) == alone


#: Records of the long form, a prime: 100,003 tiny images of few contents.
MANY = 100_003
#: Not at 100,003: one request an object, or one small file each in one process's cache.
FEW = {"s3 folder", "s3 csv", "http csv"}


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,003 links to a few tiny images."""
    few = photographs.folder(tmp_path_factory.mktemp("few"), 40, seed=2, least=8, most=12)
    kept = sorted(path for path in few.rglob("*") if path.is_file())
    root = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        file = kept[number % len(kept)]
        folder = root / f"class-{number % 3}"
        folder.mkdir(exist_ok=True)
        # A file system bounds the links to one file.
        if number // len(kept) % 1000 == 0:
            shutil.copy(file, folder / f"{number:06}{file.suffix}")
            kept[number % len(kept)] = folder / f"{number:06}{file.suffix}"
        else:
            os.link(file, folder / f"{number:06}{file.suffix}")
    return root


@pytest.mark.skipif(not GATE, reason="the long form: FUELRAIL_GATE=1")
@pytest.mark.parametrize("name", [name for name in ONCE if name not in FEW])
def test_100003_samples_come_once_an_epoch_over_four_ranks(name: str, many: Path, make: Maker) -> None:
    made = make(name, many)
    try:
        options = {"shuffle": True, "seed": 3, "batch_size": 128}
        loaders = [made.loader(rank=rank, world_size=4, **options) for rank in range(4)]
        total = loaders[0].num_samples
        assert total > MANY // 2
        for _ in range(3):
            seen = np.zeros(total, np.int64)
            for loader in loaders:
                np.add.at(seen, np.array(indices(loader)), 1)
            assert (seen == 1).all(), (int((seen == 0).sum()), int((seen > 1).sum()))
        print(f"{name}: {total} records x 3 epochs x 4 ranks, 0 missing, 0 twice")
        for loader in loaders:
            loader.close()
    finally:
        for file in made.files:
            file.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(name: str, shared: Any) -> None:
    with shared(name).loader(AUGMENT, num_workers=1, **OPTIONS) as one:
        expected = digests(one)
    other = {"num_workers": 3, "prefetch_factor": 5, "read_backend": "threads", "read_ahead_bytes": 100_000}
    with shared(name).loader(AUGMENT, **other, **OPTIONS) as three:
        assert digests(three) == expected


@pytest.mark.deadline(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_token_taken_at_every_step_restores_the_same_rest(name: str, shared: Any) -> None:
    # The long form stops after every single sample.
    options = {**OPTIONS, "batch_size": 1 if GATE else 7}
    with shared(name).loader(AUGMENT, **options) as loader:
        tokens, batches = [], []
        for batch in loader:
            batches.append(row_digests([batch]))
            tokens.append(loader.state_dict())
        sizes = {len(json.dumps(token)) for token in tokens}
        assert max(sizes) < 4096 and max(sizes) - min(sizes) < 8, "all that grows are the position's digits"
        for step, token in enumerate(tokens):
            loader.load_state_dict(token)
            rest = row_digests(loader) if loader.epoch == 0 else {}
            expected = {p: row for later in batches[step + 1 :] for p, row in later.items()}
            assert rest == expected, step


@pytest.mark.parametrize("name", [*FILES, *PIXELS])
def test_a_split_is_two_parts_of_any_source(name: str, shared: Any) -> None:
    source = shared(name).source
    keys = []
    for split in ("train[:70%]", "train[70%:]"):
        part = Source(source._addresses, **{**source._options, "split": split})
        with Loader(part, transforms=TINY, batch_size=61) as loader:
            keys.append({key for batch in loader for key in loader.keys(batch)})
    assert len(keys[0]) + len(keys[1]) == 61 and not keys[0] & keys[1]


# Bad records ----------------------------------------------------------------------------------------------------------

#: The record that is damaged, in the order of the folder.
DAMAGED = 30


@pytest.fixture(scope="session")
def damaged(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, one of them cut short."""
    root = tmp_path_factory.mktemp("damaged") / "images"
    shutil.copytree(images, root)
    path = root / list(formats.members(images))[DAMAGED][0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return root


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name in FILES or KINDS.get(name, KINDS["npy"]).holds == "other"]
)
def test_a_damaged_member_is_replaced_left_out_or_fatal_as_told_and_is_named(
    name: str, images: Path, damaged: Path, make: Maker, shared: Any, tmp_path: Path
) -> None:
    if name == "synthetic":
        pytest.skip("it has no bytes to damage; corrupt_rate plants faults, see test_errors.py")
    # Which rows held it, by its pixels in the undamaged source.
    chain: list[Any] = [T.Resize((24, 24))]
    with Loader(images, transforms=chain) as folder:
        wanted = next(batch["image"][0] for batch in folder if batch["index"][0] == DAMAGED)
    order: dict[str, Any] = {"shuffle": True, "seed": 8, "batch_size": 5}
    places, keys, total = [], set(), 0
    with shared(name).loader(chain, **order) as loader:
        for batch in loader:
            total += batch.rows
            for row, key in enumerate(loader.keys(batch)):
                if np.array_equal(batch["image"][row], wanted):
                    places.append(int(batch["position"][row]))
                    keys.add(key)
    assert places or name in ("split", "weighted mix", "class shares"), "the damaged record is drawn"

    made = make(name, damaged)
    order |= {"error_budget": 40}
    quarantine = tmp_path / "quarantine.jsonl"
    with made.loader(chain, quarantine=quarantine, **order) as loader:
        found = [
            int(position)
            for batch in loader
            for position, flag in zip(batch["position"], batch["substituted"], strict=True)
            if flag
        ]
    assert sorted(found) == sorted(places)
    named = {json.loads(line)["key"] for line in quarantine.read_text().splitlines()} if places else set()
    assert named == keys
    with made.loader(chain, on_error="drop", **order) as loader:
        delivered = [position for batch in loader for position in batch["position"].tolist()]
    assert sorted(delivered) == sorted(set(range(total)) - set(places))
    if places:
        with (
            made.loader(chain, on_error="fail", **order) as loader,
            pytest.raises(FuelrailError) as raised,
        ):
            list(loader)
        assert any(key in str(raised.value) for key in keys), raised.value


def test_a_damaged_chunk_spoils_its_own_records_only(images: Path, make: Maker) -> None:
    import h5py

    made = make("hdf5 pixels", images)
    with h5py.File(made.files[0]) as file:
        chunk = file["images"].id.get_chunk_info(3)
        per_chunk = file["images"].chunks[0]
    with made.files[0].open("r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(b"\xff" * 40)
    with made.loader(batch_size=61, error_budget=20, on_error="drop") as loader:
        left = indices(loader)
    first = chunk.chunk_offset[0]
    assert left == [index for index in range(61) if not first <= index < first + per_chunk]


def test_a_null_among_tokens_spoils_its_own_document_only(images: Path, make: Maker) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = make("padded tokens", images)
    documents: list[Any] = formats.documents(images)
    documents[DAMAGED] = [1, None, 2]
    ids = pa.table({"input_ids": pa.array(documents, pa.list_(pa.int32()))})
    pq.write_table(ids, made.files[0], row_group_size=9)
    with made.loader(batch_size=61, error_budget=20, on_error="drop") as loader:
        assert indices(loader) == [index for index in range(61) if index != DAMAGED]


# Sources that are none ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", NAMES)
def test_a_source_without_records_is_refused(name: str, make: Maker, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "bridge").mkdir(parents=True)
    with pytest.raises((SourceError, ConfigError)) as raised:
        make(name, empty).loader()
    assert len(str(raised.value)) > 20, raised.value
    print(raised.value)


# Sources that change --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def others(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the same names with each other's contents, and one fewer: another version of the same data set."""
    root = tmp_path_factory.mktemp("others") / "images"
    listed = list(formats.members(images))
    for (key, _, _, _), (_, _, _, data) in itertools.pairwise(listed):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    return root


#: What is read of these is a copy (unpacked, or in memory), which nobody changed.
COPIES = {"tar.gz", "tar.zst", "synthetic"}


@pytest.mark.parametrize("how", ["cut", "replaced", "vanished"])
@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_changes_under_a_run_stops_it_by_name_and_never_mixes_versions(
    name: str, how: str, images: Path, others: Path, make: Maker, shared: Any
) -> None:
    options: dict[str, Any] = {"batch_size": 1, "seed": 2, "shuffle": True}
    with shared(name).loader(**options) as loader:
        before = {(epoch, place): row for epoch in range(3) for place, row in row_digests(loader).items()}
    made = make(name, images)
    if name in REMOTE:
        # Without it, one fetch brings a whole small object here, and what happens to the original no longer matters.
        made.source = Source(made.source._addresses, **{**made.source._options, "cache_limit": 0})
    with made.loader(read_ahead_bytes=1, prefetch_factor=1, **options) as loader:
        seen = [batch for _, batch in zip(range(2), loader, strict=False)]
        if how == "replaced":
            other = make(name, others)
            for file, new in zip(made.files, other.files, strict=False):
                new.replace(file)
        for file in made.files:
            if how == "cut":
                os.truncate(file, file.stat().st_size // 3)
            elif how == "vanished":
                file.unlink()
        made.publish()
        error = None
        try:
            # The first epoch was left; two whole ones follow.
            for _ in range(2):
                for batch in loader:
                    seen.append(batch)
        except FuelrailError as raised:
            error = str(raised)
    for batch in seen:
        for place, row in row_digests([batch]).items():
            of = f"record {batch['index'].tolist()}, substituted {batch['substituted'].tolist()}"
            assert row == before[batch.epoch, place], f"{(batch.epoch, place)} is of another version: {of}"
    if error is None:
        assert name in COPIES, f"nothing was noticed in {len(seen)} rows"
    else:
        assert any(file.name in error for file in made.files), error


# Leaving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_leaving_in_the_middle_leaves_at_once(name: str, shared: Any) -> None:
    with shared(name).loader(AUGMENT, **OPTIONS) as loader:
        next(iter(loader))
        with at_most(1 * SLACK, "closing a loader in the middle of an epoch"):
            loader.close()


READS = """
from fuelrail.numpy import Loader
options = json.loads(sys.argv[1])
with Loader(options.pop("source"), **options) as loader:
    for epoch in range(1_000_000):
        for batch in loader:
            if epoch == 0 and batch.position == 0:
                say("reads")
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_that_is_interrupted_or_killed_leaves_nothing(
    name: str, shared: Any, footprint: Footprint
) -> None:
    made = shared(name)
    options = {"source": made.source.config(), "batch_size": 3, "shuffle": True, **made.kind.options}
    options.pop("weights", None)
    if made.kind.holds != "tokens":
        options["transforms"] = [{"type": "Resize", "size": [8, 8]}]
    for number in (signal.SIGINT, signal.SIGKILL):
        with Script(READS, json.dumps(options), footprint=footprint) as script:
            assert script.hears() == "reads"
            script.signal(number)
            with at_most(2 * SLACK, "ending"):
                script.ends()
        footprint.is_clean()
