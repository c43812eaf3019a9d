"""Transforms, with torchvision v2's names, arguments and meaning.

They only describe what the daemon computes; nothing runs in Python. Pixels are uint8 after every step, rounded
as Pillow does. Consecutive crops, resizes and flips are fused into one region and one resize before decoding.

>>> from fuelrail import transforms as T
>>> chain = [T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.Normalize(*T.IMAGENET)]
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

#: Mean and standard deviation of ImageNet's channels, for `Normalize(*IMAGENET)`.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Size = int | Sequence[int]
Number = int | float


#: Pillow's constants, as `Image.BILINEAR`, which torchvision takes too.
_PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class Transform:
    """Base of all transforms: a name and its arguments as plain data."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = {key: _plain(value) for key, value in arguments.items() if value is not None}
        how = self._arguments.get("interpolation")
        if isinstance(how, int) and how in _PILLOW_FILTERS:
            self._arguments["interpolation"] = _PILLOW_FILTERS[how]

    def config(self) -> dict[str, Any]:
        """The transform as the daemon takes it."""
        return {"type": type(self).__name__, **_config(self._arguments)}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._arguments.items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transform) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(repr(self))


def _config(value: Any) -> Any:
    """Transforms among arguments as the daemon takes them."""
    if isinstance(value, Transform):
        return value.config()
    if isinstance(value, dict):
        return {key: _config(item) for key, item in value.items()}
    return [_config(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Tuples to lists; torchvision's `InterpolationMode` to its name."""
    if isinstance(value, Transform):
        return value
    if hasattr(value, "value"):  # an Enum member
        value = value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # a tensor or array of means, say
        return value.tolist()
    return value


class Resize(Transform):
    """Resize to `size`: (height, width), or one number for the shorter edge.

    interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming". max_size limits the longer
    edge.
    """

    def __init__(
        self,
        size: Size | None,
        interpolation: Any = "bilinear",
        max_size: int | None = None,
        antialias: bool = True,
    ) -> None:
        super().__init__(size=size, interpolation=interpolation, max_size=max_size, antialias=antialias)


class CenterCrop(Transform):
    """Crop the centre; a smaller image is padded with black."""

    def __init__(self, size: Size) -> None:
        super().__init__(size=size)


class RandomCrop(Transform):
    """Crop a window of `size` at a random place, after optional padding."""

    def __init__(
        self,
        size: Size,
        padding: Size | None = None,
        pad_if_needed: bool = False,
        fill: Number | Sequence[Number] = 0,
        padding_mode: str = "constant",
    ) -> None:
        super().__init__(
            size=size, padding=padding, pad_if_needed=pad_if_needed, fill=fill, padding_mode=padding_mode
        )


class RandomResizedCrop(Transform):
    """Crop a random share (`scale`) of the area with a random aspect ratio (`ratio`) and resize it to `size`."""

    def __init__(
        self,
        size: Size,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Any = "bilinear",
        antialias: bool = True,
    ) -> None:
        super().__init__(
            size=size, scale=scale, ratio=ratio, interpolation=interpolation, antialias=antialias
        )


class Letterbox(Transform):
    """Resize into a frame of `size` with the aspect ratio kept, and fill the rest (as Ultralytics' LetterBox).

    scaleup=False never enlarges. center=False puts the image into the upper left corner.
    """

    def __init__(
        self,
        size: Size,
        fill: Number | Sequence[Number] = 114,
        scaleup: bool = True,
        center: bool = True,
        interpolation: Any = "bilinear",
        antialias: bool = True,
    ) -> None:
        super().__init__(
            size=size,
            fill=fill,
            scaleup=scaleup,
            center=center,
            interpolation=interpolation,
            antialias=antialias,
        )


class ScaleJitter(Transform):
    """Resize by a random factor from `scale_range`; 1 fits the image into `target_size` (width, height).

    The size then depends on the image: add a RandomCrop with pad_if_needed, or a Letterbox.
    """

    def __init__(
        self,
        target_size: Size,
        scale_range: Sequence[float] = (0.1, 2.0),
        interpolation: Any = "bilinear",
        antialias: bool = True,
    ) -> None:
        super().__init__(
            target_size=target_size,
            scale_range=scale_range,
            interpolation=interpolation,
            antialias=antialias,
        )


class RandomShortestSize(Transform):
    """Resize so that the shorter edge has one of the lengths `min_size`, and the longer edge at most `max_size`."""

    def __init__(
        self,
        min_size: Size,
        max_size: int | None = None,
        interpolation: Any = "bilinear",
        antialias: bool = True,
    ) -> None:
        super().__init__(
            min_size=min_size, max_size=max_size, interpolation=interpolation, antialias=antialias
        )


class RandomZoomOut(Transform):
    """Put the image at a random place of a canvas that is larger by a factor from `side_range`, with probability `p`."""

    def __init__(
        self,
        fill: Number | Sequence[Number] = 0,
        side_range: Sequence[float] = (1.0, 4.0),
        p: float = 0.5,
    ) -> None:
        super().__init__(fill=fill, side_range=side_range, p=p)


class RandomIoUCrop(Transform):
    """Crop a random region that contains the centre of a box and overlaps a box by a minimum that is drawn from
    `sampler_options` (default: 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1; 1 keeps the whole image).

    It needs a Boxes field. Boxes whose centre is outside become 0, 0, 0, 0: add a SanitizeBoundingBoxes after it.
    """

    def __init__(
        self,
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_aspect_ratio: float = 0.5,
        max_aspect_ratio: float = 2.0,
        sampler_options: Sequence[float] | None = None,
        trials: int = 40,
    ) -> None:
        super().__init__(
            min_scale=min_scale,
            max_scale=max_scale,
            min_aspect_ratio=min_aspect_ratio,
            max_aspect_ratio=max_aspect_ratio,
            sampler_options=sampler_options,
            trials=trials,
        )


class ClampBoundingBoxes(Transform):
    """Clip boxes to the image. Crops, padding and rotations do so themselves."""

    def __init__(self) -> None:
        super().__init__()


class SanitizeBoundingBoxes(Transform):
    """Remove boxes with a side below `min_size`, an area below `min_area`, or a part outside the image.

    The keypoints and numbers that follow the boxes (`like=`) are removed with them.
    """

    def __init__(self, min_size: float = 1.0, min_area: float = 1.0) -> None:
        super().__init__(min_size=min_size, min_area=min_area)


class RandomHorizontalFlip(Transform):
    """Mirror left and right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)


class RandomVerticalFlip(Transform):
    """Mirror top and bottom with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)


class RandomRotation(Transform):
    """Rotate by a random angle in degrees from [min, max], or from [-d, d] for one number d."""

    def __init__(
        self,
        degrees: Number | Sequence[Number],
        interpolation: Any = "nearest",
        expand: bool = False,
        center: Sequence[float] | None = None,
        fill: Number | Sequence[Number] = 0,
    ) -> None:
        super().__init__(
            degrees=degrees, interpolation=interpolation, expand=expand, center=center, fill=fill
        )


class RandomAffine(Transform):
    """Rotate, move, scale and shear by random amounts; the size stays.

    degrees: [min, max], or one number d for [-d, d]. translate: the largest shares of width and height. scale: [min,
    max]. shear: degrees along x as `degrees`, or [min, max] along x and then along y.
    """

    def __init__(
        self,
        degrees: Number | Sequence[Number],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: Number | Sequence[Number] | None = None,
        interpolation: Any = "nearest",
        fill: Number | Sequence[Number] = 0,
        center: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            degrees=degrees,
            translate=translate,
            scale=scale,
            shear=shear,
            interpolation=interpolation,
            fill=fill,
            center=center,
        )


class RandomPerspective(Transform):
    """With probability `p`, move the corners inwards, by up to half of the image for `distortion_scale=1`."""

    def __init__(
        self,
        distortion_scale: float = 0.5,
        p: float = 0.5,
        interpolation: Any = "bilinear",
        fill: Number | Sequence[Number] = 0,
    ) -> None:
        super().__init__(distortion_scale=distortion_scale, p=p, interpolation=interpolation, fill=fill)


class ElasticTransform(Transform):
    """Move each pixel by a random field, of strength `alpha` and smoothness `sigma` in pixels."""

    def __init__(
        self,
        alpha: Number | Sequence[Number] = 50.0,
        sigma: Number | Sequence[Number] = 5.0,
        interpolation: Any = "bilinear",
        fill: Number | Sequence[Number] = 0,
    ) -> None:
        super().__init__(alpha=alpha, sigma=sigma, interpolation=interpolation, fill=fill)


class Grayscale(Transform):
    """Make the image gray, with 1 channel or with the same gray value in 3."""

    def __init__(self, num_output_channels: int = 1) -> None:
        super().__init__(num_output_channels=num_output_channels)


class RandomGrayscale(Transform):
    """Make the image gray with probability `p`, keeping its channels."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__(p=p)


class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue by random factors, in a random order."""

    def __init__(
        self,
        brightness: Number | Sequence[float] | None = None,
        contrast: Number | Sequence[float] | None = None,
        saturation: Number | Sequence[float] | None = None,
        hue: Number | Sequence[float] | None = None,
    ) -> None:
        super().__init__(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)


class RandomPhotometricDistort(Transform):
    """Change brightness, contrast, saturation, hue and the order of channels, each with probability `p`."""

    def __init__(
        self,
        brightness: Sequence[float] = (0.875, 1.125),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-0.05, 0.05),
        p: float = 0.5,
    ) -> None:
        super().__init__(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=p)


