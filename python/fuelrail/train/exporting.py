"""A trained model for use without fuelrail: weights with a description, ONNX, and 8-bit ONNX.

    model.safetensors, model.json    the weights; the model's name, its classes and the preprocessing
    model.onnx                       float32, any batch size; model.json is in its metadata
    model-int8-dynamic.onnx          8-bit weights, activations quantised dynamically
    model-int8-static.onnx           8-bit weights and activations, scales calibrated on held-out images

Each is loaded back and compared on held-out images with the model as it was trained, in float32.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import write_atomically
from .finetune import read_safetensors, write_safetensors
from .models import build_model
from .runs import Run

#: Formats, the file of each, and the packages that it needs.
FORMATS = {
    "safetensors": ("model.safetensors", ()),
    "onnx": ("model.onnx", ("onnx", "onnxruntime")),
    "int8-dynamic": ("model-int8-dynamic.onnx", ("onnx", "onnxruntime")),
    "int8-static": ("model-int8-static.onnx", ("onnx", "onnxruntime")),
}
#: A quantised model may lose this much top-1 without a warning.
TOLERATED = 0.01
#: Held-out images for calibrating the static model's scales.
CALIBRATION = 256
#: The newest that the installed exporter writes for all of torchvision's classifiers.
OPSET = 17

#: Images (N, 3, size, size), float32 on the CPU, to logits.
Model = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """One format on the held-out images. `same` is the share of images with the trained model's prediction."""

    name: str
    file: Path | None
    size: int
    rows: int
    top1: float
    same: float
    images_per_s: float


def check_formats(formats: Sequence[str]) -> None:
    """Raises ValueError for an unknown format, or one whose packages are not installed."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--format {name}: not a format; there are {', '.join(FORMATS)}")
    needed = dict.fromkeys(package for name in formats for package in FORMATS[name][1])
    if missing := [package for package in needed if find_spec(package) is None]:
        raise ValueError(
            f"--format {','.join(formats)} needs {' and '.join(missing)}: pip install {' '.join(missing)}; "
            "--format safetensors needs neither"
        )


def described(run: Run) -> dict[str, Any]:
    """The description of the weights: everything needed to use them, as plain data."""
    mean, std = _imagenet()
    return {
        "format": 1,
        "model": run.describe["model"],
        "num_classes": run.describe["num_classes"],
        "classes": run.classes,
        "step": run.step,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", 3, run.size, run.size],
            "colours": "RGB",
        },
        "preprocessing": [
            {
                "resize_shorter_edge": round(run.size * 256 / 224),
                "interpolation": "bilinear",
                "antialias": True,
            },
            {"center_crop": [run.size, run.size]},
            {"scale": 1 / 255},
            {"mean": list(mean), "std": list(std)},
        ],
        "output": {"name": "logits", "shape": ["batch", run.describe["num_classes"]]},
    }


def export(
    run: Run, batches: Callable[[], Iterable[Any]], to: Path, formats: Sequence[str]
) -> list[Measured]:
    """Writes the formats into the folder `to`, loads each back, and returns their results, the trained model first.

    `batches` opens a loader over labelled held-out images, with `run.transforms()`. Files of an earlier export are
    replaced completely or not at all. Raises ValueError as `check_formats` does, and if there are no images.
    """
    check_formats(formats)
    trained = run.model.cpu().float().eval()
    about = described(run)
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=to) as folder:
        made = {name: Path(folder) / FORMATS[name][0] for name in formats}
        _write(trained, about, batches, made, Path(folder))
        models: dict[str, Model] = {"trained (fp32)": trained}
        for name, path in made.items():
            models[name] = _loaded(name, path, about)
        found = _compare(models, batches())
        files: dict[str, Path | None] = {name: path for name, path in made.items()}
        measured = [
            Measured(
                name, to / file.name if (file := files.get(name)) else None, _size(file, trained), *figures
            )
            for name, figures in found.items()
        ]
        for path in made.values():
            path.replace(to / path.name)
    about["measured"] = {
        each.name: {"top1": each.top1, "rows": each.rows, "bytes": each.size} for each in measured
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    write_atomically(to / "model.json", lambda file: file.write(text.encode()))
    return measured


def load_exported(folder: str | Path) -> nn.Module:
    """Loads the model from an export's model.json and model.safetensors, in evaluation mode."""
    place = Path(folder)
    about = json.loads((place / "model.json").read_text(encoding="utf-8"))
    return _from_safetensors(place / FORMATS["safetensors"][0], about)


def losses(measured: Sequence[Measured]) -> list[str]:
    """A line for each format that is more than a point of top-1 worse than the trained model."""
    first = measured[0]
    return [
        f"{each.name} loses {100 * (first.top1 - each.top1):.1f} points of top-1 on {each.rows:,} held-out images "
        f"({each.top1:.2%}; in float32 {first.top1:.2%})"
        for each in measured[1:]
        if first.top1 - each.top1 > TOLERATED + 1e-9
    ]


