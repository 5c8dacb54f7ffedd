"""``onnxq inspect``: what a model holds."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli._output import emit_json
from onnxq.cli._summary import show_inspection
from onnxq.cli.options.shared_options import FILE, GroupedCommand, examples, option, output_options


@click.command(
    cls=GroupedCommand,
    short_help="Say what of a model is quantized and how.",
    epilog=examples(
        "onnxq inspect model.onnx", "onnxq inspect model.w8a8.onnx --verbose", "onnxq inspect model.onnx --schemes"
    ),
)
@click.argument("model", type=FILE)
@option(
    "--schemes",
    is_flag=True,
    help="Also round every float weight by every usual scheme, 8 to 2 bits, and show the errors.",
)
@output_options
def command(model: Path, schemes: bool, as_json: bool, verbose: bool) -> None:
    """Say what of MODEL is quantized and how, what is not and why, and what its weights look like.

    Works on float models and on quantized ones, whoever made them.
    """
    from onnxq import api

    result = api.inspect(model, schemes=schemes)
    if as_json:
        emit_json(result.to_dict())
    else:
        show_inspection(result.to_dict(), verbose=verbose)