class RandomChannelPermutation(Transform):
    """Put the channels into a random order."""

    def __init__(self) -> None:
        super().__init__()


class RandomSolarize(Transform):
    """With probability `p`, invert all levels of at least `threshold`, from 0 to 255."""

    def __init__(self, threshold: float, p: float = 0.5) -> None:
        super().__init__(threshold=threshold, p=p)


class RandomPosterize(Transform):
    """With probability `p`, keep the upper `bits` bits of each level."""

    def __init__(self, bits: int, p: float = 0.5) -> None:
        super().__init__(bits=bits, p=p)


class RandomEqualize(Transform):
    """With probability `p`, spread the levels of each channel so that all are about equally frequent."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)


class RandomAutocontrast(Transform):
    """With probability `p`, stretch the levels of each channel to the whole range."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)


class RandomInvert(Transform):
    """With probability `p`, make a negative."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=p)


class RandomAdjustSharpness(Transform):
    """With probability `p`, blur (a factor from 0 to 1) or sharpen (a factor above 1)."""

    def __init__(self, sharpness_factor: float, p: float = 0.5) -> None:
        super().__init__(sharpness_factor=sharpness_factor, p=p)


class GaussianBlur(Transform):
    """Blur with a Gaussian kernel of odd `kernel_size` and a sigma drawn from [min, max]."""

    def __init__(self, kernel_size: Size, sigma: Number | Sequence[float] = (0.1, 2.0)) -> None:
        super().__init__(kernel_size=kernel_size, sigma=sigma)


class Pad(Transform):
    """Add a border: all sides, (left/right, top/bottom), or (left, top, right, bottom)."""

    def __init__(
        self, padding: Size, fill: Number | Sequence[Number] = 0, padding_mode: str = "constant"
    ) -> None:
        super().__init__(padding=padding, fill=fill, padding_mode=padding_mode)


class GaussianNoise(Transform):
    """Add normally distributed noise; mean and sigma are on the scale where white is 1."""

    def __init__(self, mean: float = 0.0, sigma: float = 0.1, clip: bool = True) -> None:
        super().__init__(mean=mean, sigma=sigma, clip=clip)


class RandomErasing(Transform):
    """Overwrite a random rectangle with probability `p`; the one transform that may follow `Normalize`."""

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: Number | Sequence[Number] | str = 0,
        inplace: bool = False,
    ) -> None:
        # `inplace` is torchvision's and has no effect here: there is no input tensor.
        del inplace
        super().__init__(p=p, scale=scale, ratio=ratio, value=value)


class Normalize(Transform):
    """Subtract `mean` and divide by `std`, per channel, on the scale where white is 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        del inplace  # as in RandomErasing
        super().__init__(mean=mean, std=std)


