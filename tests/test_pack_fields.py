"""`fuelrail pack --fields`: shards give the fields of the source that they were packed from."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

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
    assert "none of the parts" in done.stdout
