"""Initial weights from another training run: a safetensors file, torchvision's or timm's .pth, or a run.

Matching tensors are loaded. A head with a different number of classes keeps its new weights and is named; any other
mismatch is refused, with the name and both shapes: otherwise half a model would silently be trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from .state import difference


@dataclass(frozen=True)
class Loaded:
    """The result of `load_weights`: the number of tensors loaded, the head's name, and whether that is new and why."""

    tensors: int
    head: str
    new_head: str

    def __str__(self) -> str:
        taken = f"{self.tensors} tensors taken"
        return (
            f"{taken}; new head {self.head} ({self.new_head})" if self.new_head else f"{taken}, with the head"
        )


def load_weights(model: nn.Module, path: str | Path) -> Loaded:
    """Loads the weights of a file into `model`; see the module's documentation.

    Raises ValueError for a file without weights or with those of another model, and OSError if it cannot be read.
    """
    theirs = read_weights(Path(path))
    ours = model.state_dict()
    # Parts that this model does not have, such as the auxiliary heads of an Inception.
    off = {name for name, child in model._modules.items() if child is None}
    off |= {name for name, value in vars(model).items() if value is None}
    theirs = {name: value for name, value in theirs.items() if name.partition(".")[0] not in off}
    head = head_of(model)
    mine = [name for name in ours if name.startswith(f"{head}.")]
    differing = [name for name in mine if name not in theirs or theirs[name].shape != ours[name].shape]
    new = ""
    if differing:
        first = differing[0]
        new = "the file has none"
        if first in theirs:
            new = f"{theirs[first].shape[0]} outputs there, {ours[first].shape[0]} here"
        theirs = {name: value for name, value in theirs.items() if name not in mine}
    counters = [name for name in ours if name.endswith("num_batches_tracked") and name not in theirs]
    needed = {
        name: value for name, value in ours.items() if not (new and name in mine) and name not in counters
    }
    if differs := difference(theirs, needed):
        raise ValueError(f"{path} does not fit this model: {differs}")
    model.load_state_dict(theirs, strict=False)
    return Loaded(len(theirs), head, new)


def freeze(model: nn.Module, pattern: str) -> list[str]:
    """Freezes parameters; returns their names. "backbone" is all but the head; otherwise names with * and ?.

    Norms with frozen weights keep their running statistics, too. Raises ValueError if nothing or everything matches.
    """
    names = [name for name, _ in model.named_parameters()]
    if pattern == "backbone":
        head = head_of(model)
        frozen = [name for name in names if not name.startswith(f"{head}.")]
    else:
        frozen = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    if not frozen:
        parts = sorted({name.partition(".")[0] for name in names})
        raise ValueError(
            f"freeze: no parameter is called {pattern!r}; there are {', '.join(parts)} (and backbone, all but the head)"
        )
    if len(frozen) == len(names):
        raise ValueError(f"freeze: {pattern!r} is every parameter, which leaves nothing to train")
    chosen = set(frozen)
    for name, parameter in model.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    return frozen


def head_of(model: nn.Module) -> str:
    """The name of the classification layer: the module with the last parameter."""
    return [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file by name, on the CPU; from our own checkpoints the averaged ones, if any."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: not a file of weights that torch can read without running code: {why}"
        ) from None
    for name in ("ema", "state_dict", "model", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise ValueError(f"{path}: it holds no weights by name")
    return {_bare(name): value for name, value in found.items()}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file: eight bytes of length, a JSON header, and the bytes."""
    content = bytearray(path.read_bytes())
    try:
        length = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        data = memoryview(content)[8 + length :]
        found = {}
        for name, each in header.items():
            if name == "__metadata__":
                continue
            begin, end = each["data_offsets"]
            kind = _DTYPES[each["dtype"]]
            if not 0 <= begin <= end <= len(data):
                raise ValueError("a tensor lies outside of the file")
            tensor = (
                torch.empty(0, dtype=kind) if begin == end else torch.frombuffer(data[begin:end], dtype=kind)
            )
            found[_bare(name)] = tensor.reshape(each["shape"]).clone()
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None
    return found


def write_safetensors(file: IO[bytes], tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> None:
    """Writes tensors as a safetensors file, with texts by name in its header."""
    names = {kind: name for name, kind in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        # As bytes: NumPy has no bfloat16.
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _bare(name: str) -> str:
    """Removes the prefixes that data parallelism and torch.compile add to names."""
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
