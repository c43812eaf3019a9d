"""Activation checkpointing: less memory for the backward pass, at the price of a second forward pass.

Of n blocks, only the inputs of about sqrt(n) segments are kept; activations in between are recomputed for the backward
pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). Blocks are the children of a
model's outermost `nn.Sequential`s: the stages of a ResNet, the encoder of a ViT, the features of a VGG.

Gradients are the same. So are running statistics: batch norms use copies while a segment is recomputed, because each
batch would otherwise count twice. Dropout uses the same random numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _Segmented(nn.Sequential):
    """The replacement for a Sequential: the same modules under the same names, run in segments of `_segment` blocks."""

    _segment: int

    def forward(self, input: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)  # type: ignore[no-untyped-call]
        blocks = list(self)
        for start in range(0, len(blocks), self._segment):
            part = blocks[start : start + self._segment]

            def run(value: Any, part: list[nn.Module] = part) -> Any:
                for block in part:
                    value = block(value)
                return value

            def contexts(part: list[nn.Module] = part) -> tuple[Any, Any]:
                return contextlib.nullcontext(), _spare_statistics(part)

            input = checkpoint(run, input, use_reentrant=False, context_fn=contexts)
        return input


def checkpoint_activations(model: nn.Module) -> int:
    """Makes `model` recompute activations in segments, in place; returns the number of blocks per segment.

    Parameter names do not change. Raises ValueError for a model without an `nn.Sequential` of two blocks.
    """
    found = list(_outermost(model))
    blocks = sum(len(each) for each in found)
    if not found:
        raise ValueError(
            "activation_checkpointing: the model has no nn.Sequential of two or more blocks to cut into segments; "
            "use torch.utils.checkpoint in its forward instead"
        )
    segment = round(math.sqrt(blocks))
    for each in found:
        # The class, not an attribute that holds a function: copies of the model (an average of its weights) must run
        # their own blocks.
        each.__class__ = type(f"Segmented{type(each).__name__}", (_Segmented, type(each)), {})
        each._segment = max(1, segment)  # type: ignore[assignment]
    return segment


def _outermost(module: nn.Module) -> Iterator[nn.Sequential]:
    for child in module.children():
        if (
            isinstance(child, nn.Sequential)
            and type(child).forward is nn.Sequential.forward
            and len(child) > 1
            and not isinstance(child, _Segmented)
        ):
            yield child
        else:
            yield from _outermost(child)


@contextlib.contextmanager
def _spare_statistics(part: list[nn.Module]) -> Iterator[None]:
    """Running statistics are not updated by recomputation."""
    kept: list[tuple[nn.Module, str, torch.Tensor]] = []
    for block in part:
        for module in block.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                for name, value in module._buffers.items():
                    if value is not None:
                        kept.append((module, name, value))
                        module._buffers[name] = value.clone()
    try:
        yield
    finally:
        for module, name, value in kept:
            module._buffers[name] = value
