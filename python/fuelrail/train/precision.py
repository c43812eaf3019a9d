"""Which number format the forward pass runs in, chosen from the hardware.

bf16 keeps fp32's range, so it needs no loss scaling; weights, gradients of weights and the optimizer stay
fp32 (autocast). It is chosen where the hardware multiplies it natively; emulated bf16 is slower than fp32.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REQUESTS = ("auto", "bf16", "fp32")

#: Words of /proc/cpuinfo ("flags" on x86, "Features" on Arm) that mean native bf16 products.
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Precision:
    """A chosen format: `name` ("bf16" or "fp32"), the device type it is for, and why it was chosen."""

    name: str
    device_type: str
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context the forward pass and the loss run in."""
        if self.name == "bf16":
            return torch.autocast(self.device_type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def choose(request: str, device: torch.device) -> Precision:
    """The precision for `device`: what was asked for, or with "auto" what its hardware does natively.

    Raises ValueError when `request` is not one of "auto", "bf16", "fp32".
    """
    if request not in REQUESTS:
        raise ValueError(f"precision={request!r}: use one of {', '.join(REQUESTS)}")
    if request != "auto":
        return Precision(request, device.type, "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "cuda", "the GPU has bf16 units")
        return Precision("fp32", "cuda", "the GPU has no bf16 units")
    if device.type == "cpu" and cpu_has_bf16():
        return Precision("bf16", "cpu", "the CPU has bf16 instructions")
    return Precision("fp32", device.type, f"no native bf16 on this {device.type}")


def cpu_has_bf16(cpuinfo: str | None = None) -> bool:
    """Whether this CPU has bf16 instructions, read from `cpuinfo` (default: /proc/cpuinfo; False without
    one).

    The kernel's list is used, not a torch function: torch's are private and change names between releases.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return not _CPU_FLAGS.isdisjoint(words.split())
    return False
