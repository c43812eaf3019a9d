"""`where=`: the records of a table or of tar shards that fulfil a condition, as pyarrow and pandas would choose them."""

from __future__ import annotations

import csv
import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from fuelrail import ConfigError, Mix, Source, SourceError, TokenError
from support import TINY, Loader, seeds

COUNT = 400

#: What every column has now and then: nothing.
WORDS = ["en", "de", "fr", "it's", 'say "hi"', "", None]


def table() -> pa.Table:
    random = seeds()
    numbers = range(COUNT)

    def sometimes(value: Any) -> Any:
        return None if random.random() < 0.1 else value

    return pa.table(
        {
            "id": pa.array(list(numbers), pa.int64()),
            "score": pa.array([sometimes(random.random()) for _ in numbers], pa.float64()),
            "small": pa.array([sometimes(random.randrange(10) / 10) for _ in numbers], pa.float32()),
            "count": pa.array([sometimes(random.randrange(-5, 5)) for _ in numbers], pa.int16()),
            "large": pa.array([(1 << 53) + at % 3 for at in numbers], pa.uint64()),
            "lang": pa.array([random.choice(WORDS) for _ in numbers], pa.string()),
            "ok": pa.array([sometimes(random.random() < 0.5) for _ in numbers], pa.bool_()),
            "kind": pa.array([f"kind {at % 4}" for at in numbers]).dictionary_encode(),
        }
    )


def write(whole: pa.Table, folder: Path, ending: str) -> Path:
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(whole, path, row_group_size=61)
    elif ending == "arrow":
        pa.feather.write_feather(whole, path, chunksize=61)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in whole.to_pylist()))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(whole.column_names)
            writer.writerows(row.values() for row in whole.to_pylist())
    return path


def ids(source: Any, **options: Any) -> list[int]:
    with Loader(source, fields=["id"], label=None, batch_size=37, **options) as loader:
        return [number for batch in loader for number in batch["id"].tolist()]


def chosen(whole: pa.Table, expression: pc.Expression) -> list[int]:
    found: list[int] = whole.filter(expression)["id"].to_pylist()
    return found


#: Conditions, and pyarrow's way to write them. A comparison with a null is false there too.
CONDITIONS: dict[str, Callable[[], pc.Expression]] = {
    "score > 0.3": lambda: pc.field("score") > 0.3,
    "score > 0.3 and lang == 'en'": lambda: (pc.field("score") > 0.3) & (pc.field("lang") == "en"),
    "score <= 0.1 or count >= 3": lambda: (pc.field("score") <= 0.1) | (pc.field("count") >= 3),
    "lang in ['en', \"it's\", 'say \"hi\"']": lambda: pc.field("lang").isin(["en", "it's", 'say "hi"']),
    "count in (1, -2)": lambda: pc.field("count").isin([1, -2]),
    "count != 2": lambda: pc.field("count") != 2,
    "ok": lambda: pc.field("ok"),
    "ok == false and not (count < 0)": lambda: (
        (pc.field("ok") == False) & ((pc.field("count") >= 0) | pc.field("count").is_null())  # noqa: E712
    ),
    "score is null and count is not null": lambda: pc.field("score").is_null() & pc.field("count").is_valid(),
    "large == 9007199254740993": lambda: pc.field("large") == pa.scalar((1 << 53) + 1, pa.uint64()),
    "kind == 'kind 2' and id < 100": lambda: (pc.field("kind") == "kind 2") & (pc.field("id") < 100),
    "score > small": lambda: pc.field("score") > pc.field("small"),
}


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "csv"])
def test_a_condition_chooses_the_rows_that_pyarrow_chooses(ending: str, tmp_path: Path) -> None:
    whole = table()
    if ending == "csv":
        # A cell is text, and an empty one a null.
        whole = whole.set_column(5, "lang", pa.array([word or None for word in whole["lang"].to_pylist()]))
        whole = whole.drop_columns("ok")
    path = write(whole, tmp_path, ending)
    for condition, expression in CONDITIONS.items():
        if ending == "csv" and "ok" in condition:
            continue
        if condition == "score > small" and ending != "csv":
            # Floats of four bytes are what their digits say, as in a file of text.
            whole = whole.set_column(
                2,
                "small",
                pa.array(
                    [None if value is None else float(f"{value:.1f}") for value in whole["small"].to_pylist()]
                ),
            )
        assert ids(path, where=condition) == chosen(whole, expression()), condition


def test_a_float32_is_what_its_digits_say(tmp_path: Path) -> None:
    path = write(table(), tmp_path, "parquet")
    small = pq.read_table(path)["small"].to_numpy()
    assert ids(path, where="small == 0.3") == np.flatnonzero(small == np.float32(0.3)).tolist()
    assert ids(path, where="small == 0.3")


