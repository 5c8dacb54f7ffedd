"""``onnxq report``: the page of a result."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli._output import emit_json, show_text
from onnxq.cli.options.shared_options import FILE, GroupedCommand, examples, option, output_options, state


@click.command(
    cls=GroupedCommand,
    short_help="Draw the result of a quantization as a page.",
    epilog=examples(
        "onnxq report result.json -o model.html",
        "onnxq quantize model.onnx -c calibration.npz --report model.html --json > result.json",
    ),
)
@click.argument("result", type=FILE)
@option(
    "-o",
    "--output",
    metavar="FILE.html",
    type=FILE,
    default_text="RESULT with the ending .html",
    help="File for the page. An existing one is replaced.",
)
@output_options
@click.pass_context
def command(ctx: click.Context, result: Path, output: Path | None, as_json: bool, verbose: bool) -> None:
    """Write the page of RESULT, which is what 'onnxq quantize --json' printed.

    The page is one file that works offline, on paper and without JavaScript. Error by layer, histograms and outputs
    side by side are in RESULT where the quantization itself was asked for a --report. Needs the extra 'report'.
    """
    from onnxq import api

    written = api.report(result, output if output is not None else result.with_suffix(".html"))
    state(ctx).written = written
    if as_json:
        emit_json({"output": str(written)})
    else:
        show_text(str(written))
