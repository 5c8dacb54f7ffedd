"""``onnxq presets``: what -p takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from onnxq.cli._output import emit_json
from onnxq.cli._summary import show_records
from onnxq.cli.options.shared_options import GroupedCommand, examples, output_options

_BESIDE_INTEGERS = {None: "float", "dynamic": "{} bits, at inference", "token": "{} bits, at inference"}


def _row(preset: Mapping[str, Any]) -> dict[str, object]:
    """What a person chooses by; how it is done is for --verbose and --json."""
    kind = preset["activations"]
    form = "by layer" if preset["name"] == "auto" else _BESIDE_INTEGERS.get(kind, "{} bits, calibrated")
    return {
        "name": preset["name"],
        "needs_data": preset["needs_data"],
        "weight_bits": preset["bits"],
        "activations": form.format(preset["activation_bits"]),
        "description": preset["description"],
    }


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
        show_records(rows if verbose else [_row(row) for row in rows], last="description")
