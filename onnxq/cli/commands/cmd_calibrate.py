"""``onnxq calibrate``: statistics of every value that quantization may ask about, saved for later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli._output import emit_json, show_text, show_warnings
from onnxq.cli._progress import working
from onnxq.cli.options.engine_options import ray_address as ray_address_option
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
    common="calibration output moments resume provider preprocess as_json verbose".split(),
    short_help="Save the statistics of a model's values for later.",
    epilog=examples(
        "onnxq calibrate model.onnx -c calibration.npz -o model.stats.npz",
        "onnxq quantize model.onnx --stats model.stats.npz --range entropy",
    ),
)
@click.argument("model", type=FILE)
@option(
    "-c",
    "--calibration",
    type=DATA,
    metavar="DATA",
    required=True,
    group="Input and output",
    short=f"Samples to run: {CALIBRATION_SHORT}.",
    help=f"Samples to run: {CALIBRATION_FORMS}.",
)
@states_option("Input and output")
@option(
    "-o",
    "--output",
    metavar="STATS",
    type=FILE,
    required=True,
    group="Input and output",
    help="File for the statistics (.npz).",
)
@option(
    "--to",
    metavar="FILE",
    type=FILE,
    group="Input and output",
    help="Also write the ranges as a calibration cache of TensorRT; 'onnxq quantize --stats' reads such a file too.",
)
@option(
    "--moments",
    is_flag=True,
    group="Input and output",
    help="Also save second moments of layer inputs, which the algorithms gptq, autoround and awq of 'onnxq quantize' "
    "need. They are large.",
)
@option(
    "--resume",
    is_flag=True,
    group="Input and output",
    help="Save now and then, and go on where an earlier run with --resume, on the same model and data, stopped.",
)
@option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    group="Running",
    help="What runs the samples: this process, or a Ray cluster.",
)
@ray_address_option("Running")
@option(
    "--provider",
    metavar="NAME",
    default="CPUExecutionProvider",
    show_default=True,
    group="Running",
    help="The onnxruntime execution provider that runs the float model.",
)
@threads_option("Running")
@custom_ops_option("Running")
@image_options()
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    calibration: str,
    states: dict[str, str] | None,
    output: Path,
    to: Path | None,
    resume: bool,
    moments: bool,
    provider: str,
    threads: int | None,
    custom_ops: tuple[Path, ...],
    engine: str,
    ray_address: str | None,
    as_json: bool,
    **_: Any,
) -> None:
    """Run MODEL on samples and save the statistics of its values.

    One run serves every range method and every preset: hand the file to 'onnxq quantize --stats'. Memory does not
    grow with the number of samples, and their shapes may differ.
    """
    from onnxq import api

    if resume:
        state(ctx).resumable = output
    with working(as_json) as progress:
        result = api.calibrate(
            model,
            output,
            calibration=calibration,
            states=states,
            threads=threads,
            provider=provider,
            progress=progress,
            resume=resume,
            moments=moments,
            to=to,
            custom_ops=custom_ops,
            engine=engine,
            ray_address=ray_address,
        )
    state(ctx).written = output
    if as_json:
        emit_json(result.to_dict())
    else:
        show_text(result.summary())
    show_warnings(result.warnings)
