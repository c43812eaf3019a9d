"""What people give as a source: paths in every form, folders as they lie about, and things that are no source."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fuelrail.errors import ConfigError, FuelrailError, SourceError
from fuelrail.loader import binary
from fuelrail.numpy import Loader
from PIL import Image
from support import TINY, Script, state_of, wait_until

try:
    import torchvision
except ImportError:
    torchvision = None


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def pictures(root: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        picture(root / name, shade)
    return root


def tar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        data = io.BytesIO()
        Image.new("RGB", (8, 8)).save(data, "PNG")
        for name, content in (("a.png", data.getvalue()), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return path


def labels(address: Any, **options: Any) -> dict[str, int]:
    """Label of each record by its key."""
    with Loader(address, transforms=TINY, **options) as loader:
        rows = [
            pair for batch in loader for pair in zip(loader.keys(batch), batch["label"].tolist(), strict=True)
        ]
    return dict(rows)


def refusal(address: Any, **options: Any) -> str:
    with pytest.raises(FuelrailError) as error:
        Loader(address, transforms=TINY, **options).close()
    text = str(error.value)
    assert "\n" not in text and "\x1b" not in text, text
    return text


def test_every_way_to_write_a_path_means_what_the_system_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    pictures(here / "x", "cat/1.png", "dog/1.png")
    pictures(tmp_path / "other" / "x", "ant/1.png", "bee/1.png")
    (tmp_path / "other" / "deep").mkdir()
    (here / "link").symlink_to(tmp_path / "other" / "deep")
    for odd in ("a#b", "a?b", "a[1]*", "{a,b}", "a%20b", "a b", "~", "ü"):
        pictures(here / odd, "cat/1.png", "dog/1.png")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here / "x"))
    mine = {"cat/1.png": 0, "dog/1.png": 1}
    for address in (
        "x",
        "x/",
        "./x//",
        "x/../x",
        here / "x",
        Path("x"),
        f"file://{here}/x",
        f"FILE://{here}/x",
        f"file:{here}/x",
        f"file://localhost{here}/x",
        f"file://{here}/a%20b",
        f"file://{here}/a%23b",
        f"file://{here}/a b",
        "a#b",
        "a?b",
        "a[1]*",
        "{a,b}",
        "a b",
        "~",
        "ü",
    ):
        assert labels(address) == mine, address
    # Behind a link, ".." is the folder above where it leads.
    assert Path("link/../x").samefile(tmp_path / "other" / "x")
    assert labels("link/../x") == {"ant/1.png": 0, "bee/1.png": 1}
    (here / "~").rename(here / "gone")
    assert labels("~/") == mine


def test_names_of_shards_may_hold_what_patterns_are_made_of(tmp_path: Path) -> None:
    for name in ("a#1.tar", "a?1.tar", "a[0].tar", "a*.tar", "a{0,1}.tar"):
        tar(tmp_path / name)
        assert list(labels(tmp_path / name)) == [f"{name}/a.png"], name
    for at in range(3):
        tar(tmp_path / "p" / f"x-{at:02}.tar")
    for pattern in ("x-??.tar", "x-*.tar", "x-{00..02}.tar", "*.tar", ""):
        assert len(labels(f"{tmp_path}/p/{pattern}")) == 3, pattern
    assert "last part of a path" in refusal(f"{tmp_path}/*/x-00.tar")
    assert "matches" in refusal(f"{tmp_path}/p/y-*.tar")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.tar.xz", ["Zstandard"]),
        ("x.tar.bz2", ["Zstandard"]),
        ("x.zip", ["unpack it"]),
        ("x.txt", [".csv"]),
        ("x.mat", ["numpy.savez"]),
        ("x.pkl", ["runs the code"]),
        ("x.pt", ["runs the code"]),
        ("x.tfrecord", ["tar shards"]),
        ("x.rec", ["tar shards"]),
        ("x.lmdb", ["tar shards"]),
        ("x.mds", ["Parquet"]),
        ("x.beton", ["Parquet"]),
        ("x.avro", ["Parquet"]),
        ("x.orc", ["Parquet"]),
        ("x.xlsx", ["Parquet"]),
        ("x.mp4", ["ffmpeg"]),
        ("x.png", ["one picture", "folder that holds it"]),
        ("x.unheard-of", ["what this file is by its ending", ".parquet"]),
    ],
)
def test_what_is_no_source_is_named_with_the_remedy(name: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    text = refusal(tmp_path / name)
    assert name in text and all(word in text for word in words), text


def test_an_address_that_leads_nowhere_says_how_far_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "images", "cat/1.png")
    monkeypatch.chdir(tmp_path)
    assert f"did you mean {tmp_path}/images?" in refusal(tmp_path / "image")
    assert f"did you mean {tmp_path}/images?" in refusal(tmp_path / "imgaes" / "cat")
    assert f'"image" starts in {tmp_path}' in refusal("image")
    assert "is a file, not a folder" in refusal(tmp_path / "images" / "cat" / "1.png" / "x.tar")
    assert "does not exist" in refusal("nowhere/../images")
    for address, words in (
        ("s3a://bucket/x", "write s3://"),
        ("hf://datasets/x", "huggingface.co"),
        ("gdrive://x", "download it"),
        ("file://host/x", "this machine"),
    ):
        assert words in refusal(address), address


def test_folders_that_are_no_classes_shift_no_label(tmp_path: Path) -> None:
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    plain = pictures(tmp_path / "plain", "cat/1.png", "dog/2.png", "Zebra/3.png", "cat/deep/4.png")
    littered = pictures(tmp_path / "set", "cat/1.png", "dog/2.png", "Zebra/3.png", "cat/deep/4.png")
    for name in ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", ".ipynb_checkpoints"):
        picture(littered / name / "cat" / "1.png")
        picture(littered / "cat" / name / "1.png")
    picture(littered / "cat" / "._1.png")
    for name in ("Thumbs.db", ".DS_Store", "dog/desktop.ini", "README.md"):
        (littered / name).write_text("x")
    (littered / "._x.tar").write_text("x")
    expected = torchvision.datasets.ImageFolder(plain)
    wanted = {str(Path(path).relative_to(plain)): label for path, label in expected.samples}
    assert labels(plain) == labels(littered) == wanted
    # Records of a folder that was right before are what they were.
    with Loader(plain, transforms=TINY) as one, Loader(littered, transforms=TINY) as other:
        assert one.classes == other.classes == expected.classes
        assert one.state_dict() == other.state_dict()


def test_a_stray_file_among_class_folders_is_not_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fuelrail")
    for stray in ("backup.tar", "._x.tar", "mean.npy", "metadata.parquet", "model.h5", "data.csv"):
        root = pictures(tmp_path / stray.replace(".", "-"), "cat/1.png", "dog/1.png")
        (root / stray).write_bytes(b"x")
        assert labels(root) == {"cat/1.png": 0, "dog/1.png": 1}, stray
    assert "ignoring backup.tar beside them" in caplog.text
    root = pictures(tmp_path / "both", "cat/1.png", "dog/1.png")
    tar(root / "a.tar")
    tar(root / "b.tar")
    text = refusal(root)
    assert "cat, dog" in text and "a.tar, b.tar" in text
    assert len(labels([root / "a.tar", root / "b.tar"])) == 2


def test_parts_of_a_data_set_are_not_taken_for_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fuelrail")
    root = pictures(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png")
    text = refusal(root)
    assert "train, val" in text and f"{root}/train" in text and 'classes=["train", "val"]' in text
    assert set(labels(root, classes=["train", "val"]).values()) == {0, 1}
    assert labels(root, split="train") == {"cat/1.png": 0, "dog/1.png": 1}
    assert labels(root, split="val") == {"cat/2.png": 0, "dog/2.png": 1}
    assert f"using the folder {root}/val" in caplog.text


@pytest.mark.parametrize(
    "split",
    [
        "val[:10%]",
        "validation[90%:]",
        "test",
        "train",
        "train[:0.9]",
        "train[:100]",
        "train[10%:20%]",
        "train[:110%]",
        "all",
        "train+test",
        0.9,
        ["train[:90%]"],
    ],
)
def test_a_part_that_is_not_understood_is_refused_and_the_held_out_one_named(
    split: Any, tmp_path: Path
) -> None:
    root = pictures(tmp_path, "cat/1.png", "dog/1.png")
    with pytest.raises(ConfigError, match=r"train\[90%:\]"):
        Loader(root, transforms=TINY, split=split)


def test_what_is_held_out_is_in_no_other_part(tmp_path: Path) -> None:
    root = pictures(tmp_path, *(f"c{at % 3}/{at}.png" for at in range(60)))
    train, held = labels(root, split="train[:80%]"), labels(root, split="train[80%:]")
    assert not train.keys() & held.keys() and len(train) + len(held) == 60
    assert labels(root, split="train[-20%:]") == held and labels(root, split=" train[ :80% ]") == train


def test_what_is_passed_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fuelrail")
    root = pictures(tmp_path / "a", "cat/1.png", "dog/1.png")
    (root / "empty").mkdir()
    for name in ("cat/1.txt", "cat/2.txt", "dog/x.heic"):
        (root / name).write_text("x")
    labels(root)
    assert "3 files of other endings were skipped (.txt 2, .heic 1)" in caplog.text
    assert "1 of 3 class folders hold no image and remain classes: empty" in caplog.text
    only = tmp_path / "b" / "cat"
    only.mkdir(parents=True)
    (only / "x.heic").write_text("x")
    assert "1 file of another ending was skipped (.heic 1)" in refusal(tmp_path / "b")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([".a.png", ".b.png"], "all 2 files there are hidden (their names begin with a dot)"),
        ([".a.png"], "the only file there is hidden"),
        ([".a.png", "x.txt"], "1 file there is hidden (its name begins with a dot) and not read"),
        (["cat/.a.png", "dog/.b.png"], "all 2 files there are hidden"),
        ([".a.parquet"], "the only file there is hidden"),
    ],
)
def test_what_is_hidden_is_said_where_nothing_is_found(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    assert said in refusal(tmp_path / "set")


def test_shards_that_are_hidden_are_counted(tmp_path: Path) -> None:
    (tmp_path / ".a.tar").write_bytes(b"x")
    assert "1 file there is hidden" in refusal(tmp_path / "*.tar")
    assert "the only file there is hidden" in refusal(tmp_path / "a.tar")


def test_no_name_reaches_a_log_or_an_error_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fuelrail")
    forged = "a\nERROR forged \x1b[31mred\x1b[0m\u202e"
    root = tmp_path / forged
    picture(root / f"class{forged}" / "1.png")
    picture(root / f"class{forged}" / "2.png")
    (root / f"class{forged}" / f"bad{forged}.png").write_bytes(b"no image")
    (root / f"empty{forged}").mkdir()
    with Loader(root, transforms=TINY, error_budget=16) as loader:
        keys = [key for batch in loader for key in loader.keys(batch)]
    # A key is data, and stays what it is.
    assert f"class{forged}/1.png" in keys
    said = [record.getMessage() for record in caplog.records]
    assert any("forged" in text for text in said)
    assert any("bad record" in text for text in said)
    for text in said:
        assert not any(mark in text for mark in ("\n", "\x1b", "\u202e")), repr(text)
    refusal(root / f"nowhere{forged}")
    with pytest.raises(FuelrailError) as error:
        list(Loader(root, transforms=TINY, on_error="fail"))
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_a_name_that_is_no_text_is_shown_byte_by_byte_by_a_command(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9\n\x1b[31m"
    for words in (
        [b"preview", b"synthetic:", b"--out", folder + b"/x.png"],
        [b"bench", b"--config", folder, b"--pipeline", b"x"],
        [b"which", b"synthetic:", b"--state", folder],
        [b"serve", b"--root", folder, b"--socket", b"/nowhere/s.sock"],
    ):
        done = subprocess.run([os.fsencode(binary()), *words], capture_output=True, timeout=60)
        assert b"caf\\xe9\\n\\x1b[31m" in done.stderr, (words, done.stderr)
        assert b"\x1b" not in done.stderr and b"\xef\xbf\xbd" not in done.stderr, done.stderr


def test_a_folder_whose_name_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(root)).mkdir()
    with pytest.raises(ConfigError, match=r"caf\\xe9.* is not UTF-8"):
        Loader(os.fsdecode(root), transforms=TINY)
    # Names inside may be anything.
    picture(tmp_path / "set" / "cat" / "1.png")
    (tmp_path / "set" / "cat").rename(tmp_path / "set" / os.fsdecode(b"caf\xe9"))
    assert labels(tmp_path / "set") == {"caf\\xe9/1.png": 0}


def test_a_current_folder_that_is_gone_matters_to_relative_paths_only(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", "cat/1.png", "dog/1.png")
    script = Script(
        """
        os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])
        from fuelrail.errors import ConfigError
        from fuelrail.numpy import Loader, transforms as T
        try:
            Loader("set", transforms=[T.Resize((8, 8))])
        except ConfigError as error:
            say(str(error))
        say(len(list(Loader(sys.argv[2], transforms=[T.Resize((8, 8))]))))
        """,
        tmp_path / "gone",
        root,
    )
    assert "the current folder is gone" in script.hears(30)
    assert script.hears(30) == 2
    assert script.ends(30) == 0


def test_a_daemon_ends_with_the_program_that_another_one_replaces(tmp_path: Path) -> None:
    """After os.exec* the daemon ends; what is left is an entry in the table of processes, until the program ends."""
    root = pictures(tmp_path / "set", "cat/1.png")
    script = Script(
        """
        from fuelrail.numpy import Loader, transforms as T
        loader = Loader(sys.argv[1], transforms=[T.Resize((8, 8))])
        say(loader.daemon_pid)
        os.execv(sys.executable, [sys.executable, "-c", "print(1, flush=True); input()"])
        """,
        root,
    )
    daemon = script.hears(30)
    with script:
        wait_until(lambda: state_of(daemon) is None, 30, "the daemon ends")
        assert script.hears(30) == 1


def test_errors_keep_their_types(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Loader(tmp_path / "nowhere", transforms=TINY)
