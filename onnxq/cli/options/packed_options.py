"""Options of weights that are packed in few bits."""

from __future__ import annotations

from collections.abc import Callable

import click

from onnxq.cli.options.completion import names_of
from onnxq.cli.options.shared_options import F, FiniteRange, option
from onnxq.recipe.rounding import ROUNDINGS
from onnxq.recipe.values import BITS


def packed_options(group: str) -> Callable[[F], F]:
    """All of them, in the order of the help text."""
    declared = [
        option(
            "--bits",
            type=click.Choice([str(bits) for bits in BITS]),
            callback=lambda ctx, parameter, value: int(value) if value is not None else None,
            group=group,
            default_text="the preset's",
            help="Bits of a packed weight; 3 are stored as 4.",
        ),
        option(
            "--block-size",
            type=int,
            metavar="N",
            group=group,
            default_text="32; 128 at 8 bits; 64 with nf4 and fp4",
            help="Elements of a packed weight that share a scale: 16, 32, 64, 128 or 256; 0 for one scale a column.",
        ),
        option(
            "--algorithm",
            metavar="NAME",
            shell_complete=names_of("onnxq.recipe.rounding:ROUNDINGS"),
            group=group,
            default_text="gptq with samples, kquant without, rtn at 8 bits",
            help=f"How packed weights are rounded: {', '.join(ROUNDINGS)}. Weights of integer layers take gptq or rtn.",
        ),
        option(
            "--sequential",
            is_flag=True,
            default=None,
            group=group,
            help="Round packed weights layer by layer in the order of the graph, each by what the quantized layers "
            "before it give, towards what the float layer gives. Needs samples, which go through the model once more.",
        ),
        option(
            "--accuracy-level",
            type=click.IntRange(0, 4),
            metavar="0-4",
            group=group,
            default_text="4; with samples 0 for layers that need it",
            help="How the kernel of packed weights (MatMulNBits) computes: 0 and 1 in float32, 4 with activations "
            "rounded to int8 inside it, which is fast and adds an error of 0.5 to 0.7 %.",
        ),
        option(
            "--target-bits",
            type=float,
            metavar="X",
            group=group,
            help="Bits that packed weights may take on average, scales and zero points included; layers with larger "
            "errors get more of them.",
        ),
        option(
            "--max-memory",
            type=FiniteRange(min=0, min_open=True),
            metavar="GIB",
            group=group,
            default_text="2",
            help="Memory in GiB for the second moments that gptq, autoround and awq need; where it is too little, "
            "samples are run several times. Without samples, larger models are quantized a layer at a time.",
        ),
    ]

    def add(function: F) -> F:
        for declare in reversed(declared):
            function = declare(function)
        return function

    return add
