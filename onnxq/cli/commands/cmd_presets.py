"""``onnxq presets``: what -p takes."""

from __future__ import annotations

import click

from onnxq.cli._options import GroupedCommand, examples, output_options
from onnxq.cli._output import emit_json
from onnxq.cli._summary import show_records


@click.command(
    cls=GroupedCommand, short_help="List the presets.", epilog=examples("onnxq presets", "onnxq presets --json")
)
@output_options
def command(as_json: bool, verbose: bool) -> None:
    """List the presets that 'onnxq quantize -p' takes, and what each of them does."""
    from onnxq import api

    rows = api.presets()
    if as_json:
        emit_json({"presets": rows})
    else:
        show_records(rows, last="description", leave_out=() if verbose else ("activations", "weights"))
