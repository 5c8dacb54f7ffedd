"""``onnxq diff``: what is quantized differently between two models."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli._output import emit_json, show_warnings
from onnxq.cli._summary import show_difference
from onnxq.cli.options.shared_options import FILE, GroupedCommand, examples, output_options


@click.command(
    cls=GroupedCommand,
    short_help="Say what is quantized differently between two models.",
    epilog=examples("onnxq diff model.onnx model.w8a8.onnx", "onnxq diff ours.onnx theirs.onnx --json"),
)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@output_options
def command(first: Path, second: Path, as_json: bool, verbose: bool) -> None:
    """Say node by node what is quantized differently between FIRST and SECOND, two forms of one network.

    Either may be float or quantized, by whatever tool. Nodes are matched by name, else by the values they write.
    """
    from onnxq import api

    result = api.diff(first, second)
    if as_json:
        emit_json(result.to_dict())
    else:
        show_difference(result.to_dict(), verbose=verbose)
    # Another operator that writes a value of the same name, such as the output, is no counterpart.
    related = [row for row in result.nodes if "op_type" not in row["differs"] or row["weight_sqnr_db"] is not None]
    if not related and not result.same:
        show_warnings([f"no node of {first} has a counterpart in {second}: are they two forms of one network?"])