# Writing --------------------------------------------------------------------------------------------------------------


def _write(
    model: nn.Module,
    about: Mapping[str, Any],
    batches: Callable[[], Iterable[Any]],
    made: Mapping[str, Path],
    folder: Path,
) -> None:
    if "safetensors" in made:
        with made["safetensors"].open("wb") as file:
            write_safetensors(file, model.state_dict(), {"model": about["model"], "about": json.dumps(about)})
    if set(made) == {"safetensors"}:
        return
    source = made.get("onnx", folder / "float.onnx")
    _write_onnx(model, about, source)
    # Says a lot that is of no use here: that a model might be prepared better, which it was.
    logging.getLogger().addFilter(_quiet)
    try:
        if "int8-dynamic" in made:
            _quantise_dynamic(source, made["int8-dynamic"])
        if "int8-static" in made:
            _quantise_static(source, made["int8-static"], folder, batches)
    finally:
        logging.getLogger().removeFilter(_quiet)
    for name in ("int8-dynamic", "int8-static"):
        if name in made:
            _add_metadata(made[name], about)


def _write_onnx(model: nn.Module, about: Mapping[str, Any], target: Path) -> None:
    given, said = about["input"], about["output"]
    example = torch.zeros(2, *given["shape"][1:])
    with warnings.catch_warnings():
        # Of the exporter's own future; and of shapes that are constants, which they are.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(target),
            dynamo=False,
            opset_version=OPSET,
            input_names=[given["name"]],
            output_names=[said["name"]],
            dynamic_axes={given["name"]: {0: "batch"}, said["name"]: {0: "batch"}},
        )
    _add_metadata(target, about)


def _add_metadata(path: Path, about: Mapping[str, Any]) -> None:
    onnx: Any = import_module("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"fuelrail": json.dumps(about, ensure_ascii=False)})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _quantise_dynamic(source: Path, target: Path) -> None:
    tools: Any = import_module("onnxruntime.quantization")
    # Unsigned: the runtime has no convolution of signed weights for this form.
    tools.quantize_dynamic(str(source), str(target), weight_type=tools.QuantType.QUInt8)


def _quantise_static(source: Path, target: Path, folder: Path, batches: Callable[[], Iterable[Any]]) -> None:
    tools: Any = import_module("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = _first_images(batches())

        def get_next(self) -> dict[str, Any] | None:
            images = next(self._images, None)
            return None if images is None else {"images": images.numpy()}

    prepared = folder / "prepared.onnx"
    import_module("onnxruntime.quantization.shape_inference").quant_pre_process(str(source), str(prepared))
    tools.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
    )


def _first_images(batches: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Batches of at least one image, up to `CALIBRATION` images in all."""
    seen = 0
    for batch in batches:
        images, _ = batch
        images = images[: CALIBRATION - seen].float().contiguous()
        seen += len(images)
        if len(images):
            yield images
        if seen >= CALIBRATION:
            return


def _quiet(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


# Loading and comparing ------------------------------------------------------------------------------------------------


def _loaded(name: str, path: Path, about: Mapping[str, Any]) -> Model:
    return _from_safetensors(path, about) if name == "safetensors" else _session(path)


def _from_safetensors(path: Path, about: Mapping[str, Any]) -> nn.Module:
    model = build_model(about["model"], about["num_classes"])
    model.load_state_dict(read_safetensors(path))
    return model.eval()


def _session(path: Path) -> Model:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    # As many threads as torch has, so that speeds can be compared.
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return run


@torch.inference_mode()
def _compare(
    models: Mapping[str, Model], batches: Iterable[Any]
) -> dict[str, tuple[int, float, float, float]]:
    """Rows, top-1, agreement with the first model, and images per second of each model, all on the same batches."""
    right, same = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    seconds = dict.fromkeys(models, 0.0)
    rows = 0
    for batch in batches:
        images, labels = batch
        kept = ~torch.as_tensor(batch["substituted"]).bool().cpu()
        images, labels = images[kept].float().contiguous(), labels[kept]
        if not len(images):
            continue
        first = None
        for name, model in models.items():
            if not rows:
                model(images)  # buffers and threads are created at first use
            began = time.perf_counter()
            said = model(images).argmax(dim=1)
            seconds[name] += time.perf_counter() - began
            first = said if first is None else first
            right[name] += int((said == labels).sum())
            same[name] += int((said == first).sum())
        rows += len(images)
    if not rows:
        raise ValueError("there are no held-out images that can be read to compare the formats on")
    return {name: (rows, right[name] / rows, same[name] / rows, rows / seconds[name]) for name in models}


def _size(file: Path | None, model: nn.Module) -> int:
    if file is not None:
        return file.stat().st_size
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _imagenet() -> tuple[Sequence[float], Sequence[float]]:
    from fuelrail import transforms as T

    mean, std = T.IMAGENET
    return mean, std
