"""Tables against pyarrow: every value of every column, read by both, and hostile files under a memory limit.

Needs pyarrow (any recent version; 26.0 was used) and the `dump` example of the connectors; skips with a line otherwise.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import zlib
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: tables are not compared with it")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).resolve().parent.parent
DUMP = ROOT / "target" / "release" / "examples" / "dump"
NEEDS_DUMP = "cargo build --release -p fuelrail-connectors --example dump"
MEMORY = 2 << 30
# Its footer says that a list of encodings is one of bytes. The parquet crate does not read on, pyarrow does.
TOO_ODD = {"dict-page-offset-zero.parquet"}
# A date that does not fit in nanoseconds since 1970: it wraps, and in no agreed way.
BEYOND = {("int96_from_spark.parquet", 5)}

pytestmark = pytest.mark.skipif(not DUMP.exists(), reason=f"{DUMP} is missing: {NEEDS_DUMP}")


def dump(files: list[Path], **options: object) -> tuple[list[dict] | None, str]:
    """The records as JSON, or None with the message."""
    config = {"type": "table", "files": [str(file) for file in files], **options}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    done = subprocess.run(
        [DUMP, json.dumps(config), "20000"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode in (0, 1), f"{files}: died with {done.returncode}: {done.stderr[-2000:]}"
    assert "memory allocation" not in done.stderr, done.stderr
    if done.returncode == 1:
        return None, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def numeric(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return numeric(kind.value_type) and not pa.types.is_nested(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return numeric(kind.value_type)
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind))
    )


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as the integers they are stored as; dictionaries unpacked."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.cast(kind.value_type))
    if pa.types.is_temporal(kind):
        return column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return column


def flat(value: object) -> list:
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


def same(ours: object, theirs: object) -> bool:
    if isinstance(theirs, float) or (isinstance(ours, str) and not isinstance(theirs, str)):
        ours, theirs = float(ours), float(theirs)
        return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
    return type(ours) is type(theirs) and ours == theirs


def compare(path: Path, table: pa.Table, **options: object) -> int:
    """Compares each numeric column on its own: a null in one makes the record bad. Returns how many were compared."""
    compared = 0
    names = table.column_names
    for place, name in enumerate(names):
        kind = table.schema.field(place).type
        if not numeric(kind) or names.count(name) > 1 or len(table) == 0 or "[" in name:
            continue
        if name in ("image", "label", "index", "position", "substituted"):
            continue
        rows, message = dump([path], image="", label="", fields=[name], **options)
        if path.name.partition("-")[2] in TOO_ODD:
            assert rows is None and "list element type" in message, message
            continue
        assert rows is not None, f"{path} {name}: {message}"
        try:
            theirs = plain(table[name]).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError) as error:
            print(f"{path.name} {name}: pyarrow cannot say ({error})")
            continue
        assert len(rows) == min(len(theirs), 20000)
        for row, (our, their) in enumerate(zip(rows, theirs, strict=False)):
            if (path.name.partition("-")[2], row) in BEYOND:
                continue
            null = their is None or None in flat(their)
            assert ("error" in our) == null, f"{path} {name} row {row}: {our} where pyarrow has {their}"
            if not null:
                values = our["fields"][name]
                if isinstance(their, list):
                    assert len(values) == len(flat(their))
                    assert all(map(same, values, flat(their))), (
                        f"{path} {name} row {row}: {values} != {their}"
                    )
                else:
                    assert same(values, their), f"{path} {name} row {row}: {values!r} != {their!r}"
        compared += 1
    return compared


@pytest.fixture(scope="module")
def corpora() -> Path:
    folder = Path(os.environ.get("FUELRAIL_DATA", ROOT.parent / "shared" / "data")) / "malformed"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: the corpora of malformed files are not read")
    return folder


@pytest.mark.deadline(900)
def test_every_valid_parquet_file_of_the_corpora_reads_as_pyarrow_reads_it(corpora: Path) -> None:
    compared = 0
    for path in sorted(
        [*corpora.glob("parquet-testing/*.parquet"), *corpora.glob("arrow-testing/*.parquet")]
    ):
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except Exception as error:  # whatever it says: the file is not valid for it
            print(f"{path.name}: not for pyarrow ({str(error)[:80]})")
            continue
        compared += compare(path, table)
    assert compared > 50, compared


@pytest.mark.deadline(900)
def test_every_valid_arrow_file_of_the_corpora_reads_as_pyarrow_reads_it(corpora: Path) -> None:
    compared = 0
    for path in sorted(
        [*corpora.glob("arrow-testing/*.arrow_file"), *corpora.glob("arrow-testing/*.stream")]
    ):
        try:
            opener = pa.ipc.open_file if path.suffix == ".arrow_file" else pa.ipc.open_stream
            table = opener(path).read_all()
            table.validate(full=True)
        except Exception as error:  # whatever it says: the file is not valid for it
            print(f"{path.name}: not for pyarrow ({str(error)[:80]})")
            continue
        if table.schema.metadata is None or b"big" not in str(table.schema).encode():
            try:
                compared += compare(path, table, format="arrow")
            except AssertionError as error:
                if "big-endian" in str(error):
                    continue
                raise
    assert compared > 50, compared


@pytest.mark.deadline(900)
def test_no_file_of_the_corpora_crashes_hangs_or_takes_much_memory(corpora: Path) -> None:
    names = ("parquet-testing", "arrow-testing")
    files = [file for name in names for file in sorted((corpora / name).iterdir())]
    others = sorted((corpora / "seed-corpora").iterdir())
    files += others if os.environ.get("FUELRAIL_GATE") else others[:: max(1, len(others) // 40)]
    for path in files:
        for kind in ("parquet", "arrow", "csv", "jsonl"):
            if ("parquet" in path.name and kind != "parquet") or (
                "arrow-ipc" in path.name and kind != "arrow"
            ):
                continue
            for options in ({"fields": ["*"], "image": ""}, {}):
                dump([path], format=kind, **options)


@pytest.mark.deadline(300)
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_pyarrow_writes_is_read_back(tmp_path: Path, codec: str, version: str) -> None:
    rows = 1500
    images = [os.urandom(100 + row % 500) for row in range(rows)]
    table = pa.table(
        {
            "image": pa.array(images, pa.large_binary()),
            "label": pa.array([["b", "a", "c"][row % 3] for row in range(rows)]).dictionary_encode(),
            "i8": pa.array([row % 100 - 50 for row in range(rows)], pa.int8()),
            "u16": pa.array([row * 40 for row in range(rows)], pa.uint16()),
            "f16": pa.array([row / 4 for row in range(rows)], pa.float16()),
            "f64": pa.array([None if row % 7 == 0 else row / 3 for row in range(rows)]),
            "flag": pa.array([row % 2 == 0 for row in range(rows)]),
            "when": pa.array([row * 10**9 for row in range(rows)], pa.timestamp("us")),
            "vector": pa.array([[row, row + 0.5, row + 1] for row in range(rows)], pa.list_(pa.float32(), 3)),
            "grid": pa.array(
                [[[row, 1], [2, 3]] for row in range(rows)], pa.list_(pa.list_(pa.int32(), 2), 2)
            ),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(
        table,
        path,
        compression=codec,
        data_page_version=version,
        row_group_size=400,
        data_page_size=2048,
        write_page_index=version == "2.0",
        write_page_checksum=codec == "zstd",
    )
    assert compare(path, table) == 8
    records, message = dump([path])
    assert records is not None, message
    assert [record["image"] for record in records] == [[len(image), zlib.crc32(image)] for image in images]
    assert [record["label"] for record in records] == [[1, 0, 2][row % 3] for row in range(rows)]


@pytest.mark.deadline(300)
@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_feather_and_streams_of_pyarrow_are_read_back(tmp_path: Path, codec: str | None) -> None:
    rows = 700
    images = [os.urandom(50 + row % 90) for row in range(rows)]
    table = pa.table(
        {
            "image": pa.array(images, pa.binary()),
            "view": pa.array(images, pa.binary_view()),
            "label": pa.array([["b", "a", "c"][row % 3] for row in range(rows)]).dictionary_encode(),
            "f32": pa.array([None if row % 5 == 0 else row / 3 for row in range(rows)], pa.float32()),
            "vector": pa.array([[row, 2, 3] for row in range(rows)], pa.list_(pa.int64(), 3)),
        }
    )
    options = pa.ipc.IpcWriteOptions(compression=codec)
    for writer, name in ((pa.ipc.new_file, "a.feather"), (pa.ipc.new_stream, "a.arrow")):
        path = tmp_path / name
        with writer(path, table.schema, options=options) as out:
            out.write_table(table, max_chunksize=150)
        assert compare(path, table) == 2
        for column in ("image", "view"):
            records, message = dump([path], image=column)
            assert records is not None, message
            assert [record["image"] for record in records] == [
                [len(image), zlib.crc32(image)] for image in images
            ]
            assert [record["label"] for record in records] == [[1, 0, 2][row % 3] for row in range(rows)]
