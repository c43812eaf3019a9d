"""What comes before and after a training: other people's weights, defaults, evaluation, predictions, pictures."""

# ruff: noqa: E402  (importorskip comes before the imports that need what it looks for)
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="fuelrail.train needs torch")
numpy = pytest.importorskip("numpy")

from fuelrail.train import build_model, checkpoint, freeze, load_run, load_weights
from fuelrail.train.data import find_data
from fuelrail.train.finetune import head_of, read_safetensors
from fuelrail.train.metrics import read_metrics
from fuelrail.train.models import SmallCNN
from train_fakes import run_here

#: A training that takes a second or two. One epoch: for what does not depend on learning.
QUICK = ["--model", "small_cnn", "--size", "16", "--num-workers", "2", "--precision", "fp32", "--epochs", "1"]
QUICK += ["--track", "none"]


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(out / "metrics.jsonl") if line["event"] == event]


def safetensors(path: Path, tensors: dict[str, torch.Tensor], **header: Any) -> Path:
    """As the format's description has it."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    content, described = b"", {"__metadata__": {"format": "pt"}}
    for name, tensor in tensors.items():
        raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
        described[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(content), len(content) + len(raw)],
        }
        content += raw
    text = json.dumps({**described, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


# ---- weights of another training


def test_safetensors_are_read_as_their_own_library_reads_them(tmp_path: Path):
    theirs = pytest.importorskip("safetensors.torch")
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(7),
        "none": torch.empty(0, 4),
        "c": torch.randn(2, 2).half(),
        "flag": torch.tensor([True, False]),
    }
    theirs.save_file(tensors, str(tmp_path / "x.safetensors"), metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found
    )


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped", "checkpoint"])
def test_a_head_of_other_classes_is_made_new_and_the_rest_is_taken(tmp_path: Path, kind: str):
    torch.manual_seed(1)
    theirs = SmallCNN(10, width=4).state_dict()
    if kind == "safetensors":
        path = safetensors(tmp_path / "w.safetensors", theirs)
    else:
        path = tmp_path / "w.pth"
        prefixed = {f"module._orig_mod.{name}": value for name, value in theirs.items()}
        what = {
            "pth": theirs,
            "wrapped": {"state_dict": prefixed, "epoch": 3},
            "checkpoint": {"model": SmallCNN(10, width=4).state_dict(), "ema": theirs, "format": 2},
        }
        torch.save(what[kind], path)
    model = SmallCNN(3, width=4)
    head = model.classifier.weight.detach().clone()
    said = load_weights(model, path)
    assert str(said) == f"{len(theirs) - 2} tensors taken; new head classifier (10 outputs there, 3 here)"
    for name, value in model.features.state_dict().items():
        assert torch.equal(value, theirs[f"features.{name}"]), name
    assert torch.equal(model.classifier.weight, head)
    same = SmallCNN(10, width=4)
    assert str(load_weights(same, path)) == f"{len(theirs)} tensors taken, with the head"
    assert torch.equal(same.classifier.weight, theirs["classifier.weight"])


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path):
    torch.save(SmallCNN(3, width=4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"features\.0\.0\.weight is 4 x 3 x 3 x 3 there and 8 x 3 x 3 x 3 here"
    ):
        load_weights(SmallCNN(3, width=8), tmp_path / "w.pth")
    torch.save({**SmallCNN(3, width=4).state_dict(), "extra.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"only in it: extra\.weight"):
        load_weights(SmallCNN(3, width=4), tmp_path / "w.pth")
    for content in (b"", b"\xff" * 40, (10).to_bytes(8, "little") + b'{"a": 1}  '):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file"):
            load_weights(SmallCNN(3), tmp_path / "w.safetensors")
    outside = {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}
    with pytest.raises(ValueError, match="outside of the file"):
        load_weights(SmallCNN(3), safetensors(tmp_path / "w.safetensors", {}, a=outside))
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a file of weights"):
        load_weights(SmallCNN(3), tmp_path / "w.pth")


def test_torchvisions_models_take_their_weights_with_another_head(tmp_path: Path):
    pytest.importorskip("torchvision")
    import torchvision

    for name in ("resnet18", "squeezenet1_1"):
        torch.save(torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "w.pth")
        assert "1000 outputs there, 5 here" in str(load_weights(build_model(name, 5), tmp_path / "w.pth"))
    # With the auxiliary heads that build_model leaves off.
    with torch.device("meta"):
        whole = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False).state_dict()
    torch.save({key: torch.zeros(value.shape) for key, value in whole.items()}, tmp_path / "w.pth")
    assert load_weights(build_model("googlenet", 1000), tmp_path / "w.pth").new_head == ""


def test_frozen_layers_are_chosen_by_name_and_the_backbone_is_all_but_the_head():
    model = SmallCNN(3, width=4)
    assert head_of(model) == "classifier"
    frozen = freeze(model, "features.0")
    assert frozen == ["features.0.0.weight", "features.0.1.weight", "features.0.1.bias"]
    freeze(model, "backbone")
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    with pytest.raises(ValueError, match=r"no parameter is called 'layer1'; there are classifier, features"):
        freeze(model, "layer1")
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model, "*")


# ---- the command


def test_a_run_begins_with_weights_evaluates_predicts_and_draws(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("matplotlib")
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    code, said, err = run_here(
        capsys,
        "--data",
        pictures,
        "--out",
        first,
        *QUICK,
        "--epochs",
        "8",
        "--lr",
        "0.05",
        "--ema-decay",
        "0.9",
    )
    assert code == 0, err
    assert "steps of 8 per epoch" in said, "96 images: not one step of 64"
    top1 = load_run(first).describe and checkpoint.load(first / "best.pt")["best"]
    for name in ("curve.png", "samples.png", "worst.png", "confusion.png"):
        assert (first / name).read_bytes().startswith(b"\x89PNG") and f"{name}" in said

    code, said, err = run_here(capsys, first, command="eval")
    assert code == 0 and f"top-1 {top1:.2%}" in said and "on 24 images" in said, err
    code, said, err = run_here(capsys, first, pictures / "train", command="eval")
    assert code == 0 and "on 96 images" in said, err

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for place in sorted((pictures / "val").rglob("*.*")):
        shutil.copy(place, mixed / f"{place.parent.name}-{place.name}")
    (mixed / "broken.jpg").write_bytes(b"no picture")
    code, said, err = run_here(capsys, first, mixed, "--top", "2", command="predict")
    assert code == 0, err
    found = [json.loads(line) for line in said.splitlines()]
    assert len(found) == 24 and "1 image could not be read" in err
    right = sum(each["key"].rpartition("/")[2].startswith(each["label"]) for each in found)
    assert right == round(top1 * 24)
    assert all(len(each["top"]) == 2 and 0 <= each["score"] <= 1 for each in found)

    arguments = [
        "--data",
        pictures,
        "--out",
        tuned,
        *QUICK,
        "--init",
        first / "best.pt",
        "--freeze",
        "backbone",
    ]
    code, said, err = run_here(capsys, *arguments)
    assert code == 0, err
    assert "tensors taken, with the head" in said and "frozen: 18 parameters (backbone)" in said
    before, after = (checkpoint.load(out / "best.pt") for out in (first, tuned))
    same = {name: torch.equal(value, after["model"][name]) for name, value in before["ema"].items()}
    assert [name for name, equal in same.items() if not equal] == ["classifier.weight", "classifier.bias"]
    code, _, err = run_here(capsys, *arguments[:-4], "--init", first / "metrics.jsonl", "--resume")
    assert code == 2 and "not a file of weights" in err
    code, _, err = run_here(capsys, tmp_path / "nothing", pictures, command="predict")
    assert code == 2 and "no such run" in err


def test_numbered_labels_without_names_are_mixed_and_drawn_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    generator = numpy.random.default_rng(0)
    numpy.savez(
        tmp_path / "train.npz",
        x=generator.integers(0, 256, (64, 20, 20, 3), dtype=numpy.uint8),
        y=numpy.arange(64) % 7,
    )
    out = tmp_path / "run"
    data = ["--data", tmp_path / "train.npz", "--num-classes", "64", "--out", out]
    data += ["--mixup", "0.2", "--cutmix", "1.0"]
    code, said, err = run_here(capsys, *data, *QUICK)
    assert code == 0, err
    assert (out / "samples.png").exists() and (out / "worst.png").exists() and "64 classes" in said
    assert load_run(out).name(63) == "63"


def test_a_batch_larger_than_the_data_is_refused_and_a_tiny_data_set_has_small_ones():
    from fuelrail.train.cli import _small_batch

    sizes = {samples: _small_batch(samples, 1) for samples in (1, 3, 20, 96, 500, 512, 60_000)}
    assert sizes == {1: 1, 3: 3, 20: 4, 96: 8, 500: 32, 512: 64, 60_000: 64}
    assert _small_batch(500, 4) == 8


def test_a_tiny_data_set_is_learned_with_the_defaults(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, said, err = run_here(capsys, "--data", pictures, "--out", tmp_path, *QUICK, "--epochs", "10")
    assert code == 0, err
    assert lines(tmp_path, "epoch")[-1]["val_top1"] > 0.8, said


def test_what_is_held_out_is_what_was_asked_for(tmp_path: Path):
    for name in ("a/train", "a/test", "b/train", "b/val", "b/test", "c/cats", "c/dogs"):
        (tmp_path / name).mkdir(parents=True)
    a, b, c = (str(tmp_path / name) for name in "abc")
    found = find_data(a, None, None)
    assert found.train == found.val == tmp_path / "a/train" and found.train_split == "train[:90%]"
    assert f"{tmp_path / 'a/test'} is not used" in found.how, "best.pt must not be chosen on it"
    assert find_data(b, None, None).val == tmp_path / "b/val"
    asked = find_data(b, None, 0.2)
    assert asked.val == tmp_path / "b/train" and asked.train_split == "train[:80%]"
    assert f"{tmp_path / 'b/val'} is not used" in asked.how
    assert find_data(c, None, None).val == tmp_path / "c"
    for data in (b, c):
        with pytest.raises(ValueError, match=r"--val-fraction 1\.5: must be between 0 and 1"):
            find_data(data, None, 1.5)
    with pytest.raises(ValueError, match="said twice"):
        find_data(b, c, 0.2)
    with pytest.raises(ValueError, match="a stream has no parts"):
        find_data("kafka://broker:9092/photos", None, 0.2)


def test_the_flags_of_the_command_are_the_recipes(capsys: pytest.CaptureFixture[str]):
    from fuelrail.train import precision
    from fuelrail.train.cli import _parser
    from fuelrail.train.optim import OPTIMIZERS
    from fuelrail.train.schedule import SCHEDULES
    from fuelrail.train.tracking import NAMES

    choices = {action.dest: action.choices for action in _parser()._actions}
    assert choices["precision"] == precision.REQUESTS and choices["schedule"] == SCHEDULES
    assert choices["optimizer"] == OPTIMIZERS and choices["track"] == ("auto", "none", *NAMES)
    with pytest.raises(SystemExit):
        _parser().parse_args(["--data", "x", "--out", "y", "--val-fraction", "1.5"])
    assert "between 0 and 1" in capsys.readouterr().err


def test_torchrun_makes_one_training_in_one_folder(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Which goes on with another number of ranks from the middle of an epoch, without losing or repeating an image."""
    out = tmp_path / "run"
    settings = ["--data", pictures, "--out", out, *QUICK, "--epochs", "2", "--log-ids"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--log-dir", tmp_path / "logs", "-m", "fuelrail", "train", *settings]
    done = subprocess.run(
        list(map(str, [*command, "--batch-size", "8", "--save-every", "3", "--keep", "9"])),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out accuracy") == 1 and "6 steps of 16 (2 ranks) per epoch" in done.stdout

    def check() -> None:
        ids = lines(out, "ids")
        assert [line["step"] for line in ids] == list(range(1, 13))
        for epoch in (0, 1):
            seen = [id for line in ids if line["epoch"] == epoch for id in line["ids"]]
            assert sorted(seen) == list(range(96))
        assert [line["val_rows"] for line in lines(out, "epoch")] == [24, 24]

    check()
    whole = lines(out, "end")[-1]["ids"]
    code, _, err = run_here(capsys, *settings, "--batch-size", "16")
    assert code == 2 and "already holds a run" in err
    # As if all had been killed after step 9.
    (out / "checkpoints" / "step-00000012.pt").unlink()
    code, _, err = run_here(capsys, *settings, "--batch-size", "16", "--resume")
    assert code == 0 and "step-00000009.pt, step 9, epoch 2" in err, err
    check()
    assert lines(out, "end")[-1]["ids"] == whole
