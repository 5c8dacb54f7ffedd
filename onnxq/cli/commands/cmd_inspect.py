"""``onnxq inspect``: what a model holds."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli._options import FILE, GroupedCommand, examples, output_options
from onnxq.cli._output import emit_json
from onnxq.cli._summary import show_inspection


@click.command(
    cls=GroupedCommand,
    short_help="Say what of a model is quantized and how.",
    epilog=examples("onnxq inspect model.onnx", "onnxq inspect model.w8a8.onnx --verbose"),
)
@click.argument("model", type=FILE)
@output_options
def command(model: Path, as_json: bool, verbose: bool) -> None:
    """Say what of MODEL is quantized and how, what is not and why, and what its weights look like.

    Works on float models and on quantized ones, whoever made them.
    """
    from onnxq import api

    result = api.inspect(model)
    if as_json:
        emit_json(result.to_dict())
    else:
        show_inspection(result.to_dict(), verbose=verbose)
