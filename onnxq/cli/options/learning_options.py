"""Options of learning, for the commands that let a quantized model learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from onnxq.cli.options.shared_options import FiniteRange, option
from onnxq.recipe.recipe import DEVICES

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def learning_options(group: str, *, how: bool = True) -> Decorator:
    """All of them, in the order of the help text.

    Args:
        group: heading that they are listed under.
        how: also those that say whether anything learns.
    """
    choices = [
        option(
            "--adaround",
            is_flag=True,
            default=None,
            group=group,
            help="Learn for each weight whether to round it up or down. Takes time; pays where weights have few bits.",
        ),
        option(
            "--reconstruct",
            is_flag=True,
            default=None,
            group=group,
            default_text="off; on with w8a8-learned",
            help="Let blocks of the network learn from the float model: the rounding of weights, the grids of "
            "activations and the biases, together. Takes minutes; needs PyTorch.",
        ),
        option(
            "--finetune",
            is_flag=True,
            default=None,
            group=group,
            help="Let the quantized model learn end to end from the float model, without labels. Takes minutes; needs "
            "PyTorch.",
        ),
    ]
    numbers = [
        option(
            "--minutes",
            type=FiniteRange(min=0, min_open=True),
            metavar="M",
            group=group,
            default_text="4",
            help="Minutes of computing that learning may take; what they do not suffice for stays as it is. Where "
            "blocks learn first and then the whole model, blocks take a quarter of them, or three fifths at 8 bits.",
        ),
        option(
            "--epochs",
            type=click.IntRange(min=1),
            metavar="N",
            group=group,
            default_text="3 to 60, by the number of samples",
            help="How often finetuning goes over the samples, at most.",
        ),
        option(
            "--learning-rate",
            type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
            metavar="X",
            group=group,
            default_text="0.002",
            help="Step of finetuning, as a share of each scale and of the grid of each weight.",
        ),
        option(
            "--seed",
            type=int,
            metavar="N",
            group=group,
            default_text="0",
            help="Number that the order of the samples in finetuning, and what --generate draws, follow from.",
        ),
        option(
            *(["--train-on"] if how else ["--train-on", "--device"]),  # elsewhere --device is what runs the model
            "device",
            type=click.Choice(DEVICES),
            group=group,
            default_text="cpu",
            help="Processor that finetuning runs on.",
        ),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed([*(choices if how else []), *numbers]):
            function = each(function)
        return function

    return decorate
