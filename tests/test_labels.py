"""What a label may be, in every kind of source: a whole number, a class name, or nothing; and never a silent zero."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import AUTO, ConfigError, DataError, FuelrailError, Mix, Source
from fuelrail import transforms as T
from fuelrail.numpy import Loader
from support import fuelrail

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

ROWS = 8
SIDE = 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(gray: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), gray % 256, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def images() -> np.ndarray:
    return np.stack([np.full((SIDE, SIDE, 3), row, np.uint8) for row in range(ROWS)])


# One writer for each kind of source: the name of the labels, and they themselves; None is a gap.


def csv(folder: Path, name: str, values: Sequence[Any]) -> Path:
    return lines(folder, name, values, ",")


def tsv(folder: Path, name: str, values: Sequence[Any]) -> Path:
    return lines(folder, name, values, "\t")


def lines(folder: Path, name: str, values: Sequence[Any], delimiter: str) -> Path:
    path = folder / ("list.csv" if delimiter == "," else "list.tsv")
    rows = [f"path{delimiter}{name}"]
    for row, value in enumerate(values):
        (folder / f"{row}.png").write_bytes(png(row))
        rows.append(f"{row}.png{delimiter}{'' if value is None else value}")
    path.write_text("\n".join(rows) + "\n")
    return path


def jsonl(folder: Path, name: str, values: Sequence[Any]) -> Path:
    path = folder / "list.jsonl"
    for row in range(len(values)):
        (folder / f"{row}.png").write_bytes(png(row))
    rows = [json.dumps({"path": f"{row}.png", name: value}) for row, value in enumerate(values)]
    path.write_text("\n".join(rows))
    return path


def parquet(folder: Path, name: str, values: Sequence[Any]) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"image": [png(row) for row in range(len(values))], name: values}), path)
    return path


def feather(folder: Path, name: str, values: Sequence[Any]) -> Path:
    pa, pf = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.feather")
    path = folder / "rows.feather"
    pf.write_feather(pa.table({"image": [png(row) for row in range(len(values))], name: values}), path)
    return path


def array(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def npz(folder: Path, name: str, values: Sequence[Any]) -> Path:
    np.savez(folder / "arrays.npz", images=images()[: len(values)], **{name: array(values)})
    return folder / "arrays.npz"


def hdf5(folder: Path, name: str, values: Sequence[Any]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "sets.h5", "w") as file:
        file["images"] = images()[: len(values)]
        plain = array(values)
        file[name] = [str(value) for value in plain] if plain.dtype.kind == "U" else plain
    return folder / "sets.h5"


def tar(folder: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return folder / "shard.tar"


def tar_cls(folder: Path, _: str, values: Sequence[Any]) -> Path:
    members = []
    for row, value in enumerate(values):
        if value is not None:
            members.append((f"{row}.cls", str(value).encode()))
        members.append((f"{row}.png", png(row)))
    return tar(folder, members)


def tar_json(folder: Path, name: str, values: Sequence[Any]) -> Path:
    members = []
    for row, value in enumerate(values):
        members += [(f"{row}.json", json.dumps({name: value}).encode()), (f"{row}.png", png(row))]
    return tar(folder, members)


Writer = Callable[[Path, str, Sequence[Any]], Path]
TYPED: list[Writer] = [csv, tsv, jsonl, parquet, feather, npz, hdf5, tar_json]
ALL: list[Writer] = [*TYPED, tar_cls]


def load(source: Any, **options: Any) -> Loader:
    options = {"batch_size": ROWS, "on_error": "drop", "error_budget": 100, **options}
    return Loader(source, transforms=[T.Resize((SIDE, SIDE))], **options)


def labels(source: Any, **options: Any) -> tuple[dict[int, int], list[str]]:
    """The label of each record that was delivered, and the classes."""
    with load(source, **options) as loader:
        batch = next(iter(loader))
        return dict(zip(batch["index"].tolist(), batch["label"].tolist(), strict=True)), loader.classes


def numbered(values: Sequence[Any]) -> dict[int, Any]:
    return {row: int(value) for row, value in enumerate(values) if value is not None}


@pytest.mark.parametrize("write", ALL)
@pytest.mark.parametrize(
    "values",
    [
        [2, 0, 1, 10, 2, 0, 1, 10],
        [-1, 0, 2**40, 3, 4, 5, 6, 7],
        [2.0, 0.0, 1.0, 10.0, 2.0, 0.0, 1.0, 10.0],
        [2.0, 0.0, None, 10.0, 2.0, 0.0, 1.0, None],
    ],
    ids=["whole", "wide", "stored as floats", "with gaps, as pandas has them"],
)
def test_whole_numbers_are_labels(write: Writer, values: list[Any], tmp_path: Path) -> None:
    assert labels(write(tmp_path, "label", values)) == (numbered(values), [])


@pytest.mark.parametrize("write", [jsonl, parquet, feather, npz, hdf5, tar_json])
def test_true_and_false_are_one_and_zero(write: Writer, tmp_path: Path) -> None:
    values = [True, False] * 4
    assert labels(write(tmp_path, "label", values))[0] == numbered(values)


@pytest.mark.parametrize("write", [csv, tsv, jsonl, parquet, feather, npz, hdf5, tar_json, tar_cls])
def test_texts_are_classes_in_order_of_their_names(write: Writer, tmp_path: Path) -> None:
    values = ["dog", " cat", "cat ", "emu"] * 2
    found, classes = labels(write(tmp_path, "label", values))
    assert classes == ["cat", "dog", "emu"]
    assert [found[row] for row in range(4)] == [1, 0, 0, 2]


@pytest.mark.parametrize("write", [jsonl, parquet, feather, hdf5, tar_json, tar_cls])
def test_texts_that_are_numbers_are_these_numbers(write: Writer, tmp_path: Path) -> None:
    values = ["2", "10", "1", "0"] * 2
    assert labels(write(tmp_path, "label", values)) == (numbered(values), [])


@pytest.mark.parametrize("gap", ["NA", "N/A", "NaN", "nan", "null", "None", "", " ", "#N/A"])
@pytest.mark.parametrize("write", [csv, tsv, tar_cls])
def test_one_odd_cell_renumbers_no_other_label(write: Writer, gap: str, tmp_path: Path) -> None:
    values = [0, 2, gap, 10, 1, 3, 0, 2]
    assert labels(write(tmp_path, "label", values))[0] == {0: 0, 1: 2, 3: 10, 4: 1, 5: 3, 6: 0, 7: 2}


@pytest.mark.parametrize("write", [csv, tar_cls])
def test_a_text_among_numbers_is_named(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(FuelrailError, match=r'whole numbers and texts \(.*"x"\).*label=None'):
        load(write(tmp_path, "label", [0, 2, "x", 10, 1, 3, 0, 2]))


@pytest.mark.parametrize("write", ALL)
def test_fractions_are_refused_with_what_to_do(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, "label", [row / 2 for row in range(ROWS)])
    with pytest.raises(
        FuelrailError, match=r"holds floats.*; a label is a whole number or a class name"
    ) as error:
        load(path)
    if write not in (tar_cls,):
        field = "json:label" if write is tar_json else "label"
        assert f'fields=["{field}"] and label=None' in str(error.value)
        with load(path, label=None, fields=[field]) as loader:
            batch = next(iter(loader))
            assert batch["label"].tolist() == [row / 2 for row in range(ROWS)]
            taken, targets = batch
            assert taken.shape[0] == ROWS and targets is batch["label"]


@pytest.mark.parametrize(
    "name", ["label", "labels", "cls", "class", "target", "targets", "y", "category", "Label", "TARGET"]
)
@pytest.mark.parametrize("write", TYPED)
def test_a_label_is_found_by_any_usual_name(write: Writer, name: str, tmp_path: Path) -> None:
    values = [3, 1, 2, 0] * 2
    assert labels(write(tmp_path, name, values))[0] == numbered(values)


@pytest.mark.parametrize("write", TYPED)
def test_a_source_without_labels_delivers_none(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, "weight", [row / 2 for row in range(ROWS)])
    with load(path) as loader:
        batch = next(iter(loader))
        assert "label" not in batch.keys() and not loader.labelled and loader.classes == []  # noqa: SIM118
        with pytest.raises(
            ConfigError, match=r"no labels: say where they are \(label=...\), or use batch\['image'\]"
        ):
            _images, _labels = batch


@pytest.mark.parametrize("write", ALL)
def test_labels_that_are_not_wanted_are_not_there(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, "label", ["cat", "dog"] * 4 if write is not npz else [1, 2] * 4)
    for source in (Source(path, label=None), Source(path, label="")):
        assert repr(source).endswith("label=None)")
        with load(source) as loader:
            assert not loader.labelled and loader.classes == []
    assert repr(Source(path, label=AUTO)) == f"Source({str(path)!r})"


def test_folders_and_synthetic_images_can_do_without_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "0.png").write_bytes(png(1))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(png(1))
    for source, options in (
        (tmp_path / "classes", {"label": None}),
        ("synthetic://?count=4", {"label": None}),
        (tmp_path / "flat", {}),
    ):
        with load(source, **options) as loader:
            assert not loader.labelled
            assert next(iter(loader)).rows > 0
    with load(tmp_path / "classes") as loader:
        assert loader.labelled and loader.classes == ["cat", "dog"]
    with pytest.raises(ConfigError, match=r'label is "kind".*class folders'):
        load(tmp_path / "classes", label="kind")


ODD = {
    "one number each in a second axis": (np.arange(ROWS)[:, None], None),
    "one-hot": (np.eye(ROWS, 4), "shape"),
    "too few": (np.arange(ROWS - 1), "one for each of 8"),
    "too many": (np.arange(ROWS + 1), "one for each of 8"),
    "two texts each": (np.array([["a", "b"]] * ROWS), "text"),
    "too few texts": (np.array(["a", "b"]), "one for each of 8"),
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", ["label", "y", "targets"])
def test_an_array_with_the_name_of_labels_is_used_or_refused(name: str, case: str, tmp_path: Path) -> None:
    values, expected = ODD[case]
    np.savez(tmp_path / "x.npz", images=images(), **{name: values})
    if expected is None:
        assert labels(tmp_path / "x.npz")[0] == {row: row for row in range(ROWS)}
    else:
        with pytest.raises(FuelrailError, match=f'the array "{name}" holds .*label=None') as error:
            load(tmp_path / "x.npz")
        assert expected in str(error.value)


@pytest.mark.parametrize("dtype", ["<U9", ">U9", "S9"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_texts_of_an_array_are_classes(save: Any, dtype: str, tmp_path: Path) -> None:
    names = np.array(["señor", "cat", "", "dog"] * 2)
    if dtype == "S9":
        names = np.char.encode(names, "utf-8")
    save(tmp_path / "x.npz", images=images(), label=names.astype(dtype))
    with load(tmp_path / "x.npz", error_budget=10) as loader:
        assert loader.classes == ["cat", "dog", "señor"]
        found = {
            int(i): int(y) for batch in loader for i, y in zip(batch["index"], batch["label"], strict=True)
        }
    # A text that is empty is no label: the record is a bad one.
    assert {row: found[row] for row in (0, 1, 3)} == {0: 2, 1: 0, 3: 1}


def test_texts_may_be_wider_in_one_shard_than_in_another(tmp_path: Path) -> None:
    for shard, names in enumerate((["a", "b"], ["long", "a"])):
        np.save(tmp_path / f"images-{shard}.npy", images()[:2])
        np.save(tmp_path / f"labels-{shard}.npy", np.array(names))
    found, classes = labels(tmp_path / "*.npy")
    assert classes == ["a", "b", "long"] and [found[row] for row in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "names", [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels") * 2]
)
@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_the_label_of_an_image_is_called_as_that_is(
    kind: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    """As in mnist.npz of Keras."""
    arrays = dict(zip(names, (images(), np.arange(ROWS), images()[:3], np.arange(3)), strict=True))
    if kind == "npz":
        np.savez(tmp_path / "x.npz", **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "x.h5", "w") as file:
            for name, values in arrays.items():
                file[name] = values
    rows = len(arrays[names[0]])
    found, _ = labels(tmp_path / f"x.{kind}", image=names[0])
    assert found == {row: row for row in range(rows)}


def test_arrays_that_nobody_named_are_images_and_labels_by_their_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images(), np.arange(ROWS))
    assert labels(tmp_path / "x.npz")[0] == {row: row for row in range(ROWS)}


def test_columns_of_other_types_are_refused_in_plain_words(tmp_path: Path) -> None:
    import datetime
    import decimal

    for values, expected in (
        ([[1, 2]] * ROWS, "lists"),
        ([datetime.date(2020, 1, 1)] * ROWS, "dates"),
        ([datetime.datetime(2020, 1, 1)] * ROWS, "times"),
        ([decimal.Decimal("1.5")] * ROWS, "decimal numbers"),
        ([None] * ROWS, "nothing but empty cells"),
        ([{"a": 1}] * ROWS, "objects"),
    ):
        with pytest.raises(
            ConfigError, match=f'the column "label" of .*rows.parquet holds {expected}; a label is'
        ):
            load(parquet(tmp_path, "label", values))


@pytest.mark.parametrize("write", [csv, tar_cls, tar_json])
@pytest.mark.parametrize(("value", "expected"), [("[1  0]", "lists"), ("2020-01-31", "dates")])
def test_lists_and_dates_that_are_written_as_texts_are_no_classes(
    write: Writer, value: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(
        FuelrailError, match=f"holds {expected} .*; a label is a whole number or a class name"
    ):
        load(write(tmp_path, "label", [value] * ROWS))


def test_categories_are_labels_in_sorted_order(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    values = pa.array(["z", "m", None, "a"] * 2).dictionary_encode()
    for write in (parquet, feather):
        found, classes = labels(write(tmp_path, "label", values))
        assert (classes, found) == (["a", "m", "z"], {0: 2, 1: 1, 3: 0, 4: 2, 5: 1, 7: 0})


# One bad row is one bad record -----------------------------------------------------------------------------


@pytest.mark.parametrize("write", ALL)
@pytest.mark.parametrize("bad", [0, 3])
def test_a_record_without_its_label_is_one_bad_record(write: Writer, bad: int, tmp_path: Path) -> None:
    values: list[Any] = [row % 3 for row in range(ROWS)]
    values[bad] = None
    path = write(tmp_path, "label", values)
    with load(path, on_error="substitute", quarantine=tmp_path / "bad.jsonl") as loader:
        batch = next(iter(loader))
        # Its row is another record's, under its own position; all others are where they always are.
        assert loader.num_samples == ROWS and batch.rows == ROWS
        assert batch["substituted"].tolist() == [row == bad for row in range(ROWS)]
        assert [batch["index"][row] for row in range(ROWS) if row != bad] == [
            row for row in range(ROWS) if row != bad
        ]
        assert batch["label"].tolist() == [values[index] for index in batch["index"].tolist()]
    noted = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["index"] for line in noted] == [bad]
    with load(path, on_error="drop") as loader:
        batch = next(iter(loader))
        assert (batch.rows, batch.dropped) == (ROWS - 1, 1)
        assert batch["image"][:, 0, 0, 0].tolist() == [row for row in range(ROWS) if row != bad]
    with load(path, on_error="fail") as loader, pytest.raises(DataError, match="label"):
        next(iter(loader))
    with load(path, error_budget=0.0) as loader, pytest.raises(DataError, match="label"):
        next(iter(loader))


@pytest.mark.parametrize("write", [csv, jsonl, parquet, tar_cls, tar_json, hdf5])
def test_a_class_that_is_not_listed_makes_a_bad_record_unless_most_are(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, "label", ["dog", "cat", "emu", "cat"] * 2)
    found, classes = labels(path, classes=["cat", "dog"])
    assert (classes, found) == (["cat", "dog"], {0: 1, 1: 0, 3: 0, 4: 1, 5: 0, 7: 0})
    with pytest.raises(FuelrailError, match="6 of 8 records") as error:
        load(path, classes=["dog"])
    assert '"cat"' in str(error.value)


def test_commands_see_what_has_no_label(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = csv(tmp_path / "in", "label", [0, 1, None, 1])
    report = json.loads(fuelrail("inspect", "--json", path).stdout)
    assert report["labelled"] and report["unreadable"] == 1
    assert [label["records"] for label in report["labels"]] == [1, 2]
    listed = [json.loads(line) for line in fuelrail("inspect", "--list", path).stdout.splitlines()]
    assert [line["label"] for line in listed] == [0, 1, None, 1] and "no label" in listed[2]["error"]
    refused = fuelrail("pack", path, tmp_path / "out")
    assert refused.returncode != 0 and "list.csv:2: it has no label" in refused.stderr
    assert fuelrail("pack", path, tmp_path / "out", "--on-error", "skip").returncode == 0
    assert labels(tmp_path / "out")[0] == {0: 0, 1: 1, 2: 1}
    unlabelled = fuelrail("inspect", path, "-o", "label=null")
    assert "labels          none" in unlabelled.stdout
    assert fuelrail("pack", path, tmp_path / "plain", "-o", "label=").returncode == 0
    with load(tmp_path / "plain") as loader:
        assert not loader.labelled and loader.num_samples == 4
    shown = fuelrail("preview", path, "--size", "8", "--count", "4", "--out", tmp_path / "sheet.png")
    assert shown.returncode == 0 and "it has no label" in shown.stderr, shown.stderr
    named = fuelrail("which", path, "--no-shuffle", "--count", "4", "--json")
    assert [json.loads(line)["label"] for line in named.stdout.splitlines()] == [0, 1, None, 1]


def test_sampling_by_class_leaves_records_without_a_label_out(tmp_path: Path) -> None:
    path = csv(tmp_path, "label", ["a", "b", "b", None, "b", "b", "b", None])
    with load(path, sampling="class_balanced", on_error="fail") as loader:
        batch = next(iter(loader))
        assert np.bincount(batch["label"]).tolist() == [4, 4]
    with pytest.raises(ConfigError, match="needs labels, and this source has none"):
        load(path, label=None, sampling="class_balanced")


def test_a_mixture_has_labels_in_all_of_its_parts_or_in_none(tmp_path: Path) -> None:
    with_labels = csv(tmp_path, "label", [0, 1])
    without = parquet(tmp_path, "weight", [0.5, 1.5])
    with pytest.raises(ConfigError, match='part "a" of the mixture has labels and part "b" has none'):
        load(Mix({"a": with_labels, "b": without}))
    with load(Mix({"a": Source(with_labels, label=None), "b": without})) as loader:
        assert not loader.labelled and next(iter(loader)).rows == 4


def test_a_bad_row_moves_no_record_of_a_shuffled_epoch(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    lacking = tmp_path / "lacking"
    whole.mkdir()
    lacking.mkdir()
    values: list[Any] = [row % 3 for row in range(ROWS)]
    gap = [*values[:5], None, *values[6:]]

    def order(path: Path) -> list[list[int]]:
        with load(path, shuffle=True, seed=3, on_error="drop") as loader:
            return [next(iter(loader))["index"].tolist() for _ in range(2)]

    expected = order(csv(whole, "label", values))
    found = order(csv(lacking, "label", gap))
    assert found == [[index for index in epoch if index != 5] for epoch in expected]


# What was recognised is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (
            csv,
            'list.csv: 8 records; image = column "path" (paths), label = column "label" (3 classes: a, b, c)',
        ),
        (parquet, 'image = column "image" (bytes), label = column "label" (3 classes: a, b, c)'),
        (hdf5, "image = dataset images, label = dataset label (3 classes: a, b, c)"),
        (tar_cls, 'label = member ".cls" (3 classes: a, b, c)'),
        (tar_json, 'label = "label" in member ".json" (3 classes: a, b, c)'),
    ],
)
def test_what_was_recognised_is_said_once(
    write: Writer, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "label", ["a", "b", "c", "a"] * 2)
    with caplog.at_level(logging.INFO, logger="fuelrail"), load(path) as loader:
        for _ in range(2):
            next(iter(loader))
    said = [record.message for record in caplog.records if " records; " in record.message]
    assert len(said) == 1 and expected in said[0], said
    assert expected in fuelrail("inspect", path).stderr


@pytest.mark.parametrize("odd", ["cat", True, {"a": 1}, [1]])
def test_a_refusal_of_values_of_different_kinds_names_file_line_and_key(odd: Any, tmp_path: Path) -> None:
    file = jsonl(tmp_path, "label", [1, 2, None, odd, 1, "dog", 2, 1])
    with pytest.raises(ConfigError, match="values of different kinds") as refused:
        load(file)
    shown = json.dumps(odd, separators=(",", ":"))
    assert f'({file}:4: "label" is {shown}, and a whole number before' in str(refused.value), refused.value


def test_numbers_and_gaps_are_in_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fuelrail"):
        load(csv(tmp_path, "y", [7, 3, None, 4])).close()
        load(npz(tmp_path, "weight", [0.5, 1.5])).close()
    said = " | ".join(record.message for record in caplog.records)
    assert 'label = column "y" (whole numbers 3 to 7; 1 without a usable label)' in said
    assert 'arrays.npz: 2 records; image = array "images", field = array "weight", no label' in said
