"""Options that say how a folder of images becomes samples, for every command that takes samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from onnxq.cli.options.completion import names_of
from onnxq.cli.options.shared_options import option

F = TypeVar("F", bound=Callable[..., Any])

_NAMES = ("preprocess", "mean", "std", "bgr", "resize", "crop")


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers; write 0.485,0.456,0.406", ctx, parameter) from None


def _side(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    return int(value) if value is not None and value.isascii() and value.isdigit() else value


def image_options(group: str = "Images") -> Callable[[F], F]:
    """Add --preprocess and its companions; the command finds them all in its ``calibration``."""

    def decorate(function: F) -> F:
        @wraps(function)
        def with_images(*args: Any, **kwargs: Any) -> Any:
            asked = {name: kwargs.pop(name) for name in _NAMES}
            given = [name for name, value in asked.items() if value is not None]
            if given and kwargs.get("calibration") is None:
                raise click.UsageError(f"--{given[0]}: says how images become samples; name their folder with -c")
            if given:
                from onnxq.data.images import Images

                kwargs["calibration"] = Images(kwargs["calibration"], **asked)
            return function(*args, **kwargs)

        decorated: Any = with_images
        for declare in reversed(_options(group)):
            decorated = declare(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _options(group: str) -> list[Callable[[Any], Any]]:
    return [
        option(
            "--preprocess",
            metavar="NAME",
            shell_complete=names_of("onnxq.data.preprocessing:PREPROCESSES"),
            group=group,
            default_text="guessed by trying, and said",
            short="How pixels become numbers: imagenet, 0-1, -1-1, 0-255 or caffe; guessed where it is not given.",
            help="How pixels become numbers: imagenet (mean and deviation of ImageNet), 0-1, -1-1, 0-255 or caffe (BGR "
            "less ImageNet's mean colour).",
        ),
        option(
            "--mean",
            metavar="R,G,B",
            callback=_numbers,
            group=group,
            default_text="that of --preprocess",
            help="Mean of each channel, of pixels from 0 to 1, or as they are with --preprocess 0-255.",
        ),
        option(
            "--std",
            metavar="R,G,B",
            callback=_numbers,
            group=group,
            default_text="that of --preprocess",
            help="Standard deviation of each channel, in the same unit.",
        ),
        option(
            "--bgr/--rgb",
            "bgr",
            default=None,
            group=group,
            default_text="rgb; bgr with caffe",
            help="Order of the channels.",
        ),
        option(
            "--resize",
            metavar="N|stretch|pad",
            callback=_side,
            group=group,
            default_text="8/7 of the model's size for imagenet and caffe, else stretch",
            help="Length of the shorter side in pixels, before the middle is cut out; or stretch, or pad, to the "
            "model's size.",
        ),
        option(
            "--crop",
            metavar="N",
            type=click.IntRange(min=1),
            group=group,
            default_text="the model's size",
            help="Side in pixels of the square cut out of the middle, for models that take any size.",
        ),
    ]
