"""``onnxq diagnose``: which nodes hurt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli._output import emit_json, show_warnings
from onnxq.cli._progress import working
from onnxq.cli._summary import show_diagnosis
from onnxq.cli.options.engine_options import engine_options
from onnxq.cli.options.image_options import image_options
from onnxq.cli.options.shared_options import (
    CALIBRATION_FORMS,
    CALIBRATION_SHORT,
    DATA,
    FILE,
    GroupedCommand,
    custom_ops_option,
    examples,
    option,
    output_options,
    state,
    states_option,
    threads_option,
)


@click.command(
    cls=GroupedCommand,
    common="data recipe recipe_out place provider preprocess as_json verbose".split(),
    short_help="Rank the quantized nodes by the error they cause.",
    epilog=examples(
        "onnxq diagnose model.onnx model.w8a8.onnx -c calibration.npz",
        "onnxq diagnose model.onnx -c calibration.npz --recipe-out better.yaml",
        "onnxq quantize model.onnx -c calibration.npz --recipe better.yaml",
        'onnxq diagnose model.onnx model.w8a8.onnx -c calibration.npz --device "ssh pi@kitchen"',
    ),
)
@click.argument("float_model", type=FILE, metavar="FLOAT")
@click.argument("quantized_model", type=FILE, metavar="[QUANTIZED]", required=False)
@option(
    "-c",
    "--calibration",
    "data",
    type=DATA,
    metavar="DATA",
    group="Data",
    default_text="calibration_data/<model stem>.npz beside FLOAT, beside its folder or in the working folder, if there",
    short=f"Samples to run: {CALIBRATION_SHORT}.",
    help=f"Samples to run: {CALIBRATION_FORMS}.",
)
@states_option("Data")
@option(
    "--recipe",
    metavar="FILE",
    type=FILE,
    group="Recipes",
    default_text="preset w8a8",
    help="Recipe that QUANTIZED was made by, or that FLOAT is to be quantized by.",
)
@option(
    "--recipe-out",
    metavar="FILE",
    type=FILE,
    group="Recipes",
    help="Write a recipe that leaves the worst nodes float or changes their ranges; use it with 'onnxq quantize'.",
)
@option(
    "--save-tensors",
    metavar="FOLDER",
    type=FILE,
    group="Data",
    help="Write the raw values too: for each sample (at most 32) a file with what each quantized node gives in float, "
    "where it alone is quantized, and in the whole quantized model.",
)
@threads_option("Engine")
@custom_ops_option("Engine")
@engine_options("Engine", python=True)
@image_options()
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    float_model: Path,
    quantized_model: Path | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Rank the quantized nodes of QUANTIZED by the error they cause, worst first, and say why.

    QUANTIZED may come from any tool, as QDQ, QOperator or packed weights. Without it, FLOAT is quantized first. Each
    node is run on its own with the float model's values: 'local error' is the SQNR it leaves there, 'inherited error'
    that of the same value in the whole quantized model, 'output dB' that of the model's output where this node alone is
    quantized. With --device, --provider or --engine, quantized nodes are computed there, so that errors are those of
    its kernels.
    """
    from onnxq import api

    with working(as_json) as progress:
        result = api.diagnose(float_model, quantized_model, progress=progress, **options)
    state(ctx).written = result.recipe_path
    if as_json:
        emit_json(result.to_dict())
    else:
        show_diagnosis(result.to_dict(), verbose=verbose)
    show_warnings(result.warnings)
