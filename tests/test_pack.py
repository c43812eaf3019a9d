"""`fuelrail pack` and `fuelrail inspect`: what is packed is what is read back, whatever interrupts it."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import photographs
import pytest
from fuelrail.loader import binary
from support import fuelrail, wait_until

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def listing(source: Path | str) -> list[dict[str, Any]]:
    """A row a record: key, label, bytes, crc32."""
    result = fuelrail("inspect", "--list", source)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def report(source: Path | str, *options: Any) -> dict[str, Any]:
    """What inspect finds."""
    result = fuelrail("inspect", "--json", source, *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def pack(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs it and wants it to work."""
    result = fuelrail("pack", *arguments)
    assert result.returncode == 0, result.stderr
    return result


def content(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """Label and bytes, in order."""
    return [(row["label"], row["bytes"], row["crc32"]) for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in class folders."""
    return photographs.folder(tmp_path_factory.mktemp("photos"), 97, seed=3)


def test_what_is_packed_is_what_is_read_back(photos: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    pack(photos, shards, "--shard-size", "200kb")
    names = sorted(path.name for path in shards.glob("*.tar"))
    assert len(names) > 3
    assert names[0] == "shard-000000.tar"
    before, after = report(photos), report(shards)
    assert content(listing(photos)) == content(listing(shards))
    for key in ("records", "classes", "formats", "labels", "histogram", "chroma", "schema"):
        assert before[key] == after[key], key
    index = json.loads((shards / "index.json").read_text())
    assert index["complete"] and not index["lossy"]
    assert index["records"] == 97 == sum(shard["records"] for shard in index["shards"])
    # Nothing had to be indexed: what pack left beside the shards was enough.
    assert not list((tmp_path / "cache").rglob("tar-*"))
    # Once more is the same bytes, and packing what is packed changes nothing.
    again = tmp_path / "again"
    pack(photos, again, "--shard-size", "200kb")
    assert files(again) == files(shards)
    assert "is already packed" in pack(photos, shards, "--shard-size", "200kb").stdout


def test_the_members_are_plain_to_others(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "shards", "--name", "train")
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as archive:
        members = archive.getmembers()
        assert all(member.isreg() and member.mtime == 0 for member in members)
        names = [member.name for member in members]
        assert names[0].startswith("000000000_")
        assert names[0].endswith(".cls") and names[1].endswith((".jpg", ".png"))
        first = archive.extractfile(members[1])
        assert first is not None
        Image.open(first).verify()


def test_a_random_order_is_a_pure_one(photos: Path, tmp_path: Path) -> None:
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        pack(photos, tmp_path / name, "--shuffle", "--seed", seed)
    a, b, c = (content(listing(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert sorted(a) == sorted(c) == sorted(content(listing(photos)))


def test_fields_and_class_names_survive(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "a.tar", "w") as archive:
        for number in range(30):
            picture = io.BytesIO()
            Image.new("RGB", (20 + number, 30), (number, 0, 0)).save(picture, "PNG")
            meta = json.dumps(
                {
                    "label": ["cat", "dog", "emu"][number % 3],
                    "box": [[number, 2], [3, 4]],
                    "score": number / 2,
                }
            )
            for name, data in [("json", meta.encode()), ("png", picture.getvalue())]:
                info = tarfile.TarInfo(f"{number:03}.{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    fields = 'fields=["json:box", "Score=json:score"]'
    pack(source, tmp_path / "shards", "-o", fields, "--shard-size", "20kb")
    before, after = report(source, "-o", fields), report(tmp_path / "shards")
    assert before["classes"] == after["classes"] == ["cat", "dog", "emu"]
    assert [(field["name"], field["dtype"], field["shape"]) for field in after["schema"]["fields"]] == [
        ("box", "i64", [2, 2]),
        ("Score", "f32", []),
    ]
    assert before["schema"] == after["schema"]
    rows = fuelrail("inspect", "--list", source, "-o", fields)
    assert content([json.loads(line) for line in rows.stdout.splitlines()]) == content(
        listing(tmp_path / "shards")
    )


def test_large_images_are_shrunk_upright_and_the_others_kept(tmp_path: Path) -> None:
    source = tmp_path / "source" / "class"
    source.mkdir(parents=True)
    wide = Image.new("RGB", (800, 400), (255, 255, 255))
    wide.paste((255, 0, 0), (0, 0, 200, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: shown 400 wide and 800 high, red at the top
    wide.save(source / "turned.jpg", exif=exif, quality=95)
    wide.save(source / "wide.png")
    Image.new("RGB", (100, 200), (0, 0, 255)).save(source / "small.jpg")
    result = pack(source.parent, tmp_path / "shards", "--max-side", 100, "--quality", 85)
    assert "lossy" in result.stderr
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["lossy"]
    pictures = {}
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as archive:
        for member in archive:
            if member.name.endswith((".jpg", ".png")):
                file = archive.extractfile(member)
                assert file is not None
                pictures[member.name.split("_", 1)[1]] = file.read()
    assert set(pictures) == {"turned.jpg", "wide.jpg", "small.jpg"}
    turned = Image.open(io.BytesIO(pictures["turned.jpg"]))
    assert turned.size == (50, 100) and not turned.getexif().get(0x0112)
    assert turned.getpixel((25, 10))[1] < 60 and turned.getpixel((25, 60))[1] > 200
    assert Image.open(io.BytesIO(pictures["wide.jpg"])).size == (100, 50)
    assert Image.open(io.BytesIO(pictures["small.jpg"])).size == (50, 100)
    pack(source.parent, tmp_path / "kept", "--max-side", 800)
    assert sorted(content(listing(tmp_path / "kept"))) == sorted(content(listing(source.parent)))


def test_an_unreadable_record_stops_or_is_listed(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:20]):
        target = source / "class" / f"{number:02}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(data[: len(data) // 2] if number == 7 else data)
    (source / "class" / "13.jpg").write_bytes(b"no image")
    failed = fuelrail("pack", source, tmp_path / "shards")
    assert failed.returncode == 1
    assert "class/07.jpg" in failed.stderr and "--on-error skip" in failed.stderr
    assert not list((tmp_path / "shards").glob("*.t*"))
    result = pack(source, tmp_path / "shards", "--on-error", "skip")
    assert "2 records left out because they could not be read" in result.stdout
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert [skipped["key"] for skipped in index["skipped"]] == ["class/07.jpg", "class/13.jpg"]
    assert index["records"] == 18 == len(listing(tmp_path / "shards"))
    found = report(source)
    assert [record["key"] for record in found["unreadable_records"]] == ["class/07.jpg", "class/13.jpg"]


def test_other_options_are_refused_and_named(photos: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    pack(photos, shards, "--shard-size", "200kb")
    before = files(shards)
    other = photographs.folder(tmp_path / "other", 5, seed=9)
    for arguments, expected in [
        ([photos, "--shard-size", "300kb"], "--shard-size was 200000 and is 300000"),
        ([photos, "--shard-size", "200kb", "--shuffle"], "the order was source and is shuffled with seed 0"),
        ([photos, "--shard-size", "200kb", "--max-side", 100], "--max-side was not given and is 100"),
        ([photos, "--shard-size", "200kb", "--name", "x"], "--name"),
        ([other, "--shard-size", "200kb"], "the source is another one"),
    ]:
        result = fuelrail("pack", arguments[0], shards, *arguments[1:])
        assert result.returncode == 1
        assert expected in result.stderr and "--force" in result.stderr, result.stderr
    assert files(shards) == before
    pack(other, shards, "--force")
    assert len(listing(shards)) == 5
    (shards / "index.json").unlink()
    assert "--force" in fuelrail("pack", other, shards).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    number: int, tmp_path: Path, rng: random.Random
) -> None:
    # Random bytes behind a header: quick to make, and enough for a dozen shards.
    source = tmp_path / "source" / "class"
    source.mkdir(parents=True)
    for name in range(1500):
        pixels = rng.randbytes(60 * 60 * 3)
        (source / f"{name:04}.ppm").write_bytes(b"P6 60 60 255\n" + pixels)
    options = ["--shard-size", "1mb"]
    pack(source.parent, tmp_path / "whole", *options)
    shards = tmp_path / "shards"
    runs = 0
    while True:
        runs += 1
        process = subprocess.Popen(
            [str(binary()), "pack", str(source.parent), str(shards), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        before = len(list(shards.glob("*.tar")))
        wait_until(
            lambda before=before, process=process: (
                len(list(shards.glob("*.tar"))) > before or process.poll() is not None
            ),
            60,
            "a shard, or the end",
        )
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == (130 if number == signal.SIGINT else -number), stderr
        # Whole shards only, under their names.
        for shard in shards.glob("*.tar"):
            assert shard.read_bytes() == (tmp_path / "whole" / shard.name).read_bytes()
        if number == signal.SIGINT:
            assert not list(shards.glob("*.tmp"))
        assert runs < 100
    assert runs > 1, "it was never interrupted"
    assert files(shards) == files(tmp_path / "whole")
    assert "all intact" in pack("--verify", shards).stdout


def test_damage_is_found(photos: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    pack(photos, shards, "--shard-size", "200kb")
    assert "all intact" in pack("--verify", shards).stdout
    path = shards / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (shards / "shard-000002.tar").unlink()
    result = fuelrail("pack", "--verify", shards)
    assert result.returncode == 1
    assert "shard-000001.tar is damaged" in result.stdout and "shard-000002.tar" in result.stdout
    assert "shard-000000" not in result.stdout


def test_a_report_says_what_there_is(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = fuelrail("inspect", photos, "--sheet", sheet, "--count", 9)
    assert result.returncode == 0, result.stderr
    for expected in ("records         97", "jpeg", "classes", "longer side", "unreadable      none", "4:"):
        assert expected in result.stdout, expected
    assert Image.open(sheet).size == (6 * 166 + 6, 2 * 166 + 6)
    found = report(photos, "--sample", 10, "--decode")
    assert found["sampled"] == 10 and sum(found["formats"].values()) == 10
    assert found["bytes"] == sum(path.stat().st_size for path in photos.rglob("*.*"))


def test_a_size_that_is_none_is_refused(photos: Path, tmp_path: Path) -> None:
    result = fuelrail("pack", photos, tmp_path / "x", "--shard-size", "lots")
    assert result.returncode == 2 and "256mb" in result.stderr


def test_a_target_inside_the_source_is_refused(photos: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    for target in (photos, photos / "packed", photos / "a" / "b", tmp_path / "link"):
        if target.name == "link":
            target.symlink_to(photos)
        result = fuelrail("pack", photos, target)
        assert result.returncode == 1 and "outside" in result.stderr, result.stderr
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before, "nothing is touched"
    beside = fuelrail("pack", photos, tmp_path / f"{photos.name}-packed")
    assert beside.returncode == 0, beside.stderr
    ignored = fuelrail("pack", photos, tmp_path / "x", "--quality", 50)
    assert ignored.returncode == 2 and "--max-side" in ignored.stderr, "alone it would change nothing"


def test_sizes_of_a_table_are_those_of_its_records(photos: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    images = [path.read_bytes() for path in sorted(photos.rglob("*.*"))]
    large = io.BytesIO()
    photographs.photograph(1, 900, 700).save(large, "JPEG")
    images.append(large.getvalue())
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet", row_group_size=10)
    found = report(tmp_path / "x.parquet")
    sizes = [len(image) for image in images]
    assert found["record_bytes"] == {"min": min(sizes), "mean": sum(sizes) // len(sizes), "max": max(sizes)}
    assert found["bytes"] == sum(sizes)
    largest = sizes.index(max(sizes))
    assert f"largest         x.parquet:{largest}\n" in fuelrail("inspect", tmp_path / "x.parquet").stdout


def test_a_report_that_nobody_reads_ends_without_a_word(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    for options in (["--sheet", str(sheet)], ["--list"], ["--json"]):
        process = subprocess.Popen(
            [str(binary()), "inspect", *options, str(photos)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FUELRAIL_LOG": "warn"},
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""
    assert sheet.exists()
    nowhere = fuelrail("inspect", photos, "--sheet", tmp_path / "nowhere" / "sheet.png")
    assert nowhere.returncode == 1 and "there is no folder" in nowhere.stderr and not nowhere.stdout


def test_warnings_about_a_source_are_shown(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "p", "--shard-size", "200kb")
    index = json.loads((tmp_path / "p/index.json").read_text())
    (tmp_path / "p/index.json").write_text(json.dumps({**index, "complete": False}))
    result = fuelrail("inspect", tmp_path / "p")
    assert result.returncode == 0
    assert "packing these shards was interrupted" in result.stderr


def test_indices_that_are_not_used_are_said_once_with_the_reason(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "p", "--shard-size", "200kb")
    before = listing(tmp_path / "p")
    shards = sorted((tmp_path / "p").glob("*.tar"))
    beside = [shard.with_name(f"{shard.name}.idx") for shard in shards]

    def said() -> str:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "FUELRAIL_LOG": "info"}
        result = fuelrail("inspect", tmp_path / "p", env=environment)
        assert result.returncode == 0 and listing(tmp_path / "p") == before
        lines = [line for line in result.stderr.splitlines() if ".idx" in line]
        assert len(lines) <= 1, lines
        return "".join(lines)

    assert said() == ""
    others = f"{beside[0]} (and {len(shards) - 1} more like it)"
    # Copies that came without their times: the shards are newer.
    for path in beside:
        os.utime(path, (1, 1))
    assert f"INFO the index {others} is older than its shard" in said()
    for path in beside:
        path.touch()
    assert said() == ""
    # What an older build wrote.
    for path in beside:
        data = bytearray(path.read_bytes())
        data[8:12] = (2).to_bytes(4, "little")
        path.write_bytes(data)
    assert f"WARN the index {others} is not used: another version of fuelrail wrote it" in said()
