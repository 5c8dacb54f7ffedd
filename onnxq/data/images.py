"""Images as samples: a folder of PNG, JPEG, WebP or BMP files, or of folders by class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec
from onnxq.data.guess_preprocess import guess
from onnxq.data.media_files import files_with, quiet, readable_files
from onnxq.data.preprocessing import PAD, PREPROCESSES, STRETCH, Preprocess, preprocess_named, sized
from onnxq.errors import CalibrationError, MissingExtraError, RecipeError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

Run = Callable[[Feed, Sequence[str]], Sequence[Any]]
"""The float model: from a feed and names of outputs to these outputs."""

_CHANNELS = (1, 3, 4)
_CROPPED = 0.875
"""Side of the model's input over the shorter side of the image that its middle is cut from (224 of 256)."""
_STRIDE, _LONGEST = 32, 640
"""Where the model takes any size: sides are multiples of this, and the longer one at most so long, in pixels."""
_GREY = 114
_GUESSED_FROM = 16
"""Images that a guess is made on."""


@dataclass(frozen=True)
class Images:
    """A folder of images as calibration data, with how they become numbers.

    ``onnxq.quantize(model, calibration=onnxq.Images("photos", preprocess="imagenet"))``.

    Attributes:
        folder: with PNG, JPEG, WebP or BMP files, or with folders of them, whose names are then the labels.
        preprocess: "imagenet", "0-1", "-1-1", "0-255" or "caffe"; None tries which one the model knows the images by.
        mean: by channel, of pixels as the preset scales them ("0-1" unless another is named).
        std: by channel, in the same unit.
        bgr: channels in the order blue, green, red.
        resize: length of the shorter side in pixels, "stretch" or "pad"; by default a little more than the model's size
            for "imagenet" and "caffe", and "stretch" for the others.
        crop: side in pixels of the square cut out of the middle, where the model takes any size.
    """

    folder: str | os.PathLike[str]
    preprocess: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    bgr: bool | None = None
    resize: int | str | None = None
    crop: int | None = None

    def __fspath__(self) -> str:
        """The folder, so that it is treated as a file of the user's."""
        return os.fspath(self.folder)

    def open(self, inputs: Sequence[InputSpec], run: Run | None, outputs: Sequence[InputSpec]) -> ImageSource:
        """The images as samples of a model.

        Args:
            inputs: what the model takes; exactly one of them is an image.
            run: runs the float model, to try what it knows the images by; None tries nothing.
            outputs: of the float model.

        Raises:
            RecipeError: no such preset, or a value that makes no sense.
            CalibrationError: no image in the folder, too many that cannot be read, or the model takes none.
        """
        asked = preprocess_named(
            self.preprocess, mean=self.mean, std=self.std, bgr=self.bgr, resize=self.resize, crop=self.crop
        )
        folder = Path(self.folder)
        if not folder.is_dir():
            raise RecipeError(
                f"{folder}: is no folder; --preprocess, --mean and the like are for a folder of images, leave them out"
            )
        source = ImageSource(folder, inputs, asked)
        if asked is None:
            source.preprocess = sized(source.preprocess, self.resize, self.crop)
            source.check_crop(self.crop)
            if self.bgr:
                source.preprocess = replace(source.preprocess, bgr=True)
            source.settle(run, outputs, bgr=self.bgr)
        return source


@dataclass(frozen=True)
class _Slot:
    """Where the image goes: the input, and what its axes mean; lengths are None where the model takes any."""

    spec: InputSpec
    channels: int
    first: bool
    height: int | None
    width: int | None
    batch: int