class RandomApply(Transform):
    """Apply all of `transforms`, in order, with probability `p`, and none of them otherwise."""

    def __init__(self, transforms: Sequence[Any], p: float = 0.5) -> None:
        super().__init__(transforms=_inside("RandomApply", transforms), p=p)


class RandomChoice(Transform):
    """Apply one of `transforms`; `p` are their weights. A list among them is applied as a whole."""

    def __init__(self, transforms: Sequence[Any], p: Sequence[float] | None = None) -> None:
        super().__init__(transforms=_inside("RandomChoice", transforms), p=p)


class RandomOrder(Transform):
    """Apply all of `transforms` in a random order. A list among them stays together, in its own order."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        super().__init__(transforms=_inside("RandomOrder", transforms))


class RandAugment(Transform):
    """Apply `num_ops` operations, each drawn from fourteen, of strength `magnitude` out of `num_magnitude_bins`."""

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Any = "nearest",
        fill: Number | Sequence[Number] | None = None,
    ) -> None:
        super().__init__(
            num_ops=num_ops,
            magnitude=magnitude,
            num_magnitude_bins=num_magnitude_bins,
            interpolation=interpolation,
            fill=fill,
        )


class TrivialAugmentWide(Transform):
    """Apply one operation, drawn from fourteen, with any of `num_magnitude_bins` strengths of a wide range."""

    def __init__(
        self,
        num_magnitude_bins: int = 31,
        interpolation: Any = "nearest",
        fill: Number | Sequence[Number] | None = None,
    ) -> None:
        super().__init__(num_magnitude_bins=num_magnitude_bins, interpolation=interpolation, fill=fill)


class AutoAugment(Transform):
    """Apply one of the 25 pairs of operations found for `policy`: "imagenet", "cifar10" or "svhn"."""

    def __init__(
        self,
        policy: Any = "imagenet",
        interpolation: Any = "nearest",
        fill: Number | Sequence[Number] | None = None,
    ) -> None:
        super().__init__(policy=policy, interpolation=interpolation, fill=fill)


class AugMix(Transform):
    """Mix the image with `mixture_width` copies, each changed by a chain of operations, with random weights.

    severity: 1 to 10. chain_depth: operations per chain, -1 for 1 to 3 at random. all_ops=False leaves out brightness,
    contrast, colour and sharpness.
    """

    def __init__(
        self,
        severity: int = 3,
        mixture_width: int = 3,
        chain_depth: int = -1,
        alpha: float = 1.0,
        all_ops: bool = True,
        interpolation: Any = "bilinear",
        fill: Number | Sequence[Number] | None = None,
    ) -> None:
        super().__init__(
            severity=severity,
            mixture_width=mixture_width,
            chain_depth=chain_depth,
            alpha=alpha,
            all_ops=all_ops,
            interpolation=interpolation,
            fill=fill,
        )


class TimmAutoAugment(Transform):
    """A policy of timm by its configuration string, such as "rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2" or "original".

    A string among the transforms is short for it. fill: timm's `img_mean`, in levels; without it the mean of ImageNet.
    interpolation: without it bilinear or bicubic, at random for each operation. translate_pct: timm's; without it 0.45,
    and 0.3 for augmix.
    """

    def __init__(
        self,
        config_str: str,
        fill: Number | Sequence[Number] | None = None,
        interpolation: Any = None,
        translate_pct: float | None = None,
    ) -> None:
        super().__init__(
            config_str=config_str, fill=fill, interpolation=interpolation, translate_pct=translate_pct
        )


class TimmRandomErasing(Transform):
    """timm's RandomErasing, after `Normalize`: with probability `probability`, overwrite `min_count` to `max_count`
    rectangles that cover `min_area` to `max_area` of the image together.

    mode: "const" for the mean colour, "rand" for one random colour per rectangle, "pixel" for random pixels.
    """

    def __init__(
        self,
        probability: float = 0.5,
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        mode: str = "const",
        min_count: int = 1,
        max_count: int | None = None,
    ) -> None:
        super().__init__(
            probability=probability,
            min_area=min_area,
            max_area=max_area,
            min_aspect=min_aspect,
            max_aspect=max_aspect,
            mode=mode,
            min_count=min_count,
            max_count=max_count,
        )


def _inside(name: str, transforms: Sequence[Any]) -> list[Any]:
    """The steps of a step; a list among them becomes one step, torchvision's objects become ours."""
    from fuelrail import interop  # which needs this module

    return interop.inside(name, transforms)


