"""Bad input: every file and every argument that is wrong gets a named error, or is substituted and reported."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from fuelrail import ConfigError, DataError, EnvironmentFailure, SourceError
from PIL import Image
from support import AUGMENT, GATE, TINY, Footprint, Loader, Script, T, digests, row_digests, state_of

# Files --------------------------------------------------------------------------------------------------------------


def jpeg(width: int = 120, height: int = 90, seed: int = 3) -> bytes:
    out = io.BytesIO()
    photographs.photograph(seed, width, height).save(out, "JPEG")
    return out.getvalue()


def png(width: int = 120, height: int = 90, seed: int = 3) -> bytes:
    out = io.BytesIO()
    photographs.photograph(seed, width, height).save(out, "PNG")
    return out.getvalue()


def bomb_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """Valid chunks that announce 10.8 GB of pixels and bring some thousand bytes of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(5_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb_jpeg(width: int = 60_000, height: int = 60_000) -> bytes:
    """A real JPEG whose frame header says another size."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")

BAD: dict[str, Callable[[], tuple[str, bytes]]] = {
    "truncated JPEG": lambda: ("bad.jpg", jpeg()[: len(jpeg()) // 2]),
    "JPEG that ends in its header": lambda: ("bad.jpg", jpeg()[:100]),
    "truncated PNG": lambda: ("bad.png", png()[: len(png()) // 2]),
    "text named .jpg": lambda: ("bad.jpg", b"this is not an image\n"),
    "empty file": lambda: ("bad.jpg", b""),
    "one byte": lambda: ("bad.jpeg", b"\xff"),
    "PNG header of 60,000 x 60,000": lambda: ("bad.png", bomb_png()),
    "JPEG header of 60,000 x 60,000": lambda: ("bad.jpg", bomb_jpeg()),
    "PNG of no pixels": lambda: ("bad.png", bomb_png(0, 10)),
}

CHAIN = [T.RandomResizedCrop(24), T.RandomHorizontalFlip(), T.ColorJitter(0.3)]


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A folder with 20 good files, one bad and one good twin of it: (folder, key of the bad one, what it is)."""
    name, content = BAD[request.param]()
    folder = photographs.folder(tmp_path / "data", 20, seed=7, most=100)
    key = f"forest/{name}"
    (folder / key).write_bytes(content)
    # The same folder with a good file in its place, to compare the neighbours with.
    shutil.copytree(folder, tmp_path / "good")
    (tmp_path / "good" / key).write_bytes(jpeg() if name.endswith("g") else b"")
    return folder, key, request.param


def rows_without(batches: list[Any], position: int) -> dict[int, str]:
    return {at: row for at, row in row_digests(batches).items() if at != position}


# A bad record ----------------------------------------------------------------------------------------------------------


def test_a_bad_file_is_substituted_flagged_and_listed(
    bad: tuple[Path, str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, key, _ = bad
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    options = {"transforms": CHAIN, "batch_size": 4, "shuffle": True, "seed": 2}
    with Loader(tmp_path / "good", **options) as loader:
        good = list(loader)
        keys = {p: k for b in good for p, k in zip(b["position"].tolist(), loader.keys(b), strict=True)}
        place = next(position for position, name in keys.items() if name == key)
    with Loader(folder, quarantine=quarantine, **options) as loader:
        batches = list(loader)
        assert [batch.rows for batch in batches] == [4, 4, 4, 4, 4, 1], "shapes and counts stay"
        flags = {
            p: f
            for b in batches
            for p, f in zip(b["position"].tolist(), b["substituted"].tolist(), strict=True)
        }
        assert [position for position, flag in flags.items() if flag] == [place]
        # The row says which record it really holds.
        batch = batches[place // 4]
        stand_in = loader.keys(batch)[place % 4]
        assert stand_in != key
        assert loader.classes[batch["label"][place % 4]] == stand_in.split("/")[0]
        # Batches that are ready for the next epoch are counted already.
        assert loader.stats()["substituted"] in (1, 2)
        assert rows_without(batches, place) == rows_without(good, place), "neighbours are byte-identical"
        # Epoch after epoch; the list has it once.
        assert sum(batch["substituted"].sum() for batch in loader) == 1
        assert loader.stats()["substituted"] in (2, 3)
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert len(lines) == 1
    assert (
        lines[0]["key"] == key and lines[0]["reason"] and lines[0]["bytes"] == (folder / key).stat().st_size
    )
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(key in text and lines[0]["reason"] in text for text in warnings), warnings


def test_a_bad_file_is_dropped_where_that_is_asked_for(bad: tuple[Path, str, str], tmp_path: Path) -> None:
    folder, key, _ = bad
    options = {"transforms": CHAIN, "batch_size": 4, "shuffle": True, "seed": 2, "on_error": "drop"}
    with Loader(tmp_path / "good", **options) as loader:
        good = row_digests(loader)
    with Loader(folder, **options) as loader:
        batches = list(loader)
        assert len(batches) == 6, "never the number of batches"
        assert sum(batch.dropped for batch in batches) == 1 and loader.stats()["dropped"] in (1, 2)
        assert sum(batch.rows for batch in batches) == 20
        assert all(batch["image"].shape[0] == len(batch["label"]) == batch.rows for batch in batches)
        assert key not in [name for batch in batches for name in loader.keys(batch)]
        rows = row_digests(batches)
        assert rows == {position: row for position, row in good.items() if position in rows}


def test_a_bad_file_stops_the_run_where_that_is_asked_for(bad: tuple[Path, str, str]) -> None:
    folder, key, _ = bad
    with Loader(folder, transforms=CHAIN, batch_size=4, on_error="fail") as loader:
        at = sorted(path.name for path in (folder / "forest").iterdir())
        assert key.split("/")[1] in at
        seen = []
        with pytest.raises(DataError, match=key):
            for batch in loader:
                seen.append(batch)
        assert not any(key in loader.keys(batch) for batch in seen)
        # The daemon is well: asked again, the run stops at the same place.
        loader.set_epoch(0)
        with pytest.raises(DataError, match=key):
            assert len(list(loader)) < 0


def test_the_same_bad_files_give_the_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    folder = photographs.folder(tmp_path / "data", 40, seed=8, most=90)
    for number, make in enumerate(BAD.values()):
        name, content = make()
        (folder / "harbour" / f"{number}{name}").write_bytes(content)
    options = {
        "transforms": AUGMENT,
        "batch_size": 5,
        "shuffle": True,
        "error_budget": 100,
        "max_sample_bytes": 1 << 24,
    }
    for on_error in ("substitute", "drop"):
        runs = []
        for threads, backend in ((1, "threads"), (8, "io_uring"), (3, "auto")):
            quarantine = tmp_path / f"{on_error}{threads}.jsonl"
            changes = {"num_workers": threads, "read_backend": backend, "quarantine": quarantine}
            with Loader(folder, on_error=on_error, **options, **changes) as loader:
                runs.append((digests(loader), digests(loader), quarantine.read_text()))
        assert runs[0] == runs[1] == runs[2]


def test_more_bad_records_than_the_budget_stop_the_run_with_the_list(tmp_path: Path) -> None:
    folder = photographs.folder(tmp_path / "data", 12, seed=9, most=80)
    for number in range(3):
        (folder / "bridge" / f"broken{number}.jpg").write_bytes(b"nothing")
    for tolerated in (0, 2):
        with Loader(folder, transforms=CHAIN, error_budget=tolerated, batch_size=4) as loader:
            with pytest.raises(DataError, match="error_budget") as error:
                for _ in range(2):
                    list(loader)
            text = str(error.value)
            assert f"{tolerated + 1} bad records exceed the limit of {tolerated} (error_budget)" in text
            assert text.count("bridge/broken") == tolerated + 1
    with Loader(folder, transforms=CHAIN, error_budget=3, batch_size=4) as loader:
        for _ in range(4):
            assert sum(batch.rows for batch in loader) == 15, "each is counted once, however often it is met"


def test_a_folder_of_nothing_but_bad_files_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "data" / "a" / f"{number}.jpg").write_bytes(b"no")
    for on_error, reason in (
        ("substitute", r"substitutes in a row were bad records too; the last: a/\d\.jpg: "),
        ("fail", "a/0.jpg"),
    ):
        with (
            Loader(tmp_path / "data", transforms=CHAIN, on_error=on_error, error_budget=99) as loader,
            pytest.raises(DataError, match=reason),
        ):
            list(loader)
    with Loader(
        tmp_path / "data", transforms=CHAIN, on_error="drop", error_budget=99, batch_size=2
    ) as loader:
        assert [batch.rows for batch in loader] == [0, 0, 0]


def test_injected_corruption_at_a_high_rate_keeps_every_batch_whole() -> None:
    source = "synthetic://?count=500&corrupt_rate=0.3"
    with Loader(source, transforms=TINY, batch_size=16, error_budget=500, shuffle=True) as loader:
        for _ in range(2):
            batches = list(loader)
            assert [batch.rows for batch in batches] == [16] * 31 + [4]
            assert 90 < sum(batch["substituted"].sum() for batch in batches) < 210


def test_an_unwritable_quarantine_list_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = photographs.folder(tmp_path / "data", 6, seed=9, most=80)
    (folder / "bridge").mkdir(exist_ok=True)
    (folder / "bridge" / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "file").write_text("")
    with Loader(folder, transforms=CHAIN, quarantine=tmp_path / "file" / "list.jsonl") as loader:
        assert sum(batch.rows for batch in loader) == 7
    assert any("quarantine list" in record.getMessage() for record in caplog.records)


# A broken environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
@pytest.mark.parametrize("change", ["removed", "truncated", "grown", "unreadable"])
def test_a_file_that_changes_under_the_run_stops_it_by_name(
    change: str, backend: str, tmp_path: Path
) -> None:
    if change == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    folder = photographs.folder(tmp_path / "data", 30, seed=4, most=80)
    with Loader(folder, transforms=CHAIN, batch_size=2, prefetch_factor=1, read_backend=backend) as loader:
        iterator = iter(loader)
        next(iterator)
        victim = sorted(path for path in folder.rglob("*") if path.is_file())[-1]
        if change == "removed":
            victim.unlink()
        elif change == "truncated":
            os.truncate(victim, victim.stat().st_size // 2)
        elif change == "grown":
            victim.write_bytes(victim.read_bytes() + bytes(5000))
        else:
            victim.chmod(0)
        with pytest.raises(SourceError, match=victim.name) as error:
            list(iterator)
        assert isinstance(error.value, OSError)
        # Not a verdict about the record: nothing was substituted.
        assert loader.stats()["substituted"] == 0
        assert state_of(loader.daemon_pid) is not None


def test_a_read_that_fails_for_good_stops_the_run_by_name_and_a_flaky_one_does_not() -> None:
    with Loader("synthetic://?count=300&flaky_rate=0.2", transforms=TINY, batch_size=10) as loader:
        assert sum(batch.rows for batch in loader) == 300
    with (
        Loader("synthetic://?count=300&fail_rate=0.02", transforms=TINY, batch_size=10) as loader,
        pytest.raises(SourceError, match=r"class-\d/\d+\.bmp.*injected"),
    ):
        list(loader)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text" / "a").mkdir(parents=True)
    (tmp_path / "text" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "file").write_text("")
    for name, reason in {
        "missing": "does not exist",
        "empty": "no images",
        "text": "no images",
        "file": "what this file is by its ending",
    }.items():
        with pytest.raises(SourceError, match=f"{tmp_path / name}.*{reason}|{reason}.*{tmp_path / name}"):
            Loader(tmp_path / name, transforms=TINY)


def test_what_cannot_fit_in_memory_is_refused_at_the_start() -> None:
    with pytest.raises(EnvironmentFailure, match=r"ring .*batch_size"):
        Loader("synthetic://?count=100000", transforms=[T.Resize((8000, 8000))], batch_size=100_000)


@pytest.mark.parametrize("wrong", ["/nonexistent/fuelrail", "/bin/true", "/bin/cat", "/etc/hostname"])
def test_a_binary_that_is_missing_or_no_daemon_is_an_error_and_no_hang(
    wrong: str, footprint: Footprint
) -> None:
    code = """
        from fuelrail import FuelrailError
        from fuelrail.numpy import Loader, transforms as T
        os.environ["FUELRAIL_BINARY"] = sys.argv[1]
        try:
            Loader("synthetic://?count=10", transforms=[T.Resize((8, 8))], timeout=5)
        except FuelrailError as error:
            say([type(error).__name__, str(error)])
    """
    with Script(code, wrong, footprint=footprint) as script:
        kind, text = script.hears()
        if not os.access(wrong, os.X_OK):
            assert kind == "EnvironmentFailure" and wrong in text
        assert script.ends() == 0
        footprint.is_clean()


# Wrong arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "advice"),
    [
        ("shufle", True, r"shuffle="),
        ("batchsize", 3, r"batch_size="),
        ("workers", 3, r"num_workers="),
        ("nonsense_of_any_kind", 3, r"it takes .*batch_size"),
        ("sampler", [1], r"shuffle="),
        ("batch_sampler", [1], r"batch_size="),
        ("collate_fn", len, r"after taking it"),
        ("worker_init_fn", len, r"seed="),
        ("generator", 1, r"seed="),
        ("pin_memory_device", "cuda", r"device="),
        ("persistent_workers", True, r"daemon"),
        ("multiprocessing_context", "fork", r"threads"),
    ],
)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_an_unknown_argument_is_a_type_error_with_advice(
    argument: str, value: Any, advice: str, framework: str
) -> None:
    pytest.importorskip(framework)
    loader = __import__(f"fuelrail.{framework}", fromlist=["Loader"]).Loader
    with pytest.raises(TypeError, match=f"{argument}.*{advice}"):
        loader("synthetic://?count=10", transforms=TINY, **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("batch_size", 2.5),
        ("batch_size", "8"),
        ("batch_size", None),
        ("seed", -1),
        ("seed", 1 << 70),
        ("num_workers", -1),
        ("num_workers", 5000),
        ("prefetch_factor", 0),
        ("prefetch_factor", 1000),
        ("on_error", "ignore"),
        ("read_backend", "aio"),
        ("layout", "chw"),
        ("dtype", "float8"),
        ("dtype", "int64"),
        ("error_budget", -1),
        ("error_budget", "many"),
        ("read_ahead_bytes", -5),
        ("max_sample_bytes", -5),
        ("timeout", -1),
        ("rank", 1),
        ("rank", -1),
        ("world_size", -1),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_argument(argument: str, value: Any) -> None:
    with pytest.raises((ConfigError, ValueError, TypeError), match=argument.removesuffix("_backend")):
        Loader("synthetic://?count=10", transforms=TINY, **{argument: value})


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ([{"type": "Rezise", "size": 8}], ["Rezise", "Resize"]),
        ([{"size": 8}], ["type"]),
        ([{"type": "Resize", "sze": [8, 8]}], ["transforms[0]", "Resize", "sze", "size"]),
        ([*TINY, {"type": "RandomHorizontalFlip", "p": "x"}], ["transforms[1]", "RandomHorizontalFlip"]),
        ([T.Resize((8, 8), interpolation="cubic")], ["Resize", "cubic", "bicubic"]),
        ([T.Resize((8, -8))], ["Resize", "-8"]),
        ([T.Resize((100_000, 100_000))], ["Resize", "size", "65500"]),
        ([*TINY, T.RandomHorizontalFlip(2)], ["transforms[1]", "RandomHorizontalFlip", "p "]),
        ([*TINY, T.GaussianBlur(4)], ["GaussianBlur", "kernel_size", "odd"]),
        ([*TINY, T.ColorJitter(hue=0.9)], ["ColorJitter", "hue"]),
        ([*TINY, T.Normalize((0.5,) * 3, (0,) * 3)], ["Normalize", "std"]),
        ([*TINY, T.Normalize((0.5,) * 2, (1,) * 2)], ["Normalize", "2", "3"]),
        ([T.Normalize((0.5,) * 3, (1,) * 3), *TINY], ["transforms[1] Resize", "Normalize"]),
        ([], ["fixed output size", "Resize"]),
        ([T.Resize(8)], ["fixed output size", "CenterCrop"]),
        ([T.RandomRotation(10, expand=True)], ["fixed output size"]),
        ([lambda image: image], ["transforms[0]", "function"]),
        ([Image.Image()], ["transforms[0]", "Image"]),
    ],
)
def test_a_wrong_transform_is_refused_by_position_name_and_argument(
    chain: list[Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        Loader("synthetic://?count=10", transforms=chain)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_misspelt_transform_argument_is_a_type_error_like_any_other() -> None:
    with pytest.raises(TypeError, match="sizes"):
        T.Resize(sizes=8)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ftp://host/path", ["ftp://", "no source"]),
        ("synthetic://?cont=10", ["cont", "count"]),
        ("synthetic://?count=0", ["count"]),
        ("synthetic://?count=many", ["many"]),
        ("unix:///run/fuelrail.sock", ["pipeline="]),
    ],
)
def test_a_wrong_source_address_is_refused_with_what_is_wrong(source: str, words: list[str]) -> None:
    with pytest.raises((ConfigError, SourceError)) as error:
        Loader(source, transforms=TINY)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("split", ["train", "train[90%]", "train[:190%]", "train[10:20]", ""])
def test_a_split_that_is_not_understood_is_refused_with_an_example(split: str, images: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\[:90%\]"):
        Loader(images, split=split, transforms=TINY)


def test_parts_of_a_split_do_not_overlap_and_lose_nothing(images: Path) -> None:
    keys = []
    for split in ("train[:70%]", "train[70%:]"):
        with Loader(images, split=split, transforms=TINY, batch_size=8) as loader:
            keys.append({key for batch in loader for key in loader.keys(batch)})
            assert loader.classes == list(photographs.CLASSES)
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 61 and 5 <= len(keys[1]) <= 35


def test_classes_fix_the_labels_of_a_folder_that_lacks_one(images: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    shutil.copytree(images / "harbour", val / "harbour")
    with (
        Loader(images, transforms=TINY) as train,
        Loader(val, transforms=TINY, classes=train.classes) as loader,
    ):
        assert loader.class_to_idx == train.class_to_idx == {"bridge": 0, "forest": 1, "harbour": 2}
        assert {int(label) for batch in loader for label in batch["label"]} == {2}
    (val / "lighthouse").mkdir()
    shutil.copy(next((images / "harbour").rglob("*.jpg")), val / "lighthouse" / "1.jpg")
    with pytest.raises((SourceError, ConfigError), match="lighthouse"):
        Loader(val, transforms=TINY, classes=["bridge", "forest", "harbour"])


# Hostile files ---------------------------------------------------------------------------------------------------------


def check_corpus(files: list[Path], folder: Path) -> None:
    """Loads hostile files among good ones; the good ones must not notice."""
    # Thousands of warnings, one for each bad record, would bury what a failure has to say.
    logging.getLogger("fuelrail").setLevel(logging.ERROR)
    good = sorted(path for path in photographs.folder(folder / "good", 24, seed=12, most=120).rglob("*.*"))
    mixed = folder / "mixed"
    for name in ("good", "hostile"):
        (mixed / name).mkdir(parents=True)
    # Five good ones for each: nine bad draws in a row, which would rightly end a run, will not happen.
    for number in range(5 * len(files)):
        file = good[number % len(good)]
        (mixed / "good" / f"{number:05}{file.suffix}").symlink_to(file)
    places = {}
    for number, file in enumerate(files):
        # The format is recognised by content: a wrong ending must not protect a file from being tried.
        ending = file.suffix.lower() if file.suffix.lower() in ENDINGS else ".jpg"
        places[mixed / "hostile" / f"{number:05}{ending}"] = file
    for place in places:
        place.symlink_to(good[0])
    options: dict[str, Any] = {
        "transforms": [T.RandomResizedCrop(32)],
        "batch_size": 16,
        "shuffle": True,
        "num_workers": 2,
        "max_sample_bytes": 64 << 20,
        "timeout": 60,
        "error_budget": 100_000,
    }
    with Loader(mixed, **options) as loader:
        expected = row_digests(loader)
    for place, file in places.items():
        place.unlink()
        place.symlink_to(file)
    for on_error in ("substitute", "drop"):
        with Loader(mixed, on_error=on_error, **options) as loader:
            batches = rows = 0
            for batch in loader:
                keys, flags = loader.keys(batch), batch["substituted"].tolist()
                for (position, row), key, flag in zip(row_digests([batch]).items(), keys, flags, strict=True):
                    if not flag and key.startswith("good"):
                        assert row == expected[position], f"position {position}, {key}, {on_error}"
                batches, rows = batches + 1, rows + batch.rows
            stats = loader.stats()
            assert batches == len(loader)
            assert rows + stats["daemon"]["dropped"] >= len(expected)
            assert state_of(loader.daemon_pid) is not None
            peak, budget = stats["peak_rss_bytes"], stats["budget"]["total"]
            assert peak <= budget, f"peak {peak >> 20} MiB, budget {budget >> 20} MiB"
            bad = stats["substituted"] + stats["dropped"]
            print(f"{len(files)} files, {on_error}: {bad} bad rows, peak {peak >> 20} MiB")


@pytest.mark.deadline(300)
def test_no_file_of_the_malformed_corpus_stops_the_daemon_or_touches_its_neighbours(
    data: Path, tmp_path: Path, rng: random.Random
) -> None:
    corpus = data / "malformed"
    if not corpus.is_dir():
        pytest.skip(f"no malformed corpus at {corpus}")
    files = sorted(path for path in corpus.rglob("*") if path.is_file() and path.stat().st_size < 64 << 20)
    if not GATE:
        files = rng.sample(files, min(len(files), 300))
    check_corpus(files, tmp_path)


@pytest.mark.deadline(300)
def test_randomly_damaged_images_stop_nothing_and_touch_no_neighbour(
    tmp_path: Path, rng: random.Random
) -> None:
    originals = []
    for suffix, options in {
        "jpg": {"quality": 85},
        "jpeg": {"progressive": True},
        "png": {},
        "gif": {},
        "bmp": {},
        "webp": {},
        "tiff": {"compression": "tiff_lzw"},
        "ppm": {},
    }.items():
        out = io.BytesIO()
        kind = {"jpg": "JPEG", "ppm": "PPM", "tiff": "TIFF"}.get(suffix, suffix.upper())
        photographs.photograph(5, 90, 70).save(out, kind, **options)
        originals.append((suffix, out.getvalue()))
    folder = tmp_path / "damaged"
    folder.mkdir()
    files = []
    for number in range(3000 if GATE else 240):
        suffix, content = originals[number % len(originals)]
        damaged = bytearray(content)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(rng.choice([1, 1, 3, 30])):
            if damaged:
                # Headers are where damage is interesting.
                at = rng.randrange(min(len(damaged), rng.choice([40, 200, len(damaged)])))
                damaged[at] = rng.choice([0, 255, 127, rng.randrange(256)])
        path = folder / f"{number:04}.{suffix}"
        path.write_bytes(damaged)
        files.append(path)
    check_corpus(files, tmp_path)


def test_a_huge_header_costs_no_memory(tmp_path: Path) -> None:
    folder = photographs.folder(tmp_path / "data", 8, seed=3, most=80)
    for number in range(40):
        make, suffix = (bomb_png, "png") if number % 2 else (bomb_jpeg, "jpg")
        (folder / "forest" / f"bomb{number}.{suffix}").write_bytes(make(20_000 + number, 65_000))
    with Loader(
        folder, transforms=CHAIN, num_workers=4, error_budget=100, on_error="drop", batch_size=8
    ) as loader:
        assert sum(batch.rows for batch in loader) == 8
        stats = loader.stats()
        assert stats["peak_rss_bytes"] < (64 << 20) + stats["ring_bytes"]


def test_special_files_and_endless_links_in_a_folder_are_not_opened(tmp_path: Path) -> None:
    folder = photographs.folder(tmp_path / "data", 6, seed=3, most=80)
    os.mkfifo(folder / "bridge" / "pipe.jpg") if (folder / "bridge").is_dir() else os.mkfifo(
        folder / "pipe.jpg"
    )
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere.jpg").symlink_to("/nonexistent")
    name = next(path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    (folder / name / "dangling.jpg").symlink_to("/nonexistent")
    (folder / name / "itself").symlink_to(".")
    with Loader(folder, transforms=CHAIN, batch_size=4, timeout=30) as loader:
        keys = [key for batch in loader for key in loader.keys(batch)]
        assert not any("pipe" in key or "dangling" in key for key in keys)
        assert all(np.isin(batch["label"], range(len(loader.classes))).all() for batch in loader)
