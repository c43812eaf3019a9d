"""The scripts in examples/ that need no downloaded data do what they say."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest
from fuelrail.numpy import Loader, fields
from PIL import Image
from support import GATE, Daemon, Footprint, long_form

ROOT = Path(__file__).parents[1]


def example(
    name: str, *arguments: Any, ranks: int | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """Runs an example to its end, by torchrun if it has ranks, and gives what it printed."""
    # Threads that spin for each other starve on a busy machine.
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as logs:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--log-dir", logs]
        launcher = [*torchrun, "--nproc-per-node", str(ranks)] if ranks else []
        command = [sys.executable, *launcher, str(ROOT / "examples" / name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.deadline(300)
def test_a_mixture_is_drawn_three_to_one(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    formats.tar(images, tmp_path)
    said = example("mix.py", images, f"{tmp_path}/train-*.tar")
    assert re.findall(r"(\d+) own, (\d+) web", said) == [("750", "250")] * 2, said


@pytest.mark.deadline(300)
def test_packed_tokens_teach_a_small_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pyarrow")
    said = example("tokens.py", tmp_path / "text.parquet", ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0], said


def pairs(folder: Path, count: int) -> str:
    """Shards of pictures in five colours, with a caption that names it and a mask of where it is."""
    colours = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 210), "white": (250, 250, 250)}
    generator = np.random.default_rng(1)
    for number in range(2):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for record in range(number, count, 2):
                name, colour = [*colours.items()][record % len(colours)]
                picture = generator.integers(60, 100, (64, 72, 3), dtype=np.uint8)
                mask = np.zeros((64, 72), dtype=np.uint8)
                top, left = (int(edge) for edge in generator.integers(4, 28, 2))
                picture[top : top + 32, left : left + 32] = colour
                mask[top : top + 32, left : left + 32] = 1 + record % len(colours)
                for ending, content in {
                    "jpg": encoded(picture, "JPEG"),
                    "seg.png": encoded(mask, "PNG"),
                    "txt": f"a {name} square on gray".encode(),
                }.items():
                    info = tarfile.TarInfo(f"{record:05}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / "{00000..00001}.tar")


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.deadline(300)
def test_clip_learns_which_caption_belongs_to_which_image(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = example("clip.py", pairs(tmp_path, 320))
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    # Four captions in 32 pairs: better than guessing (3.47) is knowing the colour (2.08).
    assert len(losses) == 4 and losses[-1] < 2.8 and "square on gray" in said, said


def coco(folder: Path, count: int) -> Path:
    """Coloured rectangles on noise, with COCO's annotations of them; every fifth image has none."""
    generator = np.random.default_rng(2)
    colours = {"red": (220, 40, 40), "green": (40, 190, 40), "blue": (40, 60, 230)}
    data: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    data["categories"] = [{"id": 3 + at, "name": name} for at, name in enumerate(colours)]
    (folder / "train2017").mkdir()
    for image in range(count):
        w, h = (int(side) for side in generator.integers(120, 320, 2))
        picture = generator.integers(90, 150, (h, w, 3), dtype=np.uint8)
        for _ in range(int(generator.integers(1, 5)) if image % 5 else 0):
            left, top = int(generator.integers(0, w - 40)), int(generator.integers(0, h - 40))
            wide, high = (int(side) for side in generator.integers(16, 40, 2))
            kind = int(generator.integers(3))
            picture[top : top + high, left : left + wide] = list(colours.values())[kind]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": image,
                    "category_id": 3 + kind,
                    "bbox": [left, top, wide, high],
                }
            )
        name = f"{image:012}.jpg"
        data["images"].append({"id": image, "file_name": name, "width": w, "height": h})
        (folder / "train2017" / name).write_bytes(encoded(picture, "JPEG"))
    path = folder / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(data))
    return path


