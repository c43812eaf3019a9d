"""Converts users' transforms to the daemon's: torchvision's objects (v1 and v2) are translated if every step has an
equivalent here; everything else is refused, with its name and the reason.

torchvision is not imported: objects are recognised by the name and module of their type. Conversions (`ToTensor`,
`ToImage`, `ToDtype`, …) are not steps here; they set the batch's dtype.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fuelrail import transforms as ours
from fuelrail.checks import DTYPES, shown
from fuelrail.errors import ConfigError
from fuelrail.transforms import Transform

# torchvision's containers, and the attribute with their contents.
_CONTAINERS = ("Compose", "Sequential")

# torchvision's steps that are made of steps.
_MADE_OF_STEPS = ("RandomApply", "RandomChoice", "RandomOrder")

# What a policy of timm begins with.
_TIMM_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")

# Conversions, and their output dtype: None if the object defines it, "" if it does not change.
_CONVERSIONS = {
    "ToTensor": "f32",
    "PILToTensor": "",
    "ToImage": "",
    "ToImageTensor": "",
    "ToPILImage": "",
    "ToPureTensor": "",
    "ToTVTensor": "",
    "Identity": "",
    "ConvertImageDtype": None,
    "ConvertDtype": None,
    "ToDtype": None,
}


def chain(given: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The steps as the daemon takes them, and the dtype that conversions among them request (or None)."""
    translator = _Translator()
    for place, item in _steps(given, "transforms"):
        translator.add(place, item)
    return translator.steps, translator.dtype


def inside(name: str, given: Any) -> list[Any]:
    """The steps of a step that is made of steps: ours as they are, a list of several as one step, torchvision's
    translated. `name` is the outer step's.
    """
    if isinstance(given, Transform | Mapping | str) or not hasattr(given, "__iter__"):
        raise ConfigError(f"{name}: transforms must be a list of transforms, not {shown(given)}")
    return [_one_step(f"{name}: transforms[{at}]", item, _Translator()) for at, item in enumerate(given)]


def _one_step(place: str, item: Any, translator: _Translator) -> Any:
    """One step for an item of a step that is made of steps."""
    if isinstance(item, Transform):
        return item
    dtype = translator.dtype
    inner = _Translator(on_tensors=translator.on_tensors, normalized=translator.normalized, dtype=dtype)
    for at, step in _steps(item, place):
        inner.add(at, step)
    if inner.dtype != dtype or inner.on_tensors != translator.on_tensors:
        raise ConfigError(
            f"{place}: a conversion such as ToTensor changes all images or none; move it out, to the end of the chain"
        )
    if len(inner.steps) == 1:
        return inner.steps[0]
    return {"type": "RandomApply", "transforms": inner.steps, "p": 1.0}


