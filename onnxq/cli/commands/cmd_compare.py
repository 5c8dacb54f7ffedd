"""``onnxq compare``: how close a quantized model is to its float original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli._output import emit_json, end_with, show_warnings
from onnxq.cli._progress import working
from onnxq.cli._summary import show_comparison
from onnxq.cli.options.completion import names_of
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
)
from onnxq.errors import RecipeError, there_are
from onnxq.report.words import decibels

if TYPE_CHECKING:
    from onnxq.runtime.engines.places import RunsOn
    from onnxq.verify.compare import Comparison

DROPS = ("top1", "accuracy", "perplexity", "divergence")
"""What --max-drop can be about."""


@click.command(
    cls=GroupedCommand,
    common="calibration metric min_sqnr max_drop place provider preprocess as_json verbose".split(),
    short_help="Compare a quantized model with its float original.",
    epilog=examples(
        "onnxq compare model.onnx model.w8a8.onnx -c test.npz",
        "onnxq compare model.onnx model.w8a8.onnx -c mydata:samples --json",
        "onnxq compare lm.onnx lm.w4.onnx -c held_out.npz --metric perplexity",
    ),
)
@click.argument("float_model", type=FILE, metavar="FLOAT")
@click.argument("quantized_model", type=FILE, metavar="QUANTIZED")
@option(
    "-c",
    "--calibration",
    type=DATA,
    metavar="DATA",
    required=True,
    group="Data",
    short=f"Samples to run through both models: {CALIBRATION_SHORT}.",
    help=f"Samples to run through both models: {CALIBRATION_FORMS}.",
)
@states_option("Data")
@option(
    "--metric",
    metavar="NAME",
    shell_complete=names_of("onnxq.verify.metrics:METRICS"),
    group="Data",
    help="The figure that counts: sqnr, cosine, top1, accuracy, perplexity or divergence. It is printed last; a figure "
    "that the data does not give is an error.",
)
@option(
    "--min-sqnr",
    type=FiniteRange(),
    metavar="DB",
    group="Data",
    help="Exit with 3 if an output has a lower signal-to-noise ratio than this, in decibels.",
)
@option(
    "--max-drop",
    type=FiniteRange(min=0),
    metavar="X",
    group="Data",
    help="Exit with 3 if the quantized model is worse by more than this: in points of accuracy (with labels), else of "
    "top-1 agreement or of unchanged decisions, or in the units of --metric accuracy, perplexity or divergence.",
)
@custom_ops_option("Data")
@engine_options("Engine", python=True)
@image_options()
@output_options
def command(
    float_model: Path,
    quantized_model: Path,
    calibration: str,
    states: dict[str, str] | None,
    metric: str | None,
    min_sqnr: float | None,
    max_drop: float | None,
    custom_ops: tuple[Path, ...],
    runs_on: RunsOn | None,
    as_json: bool,
    **_: Any,
) -> None:
    """Compare the outputs of the model QUANTIZED with those of the model FLOAT, sample by sample.

    Gives SQNR, cosine similarity and top-1 agreement for each output, and the accuracy of both models where the data
    has an array 'labels'. For language models also the perplexity of the token ids in the data, and how often both
    models find the same token most likely; padding, by an attention mask in the data, does not count.
    """
    from onnxq import api

    if max_drop is not None and metric is not None and metric not in DROPS:
        raise RecipeError(f"--max-drop: --metric {metric} has no units to fall in; {there_are(metric, DROPS)}")
    with working(as_json) as progress:
        progress("compare", 0, None)
        result = api.compare(
            float_model,
            quantized_model,
            data=calibration,
            states=states,
            metric=metric,
            custom_ops=custom_ops,
            runs_on=runs_on,
        )
    if as_json:
        emit_json(result.to_dict())
    else:
        show_comparison(result.to_dict())
    show_warnings(getattr(result, "warnings", ()))
    end_with(_misses(result, metric, min_sqnr, max_drop))


def _misses(result: Comparison, metric: str | None, min_sqnr: float | None, max_drop: float | None) -> Iterator[str]:
    from onnxq.search.within.score import TOP1, TaskMetric
    from onnxq.verify.budget import Limits

    for name, output in result.outputs.items():
        if min_sqnr is not None and output.sqnr_db is not None and not output.sqnr_db >= min_sqnr:
            yield f"{name}: SQNR of {decibels(output.sqnr_db)}, lower than --min-sqnr {min_sqnr:g}"
    if min_sqnr is not None and result.sqnr_db is None:
        yield "--min-sqnr: no output could be measured"
    if max_drop is None:
        return
    if metric in (None, TOP1):
        yield from Limits(max_drop=max_drop).failures(result)
    elif not (fall := TaskMetric(metric).fall(result)) <= max_drop:
        yield f"{TaskMetric(metric).change(fall)} and --max-drop allows {max_drop:g}"
