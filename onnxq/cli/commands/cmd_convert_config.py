"""``onnxq convert-config``: another tool's configuration as a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli._output import emit_json, show_text, show_warnings
from onnxq.cli.options.shared_options import FILE, GroupedCommand, examples, option, output_options, state


@click.command(
    cls=GroupedCommand,
    short_help="Turn another tool's configuration into a recipe.",
    epilog=examples(
        "onnxq convert-config olive.json -o recipe.yaml",
        "onnxq convert-config ort_config.json",
    ),
)
@click.argument("config", type=FILE)
@option("-o", "--output", metavar="FILE", type=FILE, help="File for the recipe (YAML); without it, it is printed.")
@output_options
@click.pass_context
def command(ctx: click.Context, config: Path, output: Path | None, as_json: bool, verbose: bool) -> None:
    """Turn CONFIG into a recipe for 'onnxq quantize --recipe'.

    CONFIG is JSON of Olive (a workflow with passes), optimum (ort_config.json), transformers.js (quantize_config.json)
    or Quark (config.json with a quantization_config). What is not taken over is said.
    """
    from onnxq import api

    found = api.convert_config(config, output)
    if output is not None:
        state(ctx).written = output
    if as_json:
        emit_json({"tool": found.tool, "recipe": found.recipe.to_yaml(), "notes": found.notes})
    else:
        show_text(found.recipe.to_yaml() if output is None else f"{found.tool}: {config} -> {output}")
    show_warnings(found.notes)
