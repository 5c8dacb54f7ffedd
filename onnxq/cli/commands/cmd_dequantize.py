"""``onnxq dequantize``: a float model from a quantized one."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli._output import emit_json, show_text, show_warnings
from onnxq.cli.options.shared_options import (
    FILE,
    GroupedCommand,
    custom_ops_option,
    examples,
    option,
    output_options,
    state,
    threads_option,
)
from onnxq.report.printable import printable


@click.command(
    cls=GroupedCommand,
    short_help="Give a quantized model its floats back.",
    epilog=examples("onnxq dequantize model.int8.onnx", "onnxq dequantize model.int8.onnx -o model.onnx"),
)
@click.argument("model", type=FILE)
@option(
    "-o",
    "--output",
    metavar="FILE",
    type=FILE,
    default_text="<model stem>.float.onnx beside MODEL",
    help="File for the float model. An existing one is replaced when the new one is complete.",
)
@threads_option("Options")
@custom_ops_option("Options")
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    output: Path | None,
    threads: int | None,
    custom_ops: tuple[Path, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Write a float form of MODEL, which any tool may have quantized, so that it can be quantized anew.

    Weights become the numbers that their integers stand for, and activations are not rounded any more: what rounding
    has lost stays lost. Inputs and outputs keep names and types.
    """
    from onnxq import api

    result = api.dequantize(model, output, threads=threads, custom_ops=custom_ops)
    state(ctx).written = result.output
    if as_json:
        emit_json(result.to_dict())
    else:
        show_text(printable(result.summary(), lines=True))
    show_warnings(result.warnings)