@pytest.mark.deadline(300)
def test_boxes_of_coco_follow_their_images_into_a_sheet(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    sheet = tmp_path / "sheet.png"
    said = example("detection.py", coco(tmp_path, 64), sheet)
    counts = dict(re.findall(r"(\w+): (\d+) boxes", said))
    assert list(counts) == ["red", "green", "blue"] and all(int(count) > 10 for count in counts.values()), (
        said
    )
    assert Image.open(sheet).size == (4 * 258 + 2, 4 * 258 + 2)


@pytest.mark.deadline(300)
def test_a_segmentation_learns_from_masks_that_follow_their_images(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = example("segmentation.py", pairs(tmp_path, 320), "seg.png")
    right = [float(share) for share in re.findall(r"([\d.]+) % of the pixels", said)]
    # A mask that did not follow would be wrong around every edge.
    assert len(right) == 4 and right[-1] > 95, said


@pytest.mark.deadline(300)
def test_dino_sees_ten_views_of_each_image(images: Path) -> None:
    pytest.importorskip("torch")
    said = example("dino.py", images)
    steps = re.findall(r"(\d+) views of (\d+) images", said)
    assert len(steps) >= 3 and set(steps) == {("10", "16")}, said


@pytest.mark.deadline(300)
def test_trials_of_optuna_share_a_feed_and_bad_ones_are_pruned(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("optuna")
    said = example("tune_optuna.py", images, tmp_path / "study.log", 4)
    trials = re.findall(r"trial (\d): (\w+), .*; fed by daemon (\d+); loss by epoch (.*)", said)
    assert [number for number, *_ in trials] == ["0", "1", "2", "3"], said
    assert len({daemon for _, _, daemon, _ in trials}) == 1, said
    ends = {
        state: [losses.count(",") + 1 for _, was, _, losses in trials if was == state]
        for _, state, *_ in trials
    }
    # The others went on to the last epoch.
    assert set(ends) == {"complete", "pruned"} and set(ends["complete"]) == {4}, said
    complete = {
        number: float(losses.split(", ")[-1]) for number, state, _, losses in trials if state == "complete"
    }
    best = re.search(r"best: trial (\d)", said)
    assert best and complete[best[1]] == min(complete.values()), said


@pytest.fixture
def of_ray(footprint: Footprint) -> Iterator[dict[str, str]]:
    """An environment in which Ray has a folder of its own; none of its processes is left."""
    pytest.importorskip("torch")
    pytest.importorskip("ray")
    # Ray's sockets lie deep below: not in the tests' own folder, whose path is too long for them.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        # Ray would write a token into the home folder.
        own = {"RAY_TMPDIR": folder, "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
        # A process less.
        own["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        yield footprint.environment | own
        footprint.is_clean(30)


@pytest.mark.deadline(300)
def test_trials_of_ray_tune_share_a_feed_and_bad_ones_are_stopped(
    images: Path, tmp_path: Path, of_ray: dict[str, str]
) -> None:
    said = example("tune_ray.py", images, tmp_path / "results", 4, environment=of_ray)
    trials = re.findall(r"trial (\d): (\w+), .*; fed by daemon (\d+); loss by epoch (.*)", said)
    assert [number for number, *_ in trials] == ["0", "1", "2", "3"], said
    assert len({daemon for _, _, daemon, _ in trials}) == 1, said
    losses = {
        state: [[float(loss) for loss in each.split(", ")] for _, was, _, each in trials if was == state]
        for _, state, *_ in trials
    }
    # The others continued, also after the one which had started the daemon.
    assert set(losses) == {"complete", "stopped"} and {len(each) for each in losses["complete"]} == {8}, said
    best = re.search(r"best: loss ([\d.]+)", said)
    assert best and float(best[1]) == min(loss for all in losses.values() for each in all for loss in each), (
        said
    )


@pytest.mark.deadline(300)
def test_workers_of_ray_train_use_each_sample_once_and_continue_exactly_after_a_failure(
    images: Path, tmp_path: Path, of_ray: dict[str, str]
) -> None:
    def steps(*arguments: Any) -> list[tuple[int, ...]]:
        said = example("ray_train.py", images, tmp_path / "results", *arguments, environment=of_ray)
        told = r"epoch (\d), step (\d+) \(started from (\d+)\): .*; (\d+) samples in (\d+) rows, from (\d) daemon"
        return [tuple(map(int, each)) for each in re.findall(told, said)]

    # 61 samples are four steps of 16.
    first = [(1, 3, 0, 48, 48, 1), (1, 4, 0, 61, 61, 1)]
    if not GATE:
        assert steps(1) == first
        return
    # A worker dies in step 5: all continue from the last checkpoint that Ray has noted.
    *_, (_, _, began, *_) = failed = steps(2, "fail")
    assert began in (3, 4)
    second = [(2, 6, began, 32, 32, 1), (2, 8, began, 61, 61, 1)]
    assert failed == [*first[: began - 2], *([(1, 4, 3, 61, 61, 1)] if began == 3 else []), *second]
    # More epochs, in another run of the script.
    assert steps(3) == [*failed, (3, 9, 8, 16, 16, 1), (3, 12, 8, 61, 61, 1)]


@pytest.mark.deadline(300)
def test_a_table_that_spark_wrote_is_read_as_it_wrote_it(
    images: Path, tmp_path: Path, footprint: Footprint
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pyspark")
    parquet = pytest.importorskip("pyarrow.parquet")
    if shutil.which("java") is None:
        pytest.skip("needs Java: apt install default-jre-headless")
    folder, table = tmp_path / "some images", tmp_path / "table"
    shutil.copytree(images, folder)
    expected = {key: (name, data) for key, _, name, data in formats.members(folder)}
    # Spark is to drop both.
    copied, *_ = expected
    shutil.copy(folder / copied, folder / copied.replace(".", " again."))
    (folder / "forest" / "empty.jpg").touch()
    scratch = str(footprint.temporary)
    java = f"-Djava.io.tmpdir={scratch} -XX:-UsePerfData"
    said = example(
        "spark_prepare.py",
        folder,
        table,
        environment=footprint.environment
        | {"JAVA_TOOL_OPTIONS": java, "SPARK_LOCAL_DIRS": scratch, "SPARK_LOCAL_IP": "127.0.0.1"},
    )
    assert re.findall(r"epoch \d: (\d+) images of (\d) classes", said) == [("61", "3")] * 2, said
    footprint.is_clean(30)

    files = sorted(table.glob("*.parquet"))
    written = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert len(files) == 4 and len(written) == 61
    for row in written:
        name = row["name"].replace(" again.", ".")
        assert (row["label"], row["image"]) == expected.pop(name)
    assert not expected
    parts = {
        "image": fields.Bytes("image", max_bytes=max(len(row["image"]) for row in written)),
        "name": fields.Text("name", max_bytes=200),
    }
    with Loader(table, fields=parts, batch_size=8, num_workers=1) as loader:
        read = [
            {"name": name, "label": loader.classes[label], "image": image}
            for batch in loader
            for name, label, image in zip(batch["name"], batch["label"], batch["image"], strict=True)
        ]
    assert read == written


@pytest.mark.deadline(300)
def test_searches_of_hyperopt_share_a_feed(images: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("hyperopt")
    said = example("tune_hyperopt.py", images, 2, 3)
    searches = re.findall(r"search (\d): fed by daemon (\d+); loss by trial (.*)", said)
    assert [number for number, *_ in searches] == ["0", "1"] and searches[0][1] == searches[1][1], said
    losses = [float(loss) for *_, each in searches for loss in each.split(", ")]
    best = re.search(r"best: loss ([\d.]+)", said)
    assert len(losses) == 6 and best and float(best[1]) == min(losses), said


@long_form
@pytest.mark.deadline(300)
def test_local_sgd_averages_and_continues_from_its_checkpoint(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    unbroken = example("local_sgd.py", images, tmp_path / "unbroken.pt", 4, ranks=2)
    assert re.findall(r"round (\d)", unbroken) == ["1", "2", "3", "4"], unbroken
    example("local_sgd.py", images, tmp_path / "broken.pt", 2, ranks=2)
    resumed = example("local_sgd.py", images, tmp_path / "broken.pt", 4, ranks=2)
    assert re.findall(r"round (\d)", resumed) == ["3", "4"], resumed
    ends = [re.findall(r"1 different models on 2 ranks: (\w+)", said) for said in (unbroken, resumed)]
    assert len(ends[0]) == 1 and ends[0] == ends[1], (unbroken, resumed)


@long_form
@pytest.mark.deadline(300)
@pytest.mark.parametrize("tensor, rows", [(1, {"31", "30"}), (2, {"61"})], ids=["2x1", "1x2"])
def test_fsdp_shards_a_model_and_splits_the_rows(images: Path, tensor: int, rows: set[str]) -> None:
    pytest.importorskip("torch")
    said = example("fsdp.py", images, tensor, ranks=2)
    held = re.findall(r"rank 0 holds (\d+) of (\d+) weights", said)
    assert len(held) == 2 and all(int(part) < 0.6 * int(whole) * tensor for part, whole in held), said
    split = re.findall(r"rows by rank (\d+), (\d+); 61 different samples of 61", said)
    assert [set(each) for each in split] == [rows] * 2, said


def has_flags(command: list[str]) -> None:
    """Asserts that a `fuelrail` command has the flags it is given."""
    manual = subprocess.run(
        [sys.executable, "-m", *command[:2], "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for flag in (word for word in command if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", manual), command


def test_the_batch_file_of_slurm_starts_a_training(tmp_path: Path) -> None:
    batch = ROOT / "examples" / "slurm.sbatch"
    # What Slurm would have: the names of the nodes, and a launcher, which here says what it was to launch and where.
    for name, says in {
        "scontrol": "echo node1; echo node2",
        "srun": 'echo "$MASTER_ADDR:$MASTER_PORT $*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{says}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = subprocess.run(["bash", batch], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    where, *command = done.stdout.split()
    assert where == "node1:29500" and command[:2] == ["fuelrail", "train"], done.stdout
    has_flags(command)


def test_the_daemon_of_the_kubernetes_manifest_serves_its_trainer(images: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    parts = {
        part["kind"]: part for part in yaml.safe_load_all((ROOT / "examples/kubernetes.yaml").read_text())
    }
    pod = parts["Job"]["spec"]["template"]["spec"]
    (daemon,), (trainer,) = pod["initContainers"], pod["containers"]
    # The daemon checks its clients' user, and watches their processes.
    assert pod["shareProcessNamespace"] is True and pod["securityContext"]["runAsUser"]
    assert not any("securityContext" in container for container in (daemon, trainer))
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "emptyDir" in volumes["socket"]
    mounts = [
        {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        for container in (daemon, trainer)
    ]
    assert mounts[0]["socket"] == mounts[1]["socket"] and set(mounts[0]) | set(mounts[1]) == set(volumes)
    has_flags(daemon["command"])
    _, serve, config, flag, socket = daemon["command"]
    assert (serve, flag) == ("serve", "--socket") and Path(socket).parent == Path(mounts[0]["socket"])
    assert daemon["startupProbe"]["exec"]["command"] == ["test", "-S", socket]
    assert config == f"{mounts[0]['pipelines']}/pipelines.toml"
    assert volumes["pipelines"]["configMap"]["name"] == parts["ConfigMap"]["metadata"]["name"]

    pipelines = parts["ConfigMap"]["data"]["pipelines.toml"]
    assert f"{mounts[0]['data']}/train" in pipelines
    (tmp_path / "pipelines.toml").write_text(pipelines.replace("/data/train", str(images)))
    with (
        Daemon(tmp_path / "pipelines.toml", socket=tmp_path / "s.sock") as running,
        Loader(running.listens().url, pipeline="train", rank=0, world_size=1) as loader,
    ):
        assert sum(len(batch["label"]) for batch in loader) == 61