def Compose(transforms: Sequence[Any]) -> list[Any]:
    """The transforms as a list; a plain list works as well."""
    return list(transforms)


_NOT_NEEDED = {
    "ToTensor": "not needed: batches are tensors; they are float32 with Normalize or dtype=torch.float32, else uint8",
    "PILToTensor": "not needed: batches are uint8 tensors unless a Normalize or dtype= says otherwise",
    "ToImage": "not needed: batches are tensors",
    "ToPureTensor": "not needed: batches are plain tensors",
    "ToDtype": "not needed: use dtype= of the Loader, dtype=torch.float32 for values from 0 to 1",
    "ConvertImageDtype": "not needed: use dtype= of the Loader, dtype=torch.float32 for values from 0 to 1",
    "ToPILImage": "not needed: the steps work on decoded images",
    "Lambda": "not possible: the daemon runs no Python; change the batch after taking it",
    "MixUp": "not a step of an image: use fuelrail.torch.MixUp on the delivered batches",
    "CutMix": "not a step of an image: use fuelrail.torch.CutMix on the delivered batches",
    "AutoAugmentPolicy": 'not needed: write AutoAugment("cifar10"); torchvision\'s AutoAugmentPolicy is taken as well',
    "InterpolationMode": 'not needed: write interpolation="bicubic"; torchvision\'s InterpolationMode is taken as well',
}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NOT_NEEDED:
        raise AttributeError(f"fuelrail.transforms has no {name}: {_NOT_NEEDED[name]}")
    near = difflib.get_close_matches(name, __all__, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}? " if near else "apply it to the batch after taking it. "
    raise AttributeError(f"fuelrail.transforms has no {name}: {hint}It has {', '.join(__all__)}")


__all__ = [
    "IMAGENET",
    "AugMix",
    "AutoAugment",
    "CenterCrop",
    "ClampBoundingBoxes",
    "ColorJitter",
    "Compose",
    "ElasticTransform",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "Letterbox",
    "Normalize",
    "Pad",
    "RandAugment",
    "RandomAdjustSharpness",
    "RandomAffine",
    "RandomApply",
    "RandomAutocontrast",
    "RandomChannelPermutation",
    "RandomChoice",
    "RandomCrop",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomInvert",
    "RandomIoUCrop",
    "RandomOrder",
    "RandomPerspective",
    "RandomPhotometricDistort",
    "RandomPosterize",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomShortestSize",
    "RandomSolarize",
    "RandomVerticalFlip",
    "RandomZoomOut",
    "Resize",
    "SanitizeBoundingBoxes",
    "ScaleJitter",
    "TimmAutoAugment",
    "TimmRandomErasing",
    "Transform",
    "TrivialAugmentWide",
]