def test_a_file_of_text_is_chosen_from_as_pyarrow_reads_it(tmp_path: Path) -> None:
    path = write(table(), tmp_path, "csv")
    whole = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))
    score, lang, count = (pc.field(name) for name in ("score", "lang", "count"))
    for condition, expression in (
        ("score > 0.5 and (lang == 'de' or count < 0)", (score > 0.5) & ((lang == "de") | (count < 0))),
        (
            "lang not in ['en', 'de'] and count != 0",
            lang.is_valid() & ~lang.isin(["en", "de"]) & (count != 0),
        ),
        ("0.25 <= score", score >= 0.25),
        ("lang is null", lang.is_null()),
    ):
        assert ids(path, where=condition) == chosen(whole, expression), condition


def shards(folder: Path) -> str:
    """Two shards whose records have JSON, or not."""
    for shard in range(2):
        with tarfile.open(folder / f"x-{shard}.tar", "w") as tar:
            for number in range(shard * 30, shard * 30 + 30):
                meta = {"score": number / 60, "deep": {"lang": ["en", "de"][number % 2]}}
                if number % 10 == 3:
                    meta = {"rare": True}
                members = {"ppm": b"P6 4 4 255\n" + bytes([number]) * 48, "cls": str(number % 5).encode()}
                if number % 10 != 7:
                    members["json"] = json.dumps(meta).encode()
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{number:03}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/x-{{0..1}}.tar"


def test_a_condition_looks_into_the_json_of_tar_records(tmp_path: Path) -> None:
    address = shards(tmp_path)

    def numbers(condition: str, **options: Any) -> list[int]:
        with Loader(address, where=condition, transforms=TINY, batch_size=7, **options) as loader:
            found: list[int] = []
            for batch in loader:
                keys = [int(Path(key.rsplit("/", 1)[-1]).name.split(".")[0]) for key in loader.keys(batch)]
                # The records are those of their keys: picture and label.
                assert [int(image.flat[0]) for image in batch["image"]] == keys
                assert batch["label"].tolist() == [key % 5 for key in keys]
                found += keys
            return found

    has = [number for number in range(60) if number % 10 not in (3, 7)]
    assert numbers("json.score >= 0.5") == [number for number in has if number >= 30]
    assert numbers("json:score >= 0.5 and json.deep.lang == 'de'") == [
        number for number in has if number >= 30 and number % 2
    ]
    assert numbers("json.rare") == [3, 13, 23, 33, 43, 53]
    assert numbers("json.score is null") == [number for number in range(60) if number not in has]
    assert numbers("cls == '4' and json.score < 0.2") == [4, 9]
    shuffled = numbers("json.score >= 0", shuffle=True, seed=3)
    assert shuffled != has and sorted(shuffled) == has
    with pytest.raises((ConfigError, SourceError), match=r"scor.*score"):
        numbers("json.scor > 3")
    with pytest.raises(ConfigError, match=r"json.deep \(an object\) with 3 \(a number\)"):
        numbers("json.deep == 3")


def test_a_list_of_images_is_chosen_from_and_so_is_a_part_of_a_mixture(images: Path, tmp_path: Path) -> None:
    paths = sorted(str(path) for path in images.rglob("*") if path.is_file())
    lines = [f"{path},{Path(path).parent.name},{at % 10}" for at, path in enumerate(paths)]
    lines.append("nowhere.jpg,none,7")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,quality", *lines]) + "\n")
    chosen = Source(tmp_path / "list.csv", root="/", where="quality >= 7 and label is not null")
    expected = [path for at, path in enumerate(paths) if at % 10 >= 7]
    with Loader(chosen, transforms=TINY, batch_size=8, error_budget=5) as loader:
        keys = [key for batch in loader for key in loader.keys(batch)]
        assert loader.num_samples == len(expected) + 1, (
            "a row without its file is a bad record, as without where="
        )
    rows = {lines[int(key.rpartition(":")[2])].split(",")[0] for key in keys}
    assert rows <= set(expected) and len(rows) > len(expected) - 2
    with Loader(
        Mix({"chosen": chosen, "all": images}), transforms=TINY, batch_size=8, error_budget=5
    ) as loader:
        assert loader.num_samples == len(expected) + 1 + len(paths)


def test_a_part_of_a_part_has_both_conditions_and_parts_stay_what_they_are(tmp_path: Path) -> None:
    path = write(table(), tmp_path, "parquet")
    wanted = ids(path, where="score > 0.3")
    folds = [ids(path, where="score > 0.3", split=f"fold {fold}/3") for fold in (1, 2, 3)]
    assert sorted(number for fold in folds for number in fold) == wanted and all(folds)
    assert sorted(folds[0] + ids(path, where="score > 0.3", split="not fold 1/3")) == wanted
    # A record's part does not depend on the condition.
    assert set(folds[0]) <= set(ids(path, split="fold 1/3"))


