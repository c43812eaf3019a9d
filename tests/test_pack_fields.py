"""`fuelrail pack --fields` gives the rows of the source; `fuelrail inspect --fields` says what is in its parts."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fuelrail import fields as F
from fuelrail.numpy import Loader
from support import row_digests
from test_fields import ALL, COUNT, KINDS, PICTURES, caption, encoded, fuelrail, mask_of, one_shard
from test_fields import shards as shards


def as_json(fields: Mapping[str, F.Field]) -> str:
    return json.dumps([field.config(name) for name, field in fields.items()])


def renamed_by(pack: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """Part of the source to what pack says that it is called; of one part there may be several kinds."""
    assert pack.returncode == 0, pack.stderr
    renamed: dict[str, list[str]] = {}
    for was, now in re.findall(r'part "(.+)" is "(.+)" in the shards', pack.stdout):
        renamed.setdefault(was, []).append(now)
    return renamed


@pytest.mark.parametrize("kind", ["tar", *KINDS])
def test_packed_shards_give_the_rows_of_every_kind_of_source(kind: str, shards: str, tmp_path: Path) -> None:
    make, fields = (lambda _: shards, {**ALL}) if kind == "tar" else KINDS[kind]
    # Of one kind each, so that a part has one name.
    fields = {name: field for name, field in fields.items() if name != "raw"}
    if kind == "table":
        fields["image"] = PICTURES["image"]
    source, folder = make(tmp_path), tmp_path / "packed"
    options = ("--shard-size", "100kb", "--fields", as_json(fields))
    done = fuelrail("pack", source, str(folder), *options)
    renamed = renamed_by(done)
    assert len(list(folder.glob("*.tar"))) > 1
    read_back = {}
    for name, field in fields.items():
        read_back[name] = copy.copy(field)
        if part := getattr(field, "part", None):
            (moved,) = renamed[part]
            object.__setattr__(read_back[name], "part", moved)
    with (
        Loader(source, fields=fields, batch_size=7, seed=2) as before,
        Loader(str(folder), fields=read_back, batch_size=7, seed=2) as after,
    ):
        assert row_digests(before) == row_digests(after)
    again = tmp_path / "again"
    assert renamed_by(fuelrail("pack", source, str(again), *options)) == renamed
    files = [{path.name: path.read_bytes() for path in at.iterdir()} for at in (folder, again)]
    assert files[0] == files[1]


def test_a_run_that_goes_on_still_knows_what_parts_are_called(tmp_path: Path) -> None:
    changes: dict[int, dict[str, bytes | None]] = {
        3: {"seg.png": None},
        5: {"seg.png": encoded(mask_of(5), "BMP")},
    }
    source, folder = one_shard(tmp_path, changes), tmp_path / "packed"
    fields = {
        "image": F.Image(),
        "mask": F.Mask("seg.png", missing="empty"),
        "raw": F.Bytes("txt", max_bytes=64),
        "caption": F.Text("txt", max_bytes=64),
    }
    options = ("--shard-size", "60kb", "-o", "label=none", "--fields", as_json(fields))
    expected = {"seg.png": ["seg.bmp;seg.png"], "txt": ["txt.bin", "txt"]}
    assert renamed_by(fuelrail("pack", source, str(folder), *options)) == expected
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = json.loads(whole["index.json"])
    assert len(index["shards"]) > 1 and [part["part"] for part in index["parts"]] == ["seg.png", "txt", "txt"]
    # Stopped after the first shard, in which the other format was.
    last = folder / index["shards"].pop()["name"]
    last.unlink()
    Path(f"{last}.idx").unlink()
    index["records"] = sum(shard["records"] for shard in index["shards"])
    index["bytes"] = sum(shard["bytes"] for shard in index["shards"])
    (folder / "index.json").write_text(json.dumps({**index, "complete": False}))
    assert renamed_by(fuelrail("pack", source, str(folder), *options)) == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert renamed_by(fuelrail("pack", source, str(folder), *options)) == expected, "it is packed already"
    other = as_json({"image": F.Image(), "raw": F.Bytes("txt", max_bytes=64)})
    done = fuelrail("pack", source, str(folder), *options[:-1], other)
    assert done.returncode == 1 and "--fields was" in done.stderr, done.stderr
    assert '"seg.png" (images)' in done.stderr


def test_records_without_images_are_packed_by_their_parts(tmp_path: Path) -> None:
    lines = [json.dumps({"text": caption(number), "score": number / 4}) for number in range(COUNT)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    source, folder = str(tmp_path / "texts.jsonl"), tmp_path / "packed"
    refused = fuelrail("pack", source, str(folder), "-o", "fields=score")
    assert refused.returncode == 1 and "--fields" in refused.stderr, refused.stderr
    fields = {"caption": F.Text("text", max_bytes=64), "score": F.Numbers("score")}
    renamed = renamed_by(fuelrail("pack", source, str(folder), "--fields", as_json(fields)))
    assert renamed == {"text": ["txt"], "score": ["score.npy"]}
    fields = {"caption": F.Text("txt", max_bytes=64), "score": F.Numbers("score.npy")}
    with Loader(str(folder), fields=fields, batch_size=COUNT) as loader:
        batch = next(iter(loader))
    assert batch["caption"] == [caption(number) for number in range(COUNT)]
    assert batch["score"].tolist() == [number / 4 for number in range(COUNT)]


def test_a_part_that_no_field_could_have_stops_packing_or_is_left_out(tmp_path: Path) -> None:
    source, folder = one_shard(tmp_path, {7: {"txt": b"\xff"}, 9: {"txt": None}}), tmp_path / "packed"
    options = ("-o", "label=none", "--fields", '[{"type": "Text", "part": "txt"}]')
    done = fuelrail("pack", source, str(folder), *options)
    assert done.returncode == 1 and 'part "txt": it is not UTF-8' in done.stderr, done.stderr
    done = fuelrail("pack", source, str(folder), *options, "--on-error", "skip")
    assert done.returncode == 0 and "2 records left out" in done.stdout, done.stdout + done.stderr
    assert "it has no part that --fields asks for" in done.stdout


def test_inspect_says_what_images_beside_the_own_one_are(tmp_path: Path) -> None:
    source = one_shard(tmp_path, {5: {"seg.png": encoded(mask_of(5)[:20], "BMP")}, 6: {"seg.png": None}})
    fields = '[{"type": "Image"}, {"type": "Mask", "name": "mask", "part": "seg.png"}]'
    done = fuelrail("inspect", source, "--fields", fields, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (mask,) = found["parts"]
    assert mask["formats"] == {"bmp": 1, "png": 38} and found["formats"] == {"png": 40}
    assert mask["width"] == {"min": 56, "median": 56, "max": 56}
    assert mask["height"] == {"min": 20, "median": 40, "max": 40}
    said = fuelrail("inspect", source, "--fields", fields).stdout
    assert "bmp 1, png 38" in said and "20 to 40 pixels, median 40" in said, said


def test_inspect_says_from_where_to_where_numbers_go(tmp_path: Path) -> None:
    lines = [json.dumps({"score": number / 4, "age": number - 5}) for number in range(COUNT)]
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    table = ("inspect", str(tmp_path / "table.jsonl"), "-o", 'fields=["score", "age"]')
    said = fuelrail(*table).stdout
    assert '"score" 0.0 to 14.75' in said and '"age" -5 to 54' in said and "NaN" not in said, said
    numbers = np.array([[1.5, np.nan], [-3, np.inf]], dtype=np.float32)
    np.savez(tmp_path / "x.npz", x=numbers, large=np.array([2**64 - 1, 1], dtype=np.uint64))
    array = ("inspect", str(tmp_path / "x.npz"), "-o", 'fields=["x", "large"]', "-o", "image=")
    assert "-3.0 to 1.5; 2 are NaN or infinite" in fuelrail(*array).stdout
    done = fuelrail(*array, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sampled"] == 2 and found["unreadable"] == 0
    assert found["numbers"] == [
        {"field": "x", "min": -3.0, "max": 1.5, "not_finite": 2},
        {"field": "large", "min": 1, "max": 2**64 - 1, "not_finite": 0},
    ]