class ImageSource:
    """Feeds from image files, decoded one at a time.

    Attributes:
        preprocess: how pixels become numbers.
        notes: what a user should know.
    """

    def __init__(self, folder: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> None:
        """List the files and decode each once, in small, to leave out those that cannot be read.

        Raises:
            RecipeError: a crop that is not the model's size.
            CalibrationError: there are none, too many cannot be read, or the model takes no image.
        """
        self.preprocess = preprocess or PREPROCESSES["0-1"]
        self._slot = _image_input(inputs, str(folder))
        self._pillow = _pillow()
        self._folder = folder
        found = files_with(folder, IMAGE_SUFFIXES)
        if not found:
            raise CalibrationError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some")
        self._files = readable_files(folder, found, self._check)
        self.notes: list[str] = self._files.notes
        if len(self._files.paths) < self._slot.batch:
            raise CalibrationError(
                f"{folder}: holds {len(self._files.paths)} images, but the model takes {self._slot.batch} at a time; "
                "add images"
            )
        self.check_crop(self.preprocess.crop)

    def check_crop(self, crop: int | None) -> None:
        """Refuse a crop that is not the model's size.

        Raises:
            RecipeError: it is another.
        """
        sides = {self._slot.height, self._slot.width} - {None}
        if crop is not None and sides - {crop}:
            raise RecipeError(
                f"--crop {crop}: the model's input '{self._slot.spec.name}' is {self._slot.spec.shape_text}; leave "
                "--crop out, its size is then taken"
            )

    @property
    def count(self) -> int:
        """Feeds."""
        return len(self._files.paths) // self._slot.batch

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """The feeds ``start`` to ``stop`` (None: all), in order.

        Raises:
            CalibrationError: a file can no longer be read.
        """
        batch = self._slot.batch
        for index in range(start, self.count if stop is None else min(stop, self.count)):
            yield self._feed(self._pixels(path) for path in self._files.paths[index * batch : (index + 1) * batch])

    def labels(self, start: int, stop: int | None) -> Array | None:
        """Classes of the images in those feeds; None where they are not in folders by class."""
        if self._files.labels is None:
            return None
        end = self.count if stop is None else min(stop, self.count)
        return self._files.labels[start * self._slot.batch : end * self._slot.batch]

    def settle(self, run: Run | None, outputs: Sequence[InputSpec], *, bgr: bool | None) -> None:
        """Take the preset that the model knows the images best by, and say so in the notes."""
        if self._slot.spec.dtype.kind in "ui":
            self.preprocess = replace(PREPROCESSES["0-255"], resize=self.preprocess.resize, crop=self.preprocess.crop)
            return
        names = [name for name in PREPROCESSES if self._slot.channels == 3 or name in ("0-1", "-1-1", "0-255")]
        tried = {name: self._as_asked(PREPROCESSES[name], bgr) for name in names}
        chosen, said = guess(tried, self._tried, run, outputs, self._files.labels, str(self._folder))
        self.preprocess = tried[chosen]
        self.notes.append(said)

    def _as_asked(self, preset: Preprocess, bgr: bool | None) -> Preprocess:
        return replace(
            preset,
            bgr=preset.bgr if bgr is None else bgr,
            resize=self.preprocess.resize,
            crop=self.preprocess.crop,
        )

    def _tried(self, preprocess: Preprocess, change: Callable[[Array], Array]) -> Iterator[Feed]:
        """The first images by another preset, each changed a little."""
        batch, asked = self._slot.batch, self.preprocess
        self.preprocess = preprocess
        try:
            for start in range(0, min(_GUESSED_FROM, len(self._files.paths) - batch + 1), batch):
                paths = self._files.paths[start : start + batch]
                yield self._feed(change(self._pixels(path)) for path in paths)
        finally:
            self.preprocess = asked

    def _feed(self, images: Iterator[Array]) -> Feed:
        slot = self._slot
        numbers = [self.preprocess.apply(pixels) for pixels in images]
        if slot.first:
            numbers = [image.transpose(2, 0, 1) for image in numbers]
        stacked = np.stack(numbers) if len(slot.spec.shape) == 4 else numbers[0]
        if slot.spec.dtype.kind in "ui":
            limits = np.iinfo(slot.spec.dtype)
            stacked = np.clip(np.rint(stacked), limits.min, limits.max)
        return {slot.spec.name: np.ascontiguousarray(stacked).astype(slot.spec.dtype)}

    def _check(self, path: Path) -> None:
        """Decode a file, an eighth of its size where the format can."""
        with quiet(), self._pillow.open(path) as image:
            image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()

    def _pixels(self, path: Path) -> Array:
        """An image in the size that the model takes: uint8, (height, width, channels)."""
        try:
            with quiet(), self._pillow.open(path) as image:
                image.load()
                mode = {1: "L", 3: "RGB", 4: "RGBA"}[self._slot.channels]
                return self._fitted(_upright(_eight_bits(image, self._pillow)).convert(mode))
        except CalibrationError:
            raise
        except Exception as error:  # whatever a decoder raises
            raise CalibrationError(f"{path}: the image can no longer be read: {error}; repair or remove it") from error

    def _fitted(self, image: Any) -> Array:
        asked = self.preprocess
        height, width = self._size(image)
        resize = asked.resize
        if resize is None and asked.crops:  # a small image is not enlarged to lose its border
            resize = max(min(round(min(height, width) / _CROPPED), *image.size), min(height, width))
        elif resize is None:
            resize = STRETCH if asked.crop is None else min(height, width)
        if resize == PAD:
            image = _padded(image, height, width, self._pillow)
        elif resize == STRETCH:
            image = image.resize((width, height), self._pillow.Resampling.BILINEAR)
        else:
            factor = max(int(resize) / min(image.size), height / image.height, width / image.width)
            larger = (max(round(image.width * factor), width), max(round(image.height * factor), height))
            image = image.resize(larger, self._pillow.Resampling.BILINEAR)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, np.uint8)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def _size(self, image: Any) -> tuple[int, int]:
        """Height and width that an image gets; where the model takes any, its own in multiples of `_STRIDE`."""
        crop, factor = self.preprocess.crop, min(1.0, _LONGEST / max(image.size))
        return (
            self._slot.height or crop or max(round(image.height * factor / _STRIDE), 1) * _STRIDE,
            self._slot.width or crop or max(round(image.width * factor / _STRIDE), 1) * _STRIDE,
        )