def test_two_ranks_share_what_is_chosen_and_any_number_of_them_resumes(tmp_path: Path) -> None:
    path = write(table(), tmp_path, "parquet")
    source = Source(path, where="lang == 'en' or ok", fields=["id"], label=None)
    wanted = ids(path, where="lang == 'en' or ok")
    options: dict[str, Any] = {"shuffle": True, "seed": 5}
    taken: list[int] = []
    for rank in range(2):
        with Loader(source, batch_size=11, rank=rank, world_size=2, **options) as loader:
            for _, batch in zip(range(3), loader, strict=False):
                taken += batch["id"].tolist()
            token = loader.state_dict()
    for rank in range(3):
        with Loader(source, batch_size=5, rank=rank, world_size=3, **options) as loader:
            loader.load_state_dict(token)
            taken += [number for batch in loader for number in batch["id"].tolist()]
    assert sorted(taken) == wanted


def test_a_token_of_another_condition_is_refused_with_both(tmp_path: Path) -> None:
    path = write(table(), tmp_path, "parquet")

    def loader(**options: Any) -> Any:
        return Loader(path, fields=["id"], label=None, batch_size=5, **options)

    with loader(where="score>0.3") as first:
        next(iter(first))
        token = first.state_dict()
    with loader(where="score > 0.3") as same:
        same.load_state_dict(token)
    with loader(where="score > 0.4") as other, pytest.raises(TokenError) as refused:
        other.load_state_dict(token)
    assert 'where differs (saved with "score > 0.3", now "score > 0.4")' in str(refused.value)
    with (
        loader() as other,
        pytest.raises(TokenError, match=r'where differs \(saved with "score > 0.3", now none'),
    ):
        other.load_state_dict(token)
    with (
        loader(where="score > 0.3", split="fold 1/2") as other,
        pytest.raises(TokenError, match="split differs"),
    ):
        other.load_state_dict(token)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("", "it is empty"),
        (3, "where= takes a condition, as text"),
        (["score > 3"], "where= takes a condition, as text"),
        ("score >", "a value is missing"),
        ("score = 3", "write =="),
        ("score > 0.3 & ok", "write and"),
        ("scor > 0.3", '"scor" is not a column of .* it has id .*, score '),
        ("score > 5", "none of 400 records fulfils the condition"),
        ("score == 'high'", r"score = [0-9.]+ \(a number\) with 'high' \(a text\)"),
        ("lang > 3", r"\(a text\) with 3 \(a number\)"),
        ("lang == en", '"en" is not a column'),
        ("ok > 0", r"ok = (true|false) \(true or false\) with 0 \(a number\)"),
        ("ok > false", "true and false have no order"),
        ("lang == null", 'write "is null"'),
        ("score", "stands alone"),
        ("0.1 < score < 0.3", "comparisons in a row"),
        ("score in 0.3", 'after "in" comes a list'),
        ("lang in []", "a list is empty"),
        ("lang in ['a', 3]", "a list holds a text and a number"),
        ("len(lang) > 3", "nothing is called here"),
        ("score * 2 > 1", "nothing is computed here"),
        ("(score > 3", "a parenthesis is not closed"),
        ("lang == 'en", "a text does not end"),
        ("1 == 1", "names no column"),
        ("SELECT * FROM x", '"and" or "or" is missing|nothing is computed'),
    ],
)
def test_a_mistake_in_a_condition_is_named(condition: Any, said: str, tmp_path: Path) -> None:
    path = write(table(), tmp_path, "parquet")
    with pytest.raises((ConfigError, SourceError), match=said) as refused:
        ids(path, where=condition)
    assert "where" in str(refused.value)


def test_sources_without_values_refuse_a_condition_by_name(images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 4, 4, 3), np.uint8))
    for source, said in (
        (images, "an image folder has no values"),
        ("synthetic://?count=5", "synthetic images have no values"),
        (tmp_path / "x.npy", "order=numpy.flatnonzero"),
        ("kafka://nowhere:9092/topic", "those of a stream are not known"),
    ):
        with pytest.raises(ConfigError, match=said):
            Loader(source, where="score > 3", transforms=TINY)
    with pytest.raises(ConfigError, match=r"give it to Source\(...\)"):
        Loader(Mix({"a": images}), where="score > 3", transforms=TINY)


def test_a_damaged_row_is_left_out_with_a_warning_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fuelrail")
    path = tmp_path / "rows.csv"
    path.write_text("id,score,x\n" + "".join(f"{at},{at / 10},a\n" for at in range(10)) + "10,0.9,a,b,c\n")
    assert ids(path, where="score > 0.5") == [6, 7, 8, 9]
    assert "could not be tested on 1 records, which are left out" in caplog.text
    assert caplog.text.count("cells where the first line has 3; 1 of 11 records") == 1, "said once"
    with pytest.raises(SourceError, match="could not be tested on 1 records"):
        ids(path, where="score > 0.5", on_error="fail")


def test_inspect_takes_a_condition(tmp_path: Path) -> None:
    import subprocess

    from fuelrail.loader import binary

    path = write(table(), tmp_path, "parquet")
    shown = subprocess.run(
        [binary(), "inspect", path, "--option", "where=score > 0.3", "--option", 'fields=["id"]'],
        capture_output=True,
        text=True,
        check=False,
    )
    many = len(ids(path, where="score > 0.3"))
    assert str(many) in shown.stdout, shown
