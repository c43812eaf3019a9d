"""Models by name: torchvision's classifiers if it is installed, and one small CNN without dependencies."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .first import BUILT_IN, unknown_model


class SmallCNN(nn.Module):
    """Three blocks of two 3x3 convolutions, global average, one linear layer: 0.3 M weights at width 32.

    Input: float (N, 3, H, W), H and W at least 8. Output: logits (N, num_classes). Trains in seconds on a
    CPU; made for small pictures such as digits, not to compete on photographs.
    """

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        blocks: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            blocks += [_convolution(inside, outside), _convolution(outside, outside), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float images (N, 3, H, W) to logits (N, num_classes)."""
        features: torch.Tensor = self.features(images)
        logits: torch.Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def model_names() -> list[str]:
    """Every name `build_model` knows, sorted."""
    torchvision_models = _torchvision_models()
    names = torchvision_models.list_models(module=torchvision_models) if torchvision_models else []
    return sorted([BUILT_IN, *names])


def build_model(name: str, num_classes: int) -> nn.Module:
    """The model `name` with fresh random weights (torch's generator) and `num_classes` outputs.

    Raises ValueError for an unknown name, with the known ones closest to it.
    """
    if name == BUILT_IN:
        return SmallCNN(num_classes)
    known = model_names()
    if name not in known:
        raise ValueError(unknown_model(name, known))
    model: nn.Module = _torchvision_models().get_model(
        name, weights=None, num_classes=num_classes, **_EXTRA.get(name, {})
    )
    return model


def check_size(name: str, size: int) -> None:
    """Raises ValueError if images of `size` x `size` pixels are too small for the model `name`.

    Tried on torch's meta device: shapes only, no arithmetic and no random numbers.
    """
    with torch.device("meta"):
        model = build_model(name, 2).eval()
        images = torch.zeros(1, 3, size, size)
    try:
        model(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"--size {size} does not fit {name}: {why}; try --size 224") from None


def _convolution(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def _torchvision_models() -> Any:
    try:
        return import_module("torchvision.models")
    except ImportError:
        return None


#: These two return a tuple while training unless their auxiliary heads are off.
_EXTRA = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}
