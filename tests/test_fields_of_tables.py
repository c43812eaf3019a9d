"""Fields out of tables: the same batches from Parquet, Arrow, CSV and JSONL, with images as bytes and by path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuelrail import ConfigError
from fuelrail import fields as F
from fuelrail.numpy import Loader
from support import T
from test_fields import caption, encoded, mask_of, meta, picture

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: it writes the tables")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 40

FIELDS = {
    "image": F.Image([T.Resize((40, 56))]),
    "mask": F.Mask("mask"),
    "caption": F.Text("caption", max_bytes=64),
    "meta": F.Json("meta", max_bytes=512),
    "boxes": F.Numbers("meta.boxes", max_rows=5, row=(4,)),
    "score": F.Numbers("score"),
}


def rows() -> list[dict[str, Any]]:
    return [
        {"caption": caption(number), "meta": meta(number), "score": number / 4, "number": number}
        for number in range(COUNT)
    ]


def with_paths(folder: Path) -> list[dict[str, Any]]:
    """The rows, with paths of images that lie beside the table."""
    listed = rows()
    for row in listed:
        number = row["number"]
        row |= {"path": f"{number}.png", "mask": f"masks/{number}.png"}
        (folder / "masks").mkdir(exist_ok=True)
        (folder / row["path"]).write_bytes(encoded(picture(number)))
        (folder / row["mask"]).write_bytes(encoded(mask_of(number)))
    return listed


def parquet(folder: Path) -> str:
    with_bytes = [
        {**row, "image": encoded(picture(row["number"])), "mask": encoded(mask_of(row["number"]))}
        for row in rows()
    ]
    pq.write_table(pa.Table.from_pylist(texts(with_bytes)), folder / "t.parquet", row_group_size=9)
    return str(folder / "t.parquet")


def arrow_of_paths(folder: Path) -> str:
    table = pa.Table.from_pylist(texts(with_paths(folder)))
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as writer:
        writer.write_table(table)
    return str(folder / "t.arrow")


def jsonl(folder: Path) -> str:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in with_paths(folder)))
    return str(folder / "t.jsonl")


def csv(folder: Path) -> str:
    quoted = [
        {name: str(value).replace('"', '""') for name, value in row.items()}
        for row in texts(with_paths(folder))
    ]
    lines = [",".join(f'"{cell}"' for cell in row.values()) + "\n" for row in quoted]
    (folder / "t.csv").write_text(",".join(quoted[0]) + "\n" + "".join(lines))
    return str(folder / "t.csv")


def texts(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON as text, as tables mostly have it."""
    return [{**row, "meta": json.dumps(row["meta"])} for row in listed]


@pytest.mark.parametrize("write", [parquet, arrow_of_paths, jsonl, csv])
def test_every_format_delivers_the_same_fields(write: Any, tmp_path: Path) -> None:
    image = "image" if write is parquet else "path"
    fields = {**FIELDS, "number": F.Numbers("number")}
    with Loader(
        write(tmp_path), image=image, label=None, fields=fields, batch_size=7, shuffle=True
    ) as loader:
        seen = []
        for batch in loader:
            numbers = [int(number) for number in batch["number"]]
            seen += numbers
            assert batch["caption"] == [caption(number) for number in numbers]
            assert batch["meta"] == [meta(number) for number in numbers]
            assert batch["score"].tolist() == [number / 4 for number in numbers]
            assert [boxes.tolist() for boxes in batch["boxes"].list()] == [
                meta(number)["boxes"] for number in numbers
            ]
            for row, number in enumerate(numbers):
                assert np.array_equal(batch["image"][row], picture(number).transpose(2, 0, 1))
                assert np.array_equal(batch["mask"][row], mask_of(number))
        assert sorted(seen) == list(range(COUNT))


def test_a_null_is_a_part_that_is_missing_and_not_one_that_is_wrong(tmp_path: Path) -> None:
    table = pa.table({"caption": ["a", None, "c"] * 4, "boxes": [[[1.0, 2.0]], [], None] * 4})
    pq.write_table(table, tmp_path / "t.parquet")
    fields = {
        "caption": F.Text("caption", max_bytes=8, missing="empty"),
        "boxes": F.Numbers("boxes", max_rows=2, missing="empty"),
    }
    with Loader(str(tmp_path / "t.parquet"), fields=fields, batch_size=12) as loader:
        batch = next(iter(loader))
        assert batch["caption"] == ["a", "", "c"] * 4
        assert batch["boxes"].lengths.tolist() == [1, 0, 0] * 4
    with pytest.raises(ConfigError, match=r'"captoin" is not a column of .*caption \(Utf8\)'):
        Loader(str(tmp_path / "t.parquet"), fields={"x": F.Text("captoin", max_bytes=8)}, batch_size=2)
    with pytest.raises(ConfigError, match="ask for numbers"):
        Loader(str(tmp_path / "t.parquet"), fields={"x": F.Text("boxes", max_bytes=8)}, batch_size=2)
