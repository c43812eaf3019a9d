"""A trained model in other formats: each file alone is enough to use it, and says what the trained model says."""

# ruff: noqa: E402  (importorskip comes before the imports that need what it looks for)
from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import photographs
import pytest

torch = pytest.importorskip("torch", reason="fuelrail.train needs torch")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from fuelrail import torch as frames
from fuelrail.train import load_exported, load_run
from fuelrail.train.applying import main as apply
from fuelrail.train.cli import main as train
from fuelrail.train.exporting import FORMATS, Measured, losses
from support import QUICK_TRAINING

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that held a third of its images out."""
    torch.set_num_threads(1)
    data = photographs.folder(tmp_path_factory.mktemp("data"), 90, seed=3, least=24, most=40)
    out = tmp_path_factory.mktemp("runs") / "run"
    assert (
        train(
            [
                "--data",
                str(data),
                "--out",
                str(out),
                "--epochs",
                "2",
                "--val-fraction",
                "0.3",
                *QUICK_TRAINING,
            ]
        )
        == 0
    )
    return out


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """All formats of it."""
    assert apply("export", [str(run), "--num-workers", "2"]) == 0
    return run / "export"


@pytest.fixture(scope="module")
def images(run: Path) -> torch.Tensor:
    """What was held out, as the model is shown it."""
    trained = load_run(run)
    data, split = trained.describe["held_out"]
    with frames.Loader(data, split=split, transforms=trained.transforms(), batch_size=64) as loader:
        return torch.cat([batch["image"].clone() for batch in loader])


def test_all_formats_are_written_and_nothing_else_is_left(exported: Path):
    names = {file for file, _ in FORMATS.values()}
    assert {path.name for path in exported.iterdir()} == {*names, "model.json"}


def test_architecture_and_weights_are_enough_to_build_the_model(
    run: Path, exported: Path, images: torch.Tensor
):
    with torch.no_grad():
        assert torch.equal(load_exported(exported)(images), load_run(run).model(images))
    theirs = pytest.importorskip("safetensors")
    with theirs.safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata()["model"] == "small_cnn"
        weights = load_run(run).model.state_dict()
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), weights[name]) for name in weights)


def test_onnx_says_the_same_for_any_batch_size(run: Path, exported: Path, images: torch.Tensor):
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        meant = load_run(run).model(images)
    for rows in (1, 7, len(images)):
        (said,) = session.run(["logits"], {"images": images[:rows].numpy()})
        torch.testing.assert_close(torch.from_numpy(said), meant[:rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["onnx", "int8-dynamic", "int8-static"])
def test_the_preprocessing_is_in_the_file(run: Path, exported: Path, name: str):
    session = onnxruntime.InferenceSession(exported / FORMATS[name][0], providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["fuelrail"])
    assert about["classes"] == load_run(run).classes and about["input"]["shape"] == ["batch", 3, 16, 16]
    steps = {name: value for step in about["preprocessing"] for name, value in step.items()}
    assert steps["resize_shorter_edge"] == 18 and steps["center_crop"] == [16, 16]
    assert steps["mean"] == [0.485, 0.456, 0.406] and steps["std"] == [0.229, 0.224, 0.225]


@pytest.mark.parametrize("name", ["int8-dynamic", "int8-static"])
def test_eight_bits_are_smaller_and_close_to_the_trained_model(
    run: Path, exported: Path, images: torch.Tensor, name: str
):
    onnx = pytest.importorskip("onnx")
    path = exported / FORMATS[name][0]
    assert path.stat().st_size < 0.4 * (exported / "model.onnx").stat().st_size
    kinds = {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
    assert kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (said,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        meant = load_run(run).model(images)
    assert (torch.from_numpy(said) - meant).abs().max() < 0.1 * (meant.max() - meant.min())


def test_size_accuracy_and_speed_are_printed_for_each_format(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert apply("export", [str(run), "--to", str(tmp_path), "--format", "safetensors,onnx"]) == 0
    said = capsys.readouterr()
    table = {line.split("  ")[0]: line for line in said.out.splitlines() if "MB" in line}
    assert list(table) == ["trained (fp32)", "safetensors", "onnx"] and "warning" not in said.err
    assert all("100.00%" in line for line in table.values())
    measured = json.loads((tmp_path / "model.json").read_text())["measured"]
    assert measured["onnx"]["top1"] == measured["trained (fp32)"]["top1"] and measured["onnx"]["rows"] > 10


def test_more_than_a_point_lost_is_a_warning_by_name():
    def measured(name: str, top1: float) -> Measured:
        return Measured(name, None, 1, 1000, top1, 1.0, 1.0)

    formats = [measured("trained (fp32)", 0.9), measured("onnx", 0.9), measured("int8-dynamic", 0.89)]
    assert losses(formats) == []
    (said,) = losses([*formats, measured("int8-static", 0.875)])
    assert said.startswith("int8-static loses 2.5 points of top-1") and "87.50%" in said


def test_wrong_uses_are_said_and_leave_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    to = tmp_path / "to"

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert apply("export", [*arguments, "--to", str(to)]) == 2
        assert not to.exists() or not list(to.iterdir())
        return capsys.readouterr().err

    assert "tflite: not a format; there are safetensors, onnx" in refused(str(run), "--format", "onnx,tflite")
    assert "no such run" in refused(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(str(run), "--data", str(tmp_path / "empty"))


def test_a_missing_package_is_named_with_what_to_type(run: Path, tmp_path: Path):
    code = "import sys; from importlib import util; found = util.find_spec\n"
    code += "util.find_spec = lambda name, *rest: None if name.startswith('onnx') else found(name, *rest)\n"
    code += "from fuelrail.train.applying import main\n"
    code += f"print(main('export', [{str(run)!r}, '--to', {str(tmp_path)!r}, '--format', sys.argv[1]]))"
    both = [
        subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=100)
        for name in ("onnx", "safetensors")
    ]
    assert both[0].stdout.endswith("2\n") and "pip install onnx onnxruntime" in both[0].stderr
    assert both[1].stdout.endswith("0\n"), both[1].stderr


# ---- in the browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing of what it serves."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on a port of this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["onnx", "int8-static"])
def test_the_page_says_in_a_browser_what_predict_says(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    runtime = Path(os.environ.get("FUELRAIL_ORT_WEB") or ROOT / "build/web/node_modules/onnxruntime-web")
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None or not (runtime / "dist").is_dir():
        pytest.skip(
            "needs what make setup installs: chromium-headless-shell, and npm's onnxruntime-web in build/web"
        )
    Image = pytest.importorskip("PIL.Image")
    site = tmp_path / "site"
    shutil.copytree(exported, site)
    shutil.copy(ROOT / "examples" / "classify.html", site)
    (site / "ort").symlink_to((runtime / "dist").resolve())
    # As large as images are after the resize, so that the browser's own way of resizing plays no part.
    picture = Image.linear_gradient("L").resize((18, 18))
    (tmp_path / "picture").mkdir()
    Image.merge("RGB", (picture, picture.rotate(90), picture.rotate(180))).save(
        tmp_path / "picture" / "x.png"
    )
    shutil.copy(tmp_path / "picture" / "x.png", site)
    with served(site) as address:
        page = f"{address}/classify.html?model={FORMATS[name][0]}&image=x.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        options += ["--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run([browser, *options, page], capture_output=True, text=True, timeout=100)
    found = re.findall(r"<span>([^<]*)</span><div[^>]*></div><span>([0-9.]+)%</span>", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    capsys.readouterr()
    assert apply("predict", [str(run), str(tmp_path / "picture")]) == 0
    meant = json.loads(capsys.readouterr().out)["top"]
    assert len(found) == len(meant)
    said = {label: float(share) / 100 for label, share in found}
    close = 0.001 if name == "onnx" else 0.05
    assert all(abs(said[label] - share) <= close for label, share in meant), (found, meant)
