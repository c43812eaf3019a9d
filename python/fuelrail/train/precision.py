"""The number format of the forward pass, chosen from the hardware.

bf16 keeps fp32's range, so it needs no loss scaling; weights, gradients of weights and the optimizer stay
fp32 (autocast). It is chosen if the hardware multiplies it natively; emulated bf16 is slower than fp32.
fp16 has a short range: small gradients would become zero, so the loss is multiplied by a large number before the
backward pass and gradients are divided by it afterwards (GradScaler). tf32 is fp32 with products rounded by the GPU.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REQUESTS = ("auto", "bf16", "fp16", "tf32", "fp32")

#: Words of /proc/cpuinfo ("flags" on x86, "Features" on Arm) that indicate native products of a format.
_CPU_FLAGS = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A chosen format: `name` ("bf16", "fp16", "tf32" or "fp32"), the device type it is for, and why it was chosen."""

    name: str
    device_type: str
    reason: str

    @property
    def half(self) -> bool:
        """Whether activations take 16 bits."""
        return self.name in _DTYPES

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context the forward pass and the loss run in."""
        if self.half:
            return torch.autocast(self.device_type, dtype=_DTYPES[self.name])
        return contextlib.nullcontext()

    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler, if the format needs one."""
        return torch.amp.GradScaler(self.device_type) if self.name == "fp16" else None

    def prepare(self) -> None:
        """Sets, for the whole process, whether a GPU may round the products of fp32 numbers."""
        if self.device_type == "cuda" and not self.half:
            rounded = self.name == "tf32"
            torch.set_float32_matmul_precision("high" if rounded else "highest")
            torch.backends.cudnn.allow_tf32 = rounded


def choose(request: str, device: torch.device) -> Precision:
    """The precision for `device`: the requested one, or with "auto" one that its hardware supports natively.

    Raises ValueError if `request` is not in `REQUESTS`, or if the device does not support it.
    """
    if request not in REQUESTS:
        raise ValueError(f"precision={request!r}: use one of {', '.join(REQUESTS)}")
    if request == "fp16" and device.type == "cpu" and not cpu_has("fp16"):
        raise ValueError(
            "precision='fp16': this CPU has no fp16 instructions; use 'auto' (bf16 or fp32), or a GPU"
        )
    if request == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' is a GPU's, and the device is {device.type}: use 'auto' or 'fp32'"
        )
    if request != "auto":
        return Precision(request, device.type, "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "cuda", "the GPU has bf16 units")
        return Precision("fp32", "cuda", "the GPU has no bf16 units")
    if device.type == "cpu" and cpu_has("bf16"):
        return Precision("bf16", "cpu", "the CPU has bf16 instructions")
    return Precision("fp32", device.type, f"no native bf16 on this {device.type}")


def cpu_has(name: str, cpuinfo: str | None = None) -> bool:
    """Whether this CPU has instructions for "bf16" or "fp16", read from `cpuinfo` (default: /proc/cpuinfo; False
    without one).

    The kernel's list is used, not a torch function: torch's are private and change names between releases.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
    for line in cpuinfo.splitlines():
        key, _, words = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return not _CPU_FLAGS[name].isdisjoint(words.split())
    return False
