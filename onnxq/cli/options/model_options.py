"""Options about the float types, shapes and operator set of the model that is written."""

from __future__ import annotations

from collections.abc import Callable

import click

from onnxq.cli.options.completion import names_of
from onnxq.cli.options.shared_options import FILE, F, option
from onnxq.recipe.recipe import FLOAT_TYPES


def float_options(group: str) -> Callable[[F], F]:
    """Add --float-type, --store-only and --keep-io."""

    def add(function: F) -> F:
        function = option(
            "--keep-io/--no-keep-io",
            default=None,
            group=group,
            default_text="keep",
            help="With a 16-bit float type: whether inputs and outputs keep their types, or get it too.",
        )(function)
        function = option(
            "--store-only",
            is_flag=True,
            default=None,
            group=group,
            help="With a 16-bit float type: store weights in it, and compute everything in float32.",
        )(function)
        return option(
            "--float-type",
            type=click.Choice(FLOAT_TYPES),
            group=group,
            default_text="float32, or the preset's",
            help="What computes in float between inputs and outputs, with w8, w4 and w2 (w4 with float16 is q4f16); "
            "the presets fp16 and bf16 say it themselves. Nodes whose range leaves the type stay float32.",
        )(function)

    return add


def model_options(group: str) -> Callable[[F], F]:
    """Add --fix-dim, --drop-tail, --opset and --float-output."""

    def add(function: F) -> F:
        function = option(
            "--float-output",
            "float_outputs",
            metavar="TYPE",
            multiple=True,
            group=group,
            help="With a target that quantizes outputs: leave float what operators of this type write. Repeatable.",
        )(function)
        function = option(
            "--drop-tail",
            is_flag=True,
            default=None,
            group=group,
            help="Take post-processing off: non-maximum suppression, TopK and the like, what --target has no operator "
            "for, and all that depends on them. The model then gives what these read.",
        )(function)
        function = option(
            "--opset",
            type=int,
            metavar="N",
            group=group,
            default_text="the model's, raised where the target or the form of weights needs it",
            help="Operator set of the model that is written.",
        )(function)
        return option(
            "--fix-dim",
            "fix_dims",
            metavar="NAME=N",
            multiple=True,
            group=group,
            help="Give a symbolic dimension a size, everywhere in the model: batch=1; input:0=1 if it has no name. "
            "Repeatable.",
        )(function)

    return add


def engine_python_option(group: str) -> Callable[[F], F]:
    """Add --engine-python, for a command that has a target."""
    return option(
        "--engine-python",
        type=FILE,
        metavar="FILE",
        group=group,
        default_text="this Python; python3 on --device",
        help="Python that has the engine of the target, such as one with onnxruntime-openvino; the model is then run "
        "and timed there too.",
    )


def kv_cache_option(group: str) -> Callable[[F], F]:
    """Add --kv-cache."""
    return option(
        "--kv-cache",
        metavar="FORM",
        shell_complete=names_of("onnxq.recipe.recipe:CACHES"),
        group=group,
        default_text="as they are",
        help="What the caches of keys and values of a decoder hold: int8 or int4, with scales found on the samples, or "
        "float. Inputs and outputs of the model change type with them. Attention in plain operators becomes "
        "GroupQueryAttention, and a decoder without caches gets some.",
    )


def rotation_options(group: str) -> Callable[[F], F]:
    """Add --rotate and --learn-rotation."""

    def add(function: F) -> F:
        function = option(
            "--learn-rotation",
            is_flag=True,
            default=None,
            group=group,
            help="With --rotate: let the matrices learn from the samples, by what rounding would lose (SpinQuant). "
            "Needs PyTorch: pip install 'onnxq[torch]'.",
        )(function)
        return option(
            "--rotate",
            is_flag=True,
            default=None,
            group=group,
            help="Turn the residual stream of a transformer, and heads of values, by orthogonal matrices that are "
            "folded into the weights (QuaRot), so that no channel is far larger than the others. Nothing is computed "
            "at inference for it.",
        )(function)

    return add
