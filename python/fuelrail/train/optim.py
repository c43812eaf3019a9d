"""torch's optimizers, with weight decay only on parameters that it regularises.

Decay pulls weights towards zero; on a norm's scale or a bias that only fights the normalisation, so those
parameters form a separate group without decay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class _Default:
    lr_per_256: float
    weight_decay: float


#: Peak learning rate for a batch of 256 rows, and weight decay, if the recipe sets none.
_DEFAULTS = {"sgd": _Default(0.1, 5e-4), "adamw": _Default(1e-3, 0.05)}
OPTIMIZERS = tuple(_DEFAULTS)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed (matrices and kernels), and not (norms, biases, other
    vectors).

    Shared parameters appear once. An empty group is left out.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            vector = parameter.ndim <= 1 or name == "bias" or isinstance(module, _NORMS)
            (exempt if vector else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def default_lr(name: str, batch_size: int) -> float:
    """The peak learning rate for a step of `batch_size` rows: scaled linearly with it for SGD, with its square root for
    AdamW.

    It does not grow beyond 8,192 rows: linear scaling is known to hold up to there (Goyal et al., arXiv 1706.02677).
    It does not fall below 32 rows: batches are that small if there are few images, and so few steps.
    """
    scale = min(max(batch_size, 32), 8192) / 256
    return _DEFAULTS[name].lr_per_256 * (scale if name == "sgd" else scale**0.5)


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float | None = None, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; ValueError for an unknown name or a model without trainable parameters."""
    if name not in _DEFAULTS:
        raise ValueError(f"optimizer={name!r}: use one of {', '.join(OPTIMIZERS)}")
    groups = parameter_groups(model, _DEFAULTS[name].weight_decay if weight_decay is None else weight_decay)
    if not groups:
        raise ValueError("the model has no parameter with requires_grad=True: there is nothing to train")
    for group in groups:
        group["peak_lr"] = lr
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(groups, lr=lr)


#: An optimizer, or a callable that makes one from parameter groups.
OptimizerLike = torch.optim.Optimizer | Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def taken_optimizer(
    optimizer: OptimizerLike, model: nn.Module, lr: float | None, weight_decay: float | None
) -> torch.optim.Optimizer:
    """The user's optimizer: an object is used unchanged, a callable gets the groups of `parameter_groups`.

    Raises TypeError if it makes none, ValueError if it holds parameters that are not the model's.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        decayed_by = 1.0 if weight_decay is None else weight_decay
        groups = parameter_groups(model, decayed_by)
        for group in groups:
            if weight_decay is None and group["weight_decay"]:
                del group["weight_decay"]  # the optimizer's own
            if lr is not None:
                group["lr"] = lr
        optimizer = optimizer(groups)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer= must be a torch optimizer, or make one of parameter groups; it made a "
                f"{type(optimizer).__name__}"
            )
    known = {id(each) for each in model.parameters()}
    if any(id(each) not in known for group in optimizer.param_groups for each in group["params"]):
        raise ValueError(
            "optimizer= holds parameters that are not the model's: make it of model.parameters()"
        )
    return optimizer


_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
