"""How the pixels of an image become the numbers that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError, closest

STRETCH, PAD = "stretch", "pad"
"""Ways to come to a fixed size, other than by the length of the shorter side."""


@dataclass(frozen=True)
class Preprocess:
    """From 8-bit pixels to numbers: ``(pixel · scale − mean) / std``, by channel.

    Attributes:
        name: of the preset that it began as.
        scale: factor on the pixels, 1/255 or 1.
        mean: of each channel, in the unit of the scaled pixels; one value counts for all channels.
        std: as ``mean``; no element is zero.
        bgr: channels in the order blue, green, red.
        resize: length of the shorter side in pixels, "stretch" (to the model's size, whatever the ratio of the sides)
            or "pad" (to fit into the model's size, grey around it); None is what the preset usually goes with.
        crop: side in pixels of the square cut out of the middle; None is the model's size.
    """

    name: str
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    resize: int | str | None = None
    crop: int | None = None

    @property
    def crops(self) -> bool:
        """Whether it is usual to cut the middle out of a larger image, as networks for ImageNet are tested."""
        return self.name in ("imagenet", "caffe")

    def apply(self, pixels: Array) -> Array:
        """Numbers of an image.

        Args:
            pixels: uint8, (height, width, channels), channels in the order red, green, blue.

        Returns:
            float32, of the same shape.

        Raises:
            RecipeError: ``mean`` or ``std`` have another number of channels.
        """
        channels = pixels.shape[-1]
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise RecipeError(
                    f"--{what}: {len(values)} values for an image of {channels} channels; pass 1 or {channels}"
                )
        if self.bgr and channels == 3:
            pixels = pixels[..., ::-1]
        numbers = pixels.astype(np.float32) * np.float32(self.scale)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray((numbers - mean) / std, np.float32)

    @property
    def described(self) -> str:
        """In words, for a note: the preset, and what differs from it."""
        usual = PREPROCESSES.get(self.name)
        if usual is None or (self.mean, self.std, self.bgr) == (usual.mean, usual.std, usual.bgr):
            return self.name
        return f"{self.name}, mean {_listed(self.mean)}, std {_listed(self.std)}, {'BGR' if self.bgr else 'RGB'}"


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


PREPROCESSES = {
    preset.name: preset
    for preset in (
        Preprocess("imagenet", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        Preprocess("0-1", 1 / 255),
        Preprocess("-1-1", 1 / 255, (0.5,), (0.5,)),
        Preprocess("0-255"),
        Preprocess("caffe", 1.0, (103.939, 116.779, 123.68), bgr=True),
    )
}
"""By name: torchvision's, pixels in 0…1, in −1…1, as they are, and Caffe's (BGR less the mean colour of ImageNet)."""


def preprocess_named(
    name: str | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    resize: int | str | None = None,
    crop: int | None = None,
) -> Preprocess | None:
    """A preset with changes.

    Args:
        name: of the preset; None is "0-1" where ``mean`` or ``std`` is given, since that is what they are usually of.
        mean: by channel, in the unit of the preset's pixels.
        std: by channel, in that unit.
        bgr: order of the channels.
        resize: as in `Preprocess`.
        crop: as in `Preprocess`.

    Returns:
        None where neither a preset nor ``mean`` or ``std`` is given, so that it has to be guessed.

    Raises:
        RecipeError: there is no such preset, or a value makes no sense.
    """
    if name is None and mean is None and std is None:
        return None
    name = name or "0-1"
    if name not in PREPROCESSES:
        near = closest(name, list(PREPROCESSES))
        hint = f"did you mean '{near}'? " if near else ""
        raise RecipeError(f"--preprocess {name}: no such preset; {hint}there are {', '.join(PREPROCESSES)}")
    found = PREPROCESSES[name]
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
            raise RecipeError(f"--{what} {_listed(values)}: a value is not finite; pass numbers")
    if std is not None and not all(value > 0 for value in std):
        raise RecipeError(f"--std {_listed(std)}: deviations are above 0; leave --std out to divide by nothing")
    if found.scale < 1 and any(abs(value) > 1.5 for value in mean or ()):
        raise RecipeError(
            f"--mean {_listed(mean or ())}: pixels are scaled to 0…1 with --preprocess {name}, where no mean is so "
            "large; add --preprocess 0-255 if these are means of 0…255"
        )
    found = replace(
        found,
        mean=found.mean if mean is None else tuple(float(value) for value in mean),
        std=found.std if std is None else tuple(float(value) for value in std),
        bgr=found.bgr if bgr is None else bgr,
    )
    return sized(found, resize, crop)


def sized(preprocess: Preprocess, resize: int | str | None, crop: int | None) -> Preprocess:
    """The same with other sizes.

    Raises:
        RecipeError: no length and no word that is known.
    """
    if isinstance(resize, str) and resize not in (STRETCH, PAD):
        raise RecipeError(f"--resize {resize}: pass the length of the shorter side in pixels, {STRETCH} or {PAD}")
    for what, length in (("resize", resize), ("crop", crop)):
        if isinstance(length, int) and not 1 <= length <= 1 << 14:
            raise RecipeError(f"--{what} {length}: pass a length in pixels from 1 to {1 << 14}")
    return replace(preprocess, resize=resize, crop=crop)
