"""The training loop: thin, torch-native, exact on resume.

    from fuelrail.torch import Loader, transforms as T
    from fuelrail.train import Recipe, Trainer

    trainer = Trainer(model, train_loader, val_loader, Recipe(epochs=20, lr=0.1), out="runs/first")
    trainer.fit()                       # or:  for step in trainer.steps(): ...  with your own loop body

Guarantees:

- **Exact resume.** A checkpoint holds weights, optimizer, random states, step and the loader's token, all
  taken at the same step boundary; a run that was killed and resumed reads the same samples in the same order
  as an uninterrupted one.
- **Atomic checkpoints.** A reader sees a complete file or none, whenever the process or the machine dies.
- **One step is a step.** Signals, saving and evaluation happen between steps, never inside one.

What it does not do: own optimizers, own models beyond one small CNN, callbacks, learning-rate finders.

torch is imported when a name of this package is first used, so that `fuelrail train --help` responds at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batches import BatchSource, LabelledBatch
    from .evaluation import Evaluation, evaluate
    from .exporting import load_exported
    from .finetune import freeze, load_weights
    from .models import build_model, model_names
    from .optim import parameter_groups
    from .recipe import Recipe
    from .runs import Run, load_run, predict
    from .step import Step, Stopped
    from .trainer import Trainer

__all__ = [
    "BatchSource",
    "Evaluation",
    "LabelledBatch",
    "Recipe",
    "Run",
    "Step",
    "Stopped",
    "Trainer",
    "build_model",
    "evaluate",
    "freeze",
    "load_exported",
    "load_run",
    "load_weights",
    "model_names",
    "parameter_groups",
    "predict",
]

_HOME = {
    "BatchSource": "batches",
    "LabelledBatch": "batches",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "build_model": "models",
    "model_names": "models",
    "freeze": "finetune",
    "load_weights": "finetune",
    "parameter_groups": "optim",
    "load_exported": "exporting",
    "Run": "runs",
    "load_run": "runs",
    "predict": "runs",
    "Recipe": "recipe",
    "Step": "step",
    "Stopped": "step",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'fuelrail.train' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
