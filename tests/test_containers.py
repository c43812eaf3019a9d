"""Ordinary lists, archives and arrays as people have them, beside what Python's csv, tarfile and numpy make of them."""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError, DataError, SourceError
from fuelrail.numpy import Loader, transforms
from PIL import Image

T = transforms


def picture(number: int) -> bytes:
    """A small PNG of one colour, which says which one it is."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "png")
    return file.getvalue()


def red(source: Any, **options: Any) -> list[int]:
    """The number of each picture that a source delivers, in order."""
    options = {"batch_size": 1, "transforms": [T.Resize((4, 4))], "on_error": "fail"} | options
    with Loader(source, **options) as loader:
        return [int(row) for batch in loader for row in np.asarray(batch["image"])[:, 0, 0, 0]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five pictures in it."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(picture(number))
    return folder


ROWS = [
    {"path": f"images/{number}.png", "note": note, "label": label}
    for number, (note, label) in enumerate(
        [('a, "b"; c|d', 3), ("two\nlines", 1), ("", 4), ("é", 1), ("5\t6", 5)],
    )
]


def cells(encoding: str = "utf-8", before: str = "", index: bool = False, **options: Any) -> bytes:
    """The rows as Python's csv module writes them, with an index as pandas adds one."""
    file = io.StringIO(before)
    file.seek(0, io.SEEK_END)
    rows = [{"": at} | row for at, row in enumerate(ROWS)] if index else ROWS
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode(encoding)


#: Files as people have them.
LISTS: list[tuple[str, bytes]] = [
    ("list.csv", cells()),
    ("list.csv", cells(lineterminator="\n")),
    ("list.csv", cells(delimiter=";")),
    ("list.csv", cells(delimiter="\t")),
    ("list.tsv", cells(delimiter="\t")),
    ("list.tsv", cells()),
    ("list.csv", cells(delimiter="|")),
    ("list.csv", cells(index=True)),
    ("list.csv", cells(quoting=csv.QUOTE_ALL)),
    ("list.csv", cells(encoding="utf-8-sig", delimiter=";")),
    ("list.csv", cells(before="sep=;\r\n", delimiter=";")),
    ("list.csv", cells(before="# made by hand, in a hurry\n#\n")),
    ("list.json", json.dumps(ROWS).encode()),
    ("list.json", json.dumps(ROWS, indent=2).encode("utf-8-sig")),
    ("list.json", "\n".join(map(json.dumps, ROWS)).encode()),
    ("list.jsonl", "\r\n\r\n".join(map(json.dumps, ROWS)).encode("utf-8-sig")),
    ("list.jsonl", json.dumps(ROWS).encode()),
]


@pytest.mark.parametrize("case", range(len(LISTS)))
def test_a_list_is_read_however_it_is_written(case: int, images: Path) -> None:
    name, text = LISTS[case]
    path = images.parent / name
    path.write_bytes(text)
    with Loader(path, transforms=[T.Resize((4, 4))], on_error="fail") as loader:
        batches = list(loader)
    assert [int(batch["image"][0, 0, 0, 0]) for batch in batches] == [0, 1, 2, 3, 4]
    assert [int(batch["label"][0]) for batch in batches] == [3, 1, 4, 1, 5]


def test_a_list_of_absolute_paths_needs_no_more_than_the_root_it_is_told(
    images: Path, tmp_path: Path
) -> None:
    """What find writes into a folder of lists."""
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "all.csv"
    path.write_text("path\n" + "".join(f"{images}/{number}.png\n" for number in range(5)))
    with pytest.raises(SourceError, match=f'say root="{images}"'):
        red(path)
    assert red({"address": str(path), "root": str(images)}) == [0, 1, 2, 3, 4]
    assert red({"address": str(path), "root": "/"}) == [0, 1, 2, 3, 4]
    (images / "all.csv").write_text(path.read_text())
    assert red(images / "all.csv") == [0, 1, 2, 3, 4]


def test_a_path_that_does_not_exist_is_one_bad_record(images: Path) -> None:
    path = images / "list.csv"
    path.write_text("path\n0.png\nnone.png\n2.png\n/etc/passwd\n4.png\n")
    assert red(path, on_error="drop", batch_size=5) == [0, 2, 4]
    with pytest.raises(DataError, match=r'list\.csv:1.*"none\.png" does not exist in'):
        red(path)