def _steps(given: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All steps in order, including those inside containers, each with its location."""
    if isinstance(given, Transform | Mapping):
        yield place, given
    elif _is_container(given):
        inner = given.transforms if hasattr(given, "transforms") else list(given)
        for at, item in enumerate(inner):
            yield from _steps(item, f"{place}[{at}]")
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        for at, item in enumerate(given):
            yield from _steps(item, f"{place}[{at}]")
    elif given is not None:
        yield place, given


def _is_container(item: Any) -> bool:
    return type(item).__name__ in _CONTAINERS and _library(item) in ("torchvision", "torch")


def _library(item: Any) -> str:
    kind = item if isinstance(item, type) else type(item)
    return kind.__module__.partition(".")[0]


class _Translator:
    """Walks a chain. A step's position in it decides what its arguments mean: after `ToTensor`, torchvision's colours
    are on the scale where white is 1, and `antialias` has an effect.
    """

    def __init__(self, on_tensors: bool = False, normalized: bool = False, dtype: str | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self.dtype = dtype
        self.on_tensors = on_tensors
        self.normalized = normalized

    def add(self, place: str, item: Any) -> None:
        if isinstance(item, Transform):
            self.steps.append(item.config())
        elif isinstance(item, str) and item.partition("-")[0] in _TIMM_POLICIES:
            self.steps.append(ours.TimmAutoAugment(item).config())
        elif isinstance(item, Mapping):
            self.steps.append(dict(item))
        elif isinstance(item, type) or _library(item) != "torchvision":
            raise ConfigError(_refusal(place, item))
        elif type(item).__name__ == "RGB" and not any(step["type"] == "Grayscale" for step in self.steps):
            pass  # images are RGB from the start
        elif type(item).__name__ in _CONVERSIONS:
            self._convert(place, item)
        elif type(item).__name__ == "ImageClassification":  # the type that weights.transforms() returns
            self._translate(place, "Resize", item, {"size": item.resize_size})
            self._translate(place, "CenterCrop", item, {"size": item.crop_size})
            self.dtype, self.on_tensors = "f32", True
            self._translate(place, "Normalize", item, {})
        elif type(item).__name__ in _MADE_OF_STEPS:
            name = type(item).__name__
            steps = [
                _one_step(f"{place} ({name}): transforms[{at}]", step, self)
                for at, step in enumerate(item.transforms)
            ]
            self._translate(place, name, item, {"transforms": steps})
        elif type(item).__name__ in _STEPS:
            self._translate(place, type(item).__name__, item, {})
        else:
            raise ConfigError(_refusal(place, item))

    def _convert(self, place: str, item: Any) -> None:
        name = type(item).__name__
        if name == "ToPILImage" or (name == "ToDtype" and item.dtype is None):
            return
        self.on_tensors = True
        target = _CONVERSIONS[name]
        if target == "":
            return
        if target is None:
            target = DTYPES.get(str(item.dtype).removeprefix("torch."))
            if target is None:
                raise ConfigError(
                    f"{place} ({name}): dtype={shown(item.dtype)} is not made by the daemon; it makes "
                    "uint8, float32, float16 and bfloat16"
                )
            if name == "ToDtype" and target != "u8" and not item.scale:
                raise ConfigError(
                    f"{place} (ToDtype): scale=False, floats from 0 to 255, has no equal here; use scale=True, "
                    "or dtype=torch.uint8 and .float() on the batch"
                )
        self.dtype = target

    def _translate(self, place: str, name: str, item: Any, known: dict[str, Any]) -> None:
        step: type[Transform] = getattr(ours, name)
        arguments = dict(known)
        if name == "RandomIoUCrop":
            arguments["sampler_options"] = item.options
        if name == "SanitizeBoundingBoxes" and callable(getattr(item, "labels_getter", None)):
            raise ConfigError(
                f"{place} ({name}): labels_getter is a function, and the daemon runs no Python: say which fields "
                'follow the boxes, as F.Numbers("labels", like="boxes")'
            )
        for parameter in inspect.signature(step).parameters:
            if parameter not in arguments and hasattr(item, parameter):
                value = getattr(item, parameter)
                arguments[parameter] = _one(value) if parameter in ("size", "padding", "fill") else value
        if "threshold" in arguments:
            arguments["threshold"] = self._levels(arguments["threshold"])
        for parameter, value in arguments.items():
            if callable(value) or isinstance(value, Mapping):
                raise ConfigError(
                    f"{place} ({name}): {parameter}={shown(value)} has no equal here; give a number or a list of numbers"
                )
        if "antialias" in arguments and not self.on_tensors:
            arguments["antialias"] = True  # on PIL images torchvision ignores it
        if "fill" in arguments:
            arguments["fill"] = self._levels(arguments["fill"])
        if name == "RandomErasing":
            value = arguments["value"]
            # v2 keeps "random" as None.
            arguments["value"] = "random" if value is None else self._levels(value)
        if name == "Normalize":
            self.normalized = True
        self.steps.append(step(**arguments).config())

    def _levels(self, colour: Any) -> Any:
        """A colour in levels, as the daemon takes it before Normalize; after it, both use Normalize's units."""
        if (
            colour is None  # no fill given
            or isinstance(colour, str)
            or self.normalized
            or not (self.on_tensors and self.dtype in ("f32", "f16", "bf16"))
        ):
            return colour
        return [part * 255 for part in colour] if isinstance(colour, Sequence) else colour * 255


def _one(value: Any) -> Any:
    """`[224]`, v2's form of a single number, as that number."""
    return (
        value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value
    )


#: Steps with the same name and arguments in both libraries.
_STEPS = [name for name in ours.__all__ if name not in ("IMAGENET", "Compose", "Transform")]


def _refusal(place: str, item: Any) -> str:
    """Why something is not a transform here, and what to do instead."""
    kind = item if isinstance(item, type) else type(item)
    name = f"{kind.__module__}.{kind.__qualname__}"
    known = "fuelrail.transforms has " + ", ".join(_STEPS)
    afterwards = "apply it to the batch after taking it, on the device"
    if isinstance(item, str):
        near = difflib.get_close_matches(item, _STEPS, n=1)
        return (
            f"{place} is text, {item!r}: a transform is an object, as {near[0] if near else 'Resize'}(...), or a policy "
            f"of timm, which begins with {', '.join(_TIMM_POLICIES)}; {known}"
        )
    if isinstance(item, type):
        return (
            f"{place} is the class {kind.__name__}: make an object of it with its arguments, as "
            f"{kind.__name__}(...)"
        )
    if _library(item) == "torchvision":
        return f"{place} is torchvision's {kind.__name__}, which has no equal here: {afterwards}; {known}"
    if _library(item) == "timm":
        return (
            f"{place} is {name}, which runs in Python: write timm's configuration string in its place, such as "
            '"rand-m9-mstd0.5-inc1", or use TimmRandomErasing'
        )
    if kind.__module__.startswith("albumentations"):
        return (
            f"{place} is {name}: albumentations run in Python, one image at a time, and the daemon runs no Python; use "
            f"the steps here or {afterwards}. {known}"
        )
    if _is_module(kind):
        return f"{place} is {name}, a torch module; the daemon runs no Python: {afterwards}"
    if isinstance(item, Callable):  # type: ignore[arg-type]
        label = getattr(item, "__qualname__", None) or name
        return (
            f"{place} is a Python {kind.__name__} ({label}); the daemon runs no Python: {afterwards}. {known}"
        )
    return f"{place} is {shown(item)}, not a transform; {known}"


def _is_module(kind: type) -> bool:
    return any(
        f"{base.__module__}.{base.__qualname__}" == "torch.nn.modules.module.Module" for base in kind.__mro__
    )
