"""``onnxq benchmark``: how fast and how large models are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli._output import emit_json, end_with, show_warnings
from onnxq.cli._progress import working
from onnxq.cli._summary import show_benchmark
from onnxq.cli.options.engine_options import engine_options
from onnxq.cli.options.image_options import image_options
from onnxq.cli.options.shared_options import (
    CALIBRATION_FORMS,
    CALIBRATION_SHORT,
    DATA,
    FILE,
    FiniteRange,
    GroupedCommand,
    custom_ops_option,
    examples,
    option,
    output_options,
    states_option,
    threads_option,
)

if TYPE_CHECKING:
    from onnxq.runtime.engines.places import RunsOn


@click.command(
    cls=GroupedCommand,
    common="calibration threads seconds min_speedup place provider engine preprocess as_json verbose".split(),
    short_help="Measure latency, size and peak memory of models.",
    epilog=examples(
        "onnxq benchmark model.onnx model.w8a8.onnx",
        "onnxq benchmark model.onnx model.w8a8.onnx -c calibration.npz --threads 1 --seconds 10",
    ),
)
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL [MODEL...]")
@option(
    "-c",
    "--calibration",
    type=DATA,
    metavar="DATA",
    group="Measurement",
    short=f"Samples to run: {CALIBRATION_SHORT}.",
    help=f"Samples to run: {CALIBRATION_FORMS}. Without them inputs are synthetic, with free dimensions of 64 or "
    "what else runs.",
)
@states_option("Measurement")
@threads_option("Measurement", default_text="1")
@custom_ops_option("Measurement")
@option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    default=3.0,
    metavar="S",
    group="Measurement",
    default_text="3",
    help="Time to spend on each model.",
)
@option(
    "--min-speedup",
    type=FiniteRange(min=0, min_open=True),
    metavar="X",
    group="Measurement",
    help="Exit with 3 if any later model is not at least X times as fast as the first.",
)
@engine_options("Engine", python=True)
@image_options()
@output_options
def command(
    models: tuple[Path, ...],
    calibration: str | None,
    states: dict[str, str] | None,
    threads: int | None,
    seconds: float,
    min_speedup: float | None,
    custom_ops: tuple[Path, ...],
    runs_on: RunsOn | None,
    as_json: bool,
    **_: Any,
) -> None:
    """Measure the latency, size and peak memory of each MODEL.

    The models take turns, so that whatever else the machine does hits all of them alike. Ratios are to the first
    model: above 1 is faster than it.
    """
    from onnxq import api

    with working(as_json) as progress:
        progress("benchmark", 0, None)
        result = api.benchmark(
            list(models),
            data=calibration,
            states=states,
            threads=threads,
            seconds=seconds,
            custom_ops=custom_ops,
            runs_on=runs_on,
        )
    if as_json:
        emit_json(result.to_dict())
    else:
        show_benchmark(result.to_dict())
    show_warnings(getattr(result, "warnings", ()))
    if min_speedup is not None:
        rows = result.to_dict()["models"]
        end_with(
            f"{row['name']}: {row['ratio']:.2f}x as fast as {rows[0]['name']}, less than --min-speedup {min_speedup:g}"
            for row in rows[1:]
            if row["ratio"] < min_speedup
        )