def test_what_is_no_list_is_named(tmp_path: Path) -> None:
    for name, text, expected in [
        ("columns.json", json.dumps({"path": ["a.jpg"], "label": [1]}, indent=1), 'orient="records"'),
        ("list.csv", "path\n".encode("utf-16"), "UTF-16"),
        ("list.csv", b"PK\x03\x04rest", "Excel"),
        ("list.csv", "a,b;c\n1,2;3\n", "comma and semicolon"),
        ("list.csv", 'path,label\na.jpg,"1\nb.jpg,2\n', "quote"),
    ]:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SourceError) as error:
            red(path)
        assert expected in str(error.value) and name in str(error.value), error.value


def pack(path: Path, numbers: range, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for number in numbers:
            data = picture(number)
            info = tarfile.TarInfo(f"./{number:03}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_an_image_of_a_shard_may_be_one_ending_or_several(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", range(3))
    for image in ["png", ".PNG", "jpg;png", ["jpg", "png"], ["jpg;png"]]:
        assert red({"address": str(path), "image": image}) == [0, 1, 2]


def test_a_shard_cut_off_between_members_is_delivered_aloud_and_refused_by_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pack(tmp_path / "a.tar", range(4))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2].offset
    path.write_bytes(whole[:third])
    for _ in range(2):
        # The second time its index comes from the cache.
        with caplog.at_level(logging.WARNING, "fuelrail"):
            assert red(path, on_error="substitute") == [0, 1]
        assert "ends without an end marker after 2 members" in caplog.text
        caplog.clear()
        with pytest.raises(SourceError, match="without an end marker"):
            red(path)
    path.write_bytes(whole[: third + 600])
    with pytest.raises(SourceError, match="cut off"):
        red(path, on_error="substitute")
    # Two archives one after the other: the second is not read, and that is said.
    path.write_bytes(whole + pack(tmp_path / "b.tar", range(4, 6)).read_bytes())
    with caplog.at_level(logging.WARNING, "fuelrail"):
        assert red(path, on_error="substitute") == [0, 1, 2, 3]
    assert "continues for 10,240 bytes after its end marker" in caplog.text


def test_what_is_no_file_in_a_shard_is_passed_over(tmp_path: Path, rng: random.Random) -> None:
    """Links, devices, a volume's label and what macOS adds, in any order, are nobody's."""
    kinds = [
        (tarfile.LNKTYPE, "link.png"),
        (tarfile.SYMTYPE, "alias.png"),
        (tarfile.CHRTYPE, "null"),
        (tarfile.FIFOTYPE, "pipe.png"),
        (b"V", "volume"),
        (tarfile.DIRTYPE, "folder"),
    ]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        odd = rng.sample(kinds, len(kinds))
        with tarfile.open(path, "w", format=form, pax_headers={"comment": "of all members"}) as archive:
            for number in range(6):
                kind, name = odd[number]
                link = tarfile.TarInfo(name)
                link.type, link.linkname = kind, "000.png"
                archive.addfile(link)
                for name, data in [
                    (f"{number:03}.png", picture(number)),
                    (f"._{number:03}.png", b"AppleDouble"),
                    (f"__MACOSX/._{number:03}.png", b"AppleDouble"),
                    (f"{number:03}.txt", b""),
                ]:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        assert red({"address": str(path), "label": "none"}) == list(range(6))


