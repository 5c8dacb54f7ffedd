"""``onnxq targets``: what --target takes."""

from __future__ import annotations

import click

from onnxq.cli._output import emit_json, show_text
from onnxq.cli._summary import show_records
from onnxq.cli.options.shared_options import GroupedCommand, examples, output_options


@click.command(
    cls=GroupedCommand, short_help="List the targets.", epilog=examples("onnxq targets", "onnxq targets --json")
)
@output_options
def command(as_json: bool, verbose: bool) -> None:
    """List the targets that 'onnxq quantize --target' takes: what runs the model, and what that can run.

    With --verbose also the operators that it runs on integers.
    """
    from onnxq import api

    rows = api.targets()
    if as_json:
        emit_json({"targets": rows})
    else:
        show_records(rows, last="description", leave_out=("operators",))
        for row in rows if verbose else ():
            show_text()
            show_text(f"{row['name']} runs on integers: {', '.join(row['operators'])}")