def _eight_bits(image: Any, pillow: Any) -> Any:
    """Images of 16 bits, which conversion would cut at 255, on the scale of 8."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, np.float64)
    most = 255.0 if values.max(initial=0.0) < 256 else 65535.0
    return pillow.fromarray(np.clip(values * (255.0 / most), 0, 255).astype(np.uint8))


def _padded(image: Any, height: int, width: int, pillow: Any) -> Any:
    """The whole image in the middle of a grey one of the given size."""
    factor = min(height / image.height, width / image.width)
    size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
    whole = pillow.new(image.mode, (width, height), (_GREY,) * len(image.getbands()))
    whole.paste(image.resize(size, pillow.Resampling.BILINEAR), ((width - size[0]) // 2, (height - size[1]) // 2))
    return whole


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError(
            'images are read by Pillow, which is not installed; pip install "onnxq[images]", or save arrays with '
            "np.savez"
        ) from None
    return Image


def _upright(image: Any) -> Any:
    """As the camera was held."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _image_input(inputs: Sequence[InputSpec], where: str) -> _Slot:
    """The input that takes images.

    Raises:
        CalibrationError: the model needs none or several inputs, or this one is no image.
    """
    needed = [spec for spec in inputs if not spec.optional]
    if len(needed) != 1:
        listed = ", ".join(f"'{spec.name}'" for spec in needed) or "none"
        raise CalibrationError(
            f"{where}: images fill one input, but the model needs {len(needed)} ({listed}); save feeds with np.savez"
        )
    (spec,) = needed
    sides = spec.shape[1:] if len(spec.shape) == 4 else spec.shape
    if len(sides) == 3 and spec.dtype.kind in "fui":
        for first in (True, False):
            channels = sides[0] if first else sides[2]
            if channels in _CHANNELS:
                height, width = (sides[1], sides[2]) if first else (sides[0], sides[1])
                return _Slot(spec, _known(channels) or 3, first, _known(height), _known(width), _batch(spec))
        if not any(isinstance(side, int) for side in sides):  # torch's exporters leave nothing but names
            return _Slot(spec, 3, True, None, None, _batch(spec))
    raise CalibrationError(
        f"{where}: holds images, but input '{spec.name}' takes {spec.dtype} {spec.shape_text}, which is no image (4 "
        f"axes, of which the second or the last is {', '.join(map(str, _CHANNELS))} long); save feeds with np.savez"
    )


def _known(length: int | str | None) -> int | None:
    return length if isinstance(length, int) else None


def _batch(spec: InputSpec) -> int:
    return (_known(spec.shape[0]) or 1) if len(spec.shape) == 4 else 1