def test_arrays_need_no_transform_for_their_size(tmp_path: Path, rng: random.Random) -> None:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (7, 6, 5, 3), np.uint8)
    labels = np.arange(7)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    np.savez_compressed(tmp_path / "b.npz", **{"train/images": pixels, "labels": labels})
    np.savez(tmp_path / "planes.npz", images=pixels.transpose(0, 3, 1, 2), labels=labels)
    np.save(tmp_path / "alone.npy", pixels)
    for name in ("a.npz", "b.npz", "planes.npz", "alone.npy"):
        with Loader(tmp_path / name, batch_size=7, layout="nchw") as loader:
            (batch,) = list(loader)
        assert np.array_equal(batch["image"], pixels.transpose(0, 3, 1, 2)), name
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    with Loader(tmp_path / "a.npz", batch_size=7, transforms=[T.Normalize(mean, std)]) as loader:
        (batch,) = list(loader)
    expected = (pixels / 255 - mean) / std
    assert np.allclose(batch["image"], expected.transpose(0, 3, 1, 2), atol=1e-5)
    h5py = pytest.importorskip("h5py", reason="the package h5py is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = pixels, labels
    with Loader(tmp_path / "a.h5", batch_size=7) as loader:
        (batch,) = list(loader)
    assert np.array_equal(batch["image"], pixels.transpose(0, 3, 1, 2))


def test_arrays_that_are_no_images_say_why_and_what_helps(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    texts = np.array([["a"]], object)
    for array, expected in [
        (np.asfortranarray(pixels), "np.ascontiguousarray"),
        (pixels / 255, r"\(x \* 255\).round\(\).astype\(np.uint8\)"),
        (pixels.astype(np.uint16), r"\(x >> 8\).astype\(np.uint8\)"),
        (pixels.astype(bool), r"x.astype\(np.uint8\) \* 255"),
        (pixels.astype(">i8"), r"x.astype\(np.uint8\) if"),
        (np.zeros((4, 784), np.uint8), r"x.reshape\(-1, 28, 28\)"),
        (np.zeros((4, 8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no rows"),
        (np.array(3, np.uint8), "single number"),
        (texts, "np.stack"),
        (np.zeros(4, [("a", "u1"), ("b", "f4")]), r'a\["name"\]'),
    ]:
        np.savez(tmp_path / "a.npz", x=array)
        with pytest.raises(SourceError, match=expected):
            red({"address": str(tmp_path / "a.npz"), "image": "x"})
    np.save(tmp_path / "f.npy", np.asfortranarray(pixels))
    with pytest.raises(SourceError, match="Fortran order"):
        red(tmp_path / "f.npy")


def test_a_chain_on_arrays_that_are_no_images_is_refused_with_what_makes_images_of_them(
    tmp_path: Path,
) -> None:
    shape = (6, 8, 8, 3)
    for images, why in (
        (np.zeros(shape, np.float32), "images * 255"),
        (np.zeros(shape, np.uint16), "images >> 8"),
        (np.zeros(shape, bool), "astype(np.uint8) * 255"),
        (np.zeros((6, 784), np.uint8), "reshape(-1, 28, 28)"),
        (np.zeros((6, 8, 8, 13), np.uint8), "13"),
    ):
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6))
        with pytest.raises(ConfigError) as error:
            Loader(tmp_path / "a.npz", transforms=[T.Resize((4, 4))])
        assert why in str(error.value)


def test_the_rows_of_a_list_keep_their_places_bad_ones_too(images: Path) -> None:
    path = images / "list.csv"
    rows = [f"{number % 5}.png" if number % 3 else f"none-{number}.png" for number in range(30)]
    path.write_text("path\n" + "\n".join(rows) + "\n")
    with Loader(path, transforms=[T.Resize((4, 4))], error_budget=30) as loader:
        substituted = [bool(batch["substituted"][0]) for batch in loader]
    assert substituted == [number % 3 == 0 for number in range(30)]


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(
    ("name", "odd"),
    [
        *(("score", odd) for odd in ("abc", [1], {"a": 1}, True)),
        *(("box", odd) for odd in ("abc", 3, ["a", "b"], [[1, 2]], [1], {})),
    ],
)
def test_a_value_of_another_kind_in_a_field_is_one_bad_record(
    name: str, odd: Any, at: int, with_images: bool, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = [{"score": number, "box": [number, 0.5]} for number in range(5)]
    rows[at][name] = odd
    if with_images:
        rows = [{"path": f"{number}.png", **row} for number, row in enumerate(rows)]
    lists = {"list.jsonl": "\n".join(map(json.dumps, rows)), "list.json": json.dumps(rows, indent=1)}
    if name == "score":
        cells = [",".join(str(row[key]) for key in row if key != "box") for row in rows]
        header = "path,score" if with_images else "score"
        lists["list.csv"] = "\n".join([header, *(cell.replace(", ", ";") for cell in cells)])
    for file, text in lists.items():
        (images / file).write_text(text)
        fields = ["score"] if file == "list.csv" else ["score", "box[2]"]
        options: dict[str, Any] = {"transforms": [T.Resize((4, 4))]} if with_images else {}
        caplog.clear()
        with Loader(
            images / file, batch_size=5, fields=fields, on_error="drop", error_budget=5, label=None, **options
        ) as loader:
            batch = next(iter(loader))
        good = [number for number in range(5) if number != at]
        assert (loader.num_samples, batch["index"].tolist()) == (5, good), file
        assert batch["score"].tolist() == good and batch["score"].dtype == np.int64
        if file != "list.csv":
            assert batch["box"].tolist() == [[number, 0.5] for number in good]
        if odd != [1] or name != "box":
            assert f'"{name}" is not a' in caplog.text and "1 of 5 records" in caplog.text, caplog.text


def test_a_field_without_a_kind_that_most_values_have_is_refused_in_plain_words(images: Path) -> None:
    for values, expected in [
        ([1, 2, "a", "b"], "values of different kinds"),
        (["a", "b", "c", 1], "values of different kinds"),
        (["a", "b", "c", "d"], "texts"),
        ([{}, {}, {}, 1], "values of different kinds"),
    ]:
        rows = [{"path": f"{number}.png", "score": value} for number, value in enumerate(values)]
        (images / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(ConfigError) as error:
            Loader(images / "list.jsonl", fields=["score"], transforms=[T.Resize((4, 4))])
        assert "score" in str(error.value) and f"holds {expected}" in str(error.value), error.value


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    """A failed download above all; the name says one thing and the beginning another."""
    page = b"<!DOCTYPE html>\n<html><body>404</body></html>" * 100
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for name in ["a.parquet", "a.arrow", "a.csv", "a.jsonl", "a.json", "a.tar", "a.npy", "a.npz", "a.h5"]:
        for text, expected in [(page, "a web page"), (pointer, "git lfs pull")]:
            (tmp_path / name).write_bytes(text)
            with pytest.raises(SourceError) as error:
                red(tmp_path / name)
            assert expected in str(error.value) and name in str(error.value), error.value
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npy").read_bytes())
    with pytest.raises(SourceError, match="an npy file"):
        red(tmp_path / "x.npz")


def test_tables_are_read_as_arrow_writes_them(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    from pyarrow import parquet

    images = pa.array([picture(number) for number in (0, 1, 0, 2)])
    for name, column in [
        ("image", images),
        ("Image", images),
        ("image", images.dictionary_encode()),
        ("image", images.cast(pa.large_binary())),
        ("image", pa.array([{"bytes": image, "path": None} for image in images.to_pylist()])),
    ]:
        parquet.write_table(pa.table({name: column}), tmp_path / "a.parquet")
        assert red(tmp_path / "a.parquet") == [0, 1, 0, 2], column.type
    # What Spark and the Hub leave beside parts.
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(2):
        parquet.write_table(pa.table({"image": images[2 * part : 2 * part + 2]}), folder / f"{part}.parquet")
    for name in ["_SUCCESS", ".0.parquet.crc", "_metadata", "README.md", "dataset_info.json", "notes.csv"]:
        (folder / name).write_text("a,b\n1,2\n")
    assert red(folder) == [0, 1, 0, 2]
    # Folders that are named like columns are none.
    deep = folder / "year=2024"
    deep.mkdir()
    (folder / "0.parquet").rename(deep / "0.parquet")
    with pytest.raises(ConfigError, match="year=2024"):
        red({"address": str(folder), "label": "year"})
    month = folder / "year=2025" / "month=1"
    month.mkdir(parents=True)
    (folder / "1.parquet").rename(month / "1.parquet")
    assert red(folder) == [0, 1, 0, 2]
    parquet.write_table(pa.table({"image": ["iVBORw0KGgo" + "A" * 100_000]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="base64") as error:
        red({"address": str(tmp_path / "a.parquet"), "image": "image"})
    assert len(str(error.value)) < 1000


def test_an_ending_is_all_behind_the_first_dot(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a/img.v1.0.png")
        archive.addfile(info)
    with pytest.raises(SourceError, match=r'whose ending is "v1\.0\.png"'):
        red(path)
