"""``onnxq quantize``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli._output import emit_json, show_warnings
from onnxq.cli._progress import working
from onnxq.cli._summary import show_quantization
from onnxq.cli.options.completion import names_of
from onnxq.cli.options.engine_options import engine_options
from onnxq.cli.options.folder_options import generate_option, quantize_a_folder, tokenizer_option, workload_option
from onnxq.cli.options.image_options import image_options
from onnxq.cli.options.learning_options import learning_options
from onnxq.cli.options.model_options import (
    engine_python_option,
    float_options,
    kv_cache_option,
    model_options,
    rotation_options,
)
from onnxq.cli.options.packed_options import packed_options
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
    state,
    states_option,
    threads_option,
)
from onnxq.recipe.recipe import FORMATS, RANGES

_FILES, _HOW, _WHICH, _PROOF = "Input and output", "How to quantize", "What to quantize", "Search and verification"
_PACKED, _BETTER, _FORM = "Packed weights (w8, w4, w2)", "Winning accuracy back", "Form of the model"

# What --help shows; --help-all shows the rest too.
_COMMON = (
    "output calibration preset recipe target include exclude min_sqnr max_drop budget report force "
    "preprocess as_json verbose"
).split()


def _alpha(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """The option as a number, or as the word that it is; a recipe refuses any other word."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


@click.command(
    cls=GroupedCommand,
    common=_COMMON,
    short_help="Quantize a model, verify the result and write it.",
    epilog=examples(
        "onnxq quantize model.onnx",
        "onnxq quantize model.onnx -o small.onnx -c calibration.npz",
        "onnxq quantize model.onnx -c calibration.npz --range entropy --format qoperator",
        "onnxq quantize model.onnx -c calibration.npz --exclude 'head/*' --op-type Conv",
        "onnxq quantize phi-genai -o phi-w4 -c prompts.txt -p w4",
        "onnxq quantize model.onnx --stats model.stats.npz --min-sqnr 20 --json",
    ),
)
@click.argument("model", type=FILE)
@option(
    "-o",
    "--output",
    metavar="FILE",
    type=FILE,
    group=_FILES,
    default_text="<model stem>.<preset>.onnx beside MODEL",
    help="File for the quantized model. An existing one is replaced when the new one is complete. Of a folder: the "
    "folder to write, which must not exist or be empty unless --force is given.",
)
@option(
    "-c",
    "--calibration",
    type=DATA,
    metavar="DATA",
    group=_FILES,
    default_text="calibration_data/<model stem>.npz beside MODEL, beside its folder or in the working folder, if there",
    short=f"Samples that show which values occur: {CALIBRATION_SHORT}.",
    help=f"Samples that show which values occur: {CALIBRATION_FORMS}.",
)
@generate_option(_FILES)
@tokenizer_option(_FILES)
@states_option(_FILES)
@option(
    "--stats",
    metavar="FILE",
    type=FILE,
    group=_FILES,
    help="Statistics saved by 'onnxq calibrate': samples are then run to measure the result, not for ranges.",
)
@option(
    "--external-data",
    is_flag=True,
    group=_FILES,
    help="Put weights into a file beside the output, as is done above 2 GB.",
)
@option(
    "-p",
    "--preset",
    metavar="NAME",
    shell_complete=names_of("onnxq.recipe.presets:PRESETS"),
    group=_HOW,
    default_text="auto",
    help="What weights and activations become; 'onnxq presets' lists the names.",
)
@option(
    "--recipe",
    metavar="FILE",
    type=FILE,
    group=_HOW,
    help="YAML file with all of these choices, by node where need be. Options on the command line win over it.",
)
@option(
    "--target",
    metavar="NAME",
    shell_complete=names_of("onnxq.targets:TARGETS"),
    group=_HOW,
    default_text="cpu",
    help="What will run the model; 'onnxq targets' lists the names.",
)
@option(
    "--format",
    type=click.Choice(FORMATS),
    group=_HOW,
    default_text="the target's, qdq",
    help="What is written: QuantizeLinear and DequantizeLinear around float operators, or integer operators.",
)
@option(
    "--range",
    "range_method",
    type=click.Choice(RANGES),
    group=_HOW,
    default_text="mse",
    help="How the range of an activation is found from its statistics.",
)
@option(
    "--percentile",
    type=FiniteRange(min=50, max=100, min_open=True),
    metavar="P",
    group=_HOW,
    default_text="99.99",
    help="Share of the values, in percent, that the range covers. Implies --range percentile.",
)
@option(
    "--symmetric/--affine",
    default=None,
    group=_HOW,
    default_text="the target's, affine",
    help="Whether the range of an activation has zero in its middle, or lies where the values are; with a preset that "
    "packs weights, the same of their blocks (symmetric by default from 4 bits on).",
)
@option(
    "--per-channel/--per-tensor",
    default=None,
    group=_HOW,
    default_text="per channel",
    help="One weight scale for each output channel, or one for the whole weight.",
)
@option(
    "--include",
    metavar="PATTERN",
    multiple=True,
    group=_WHICH,
    help="Quantize only nodes whose name matches, even where that is expected to be slower. Repeatable.",
)
@option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    group=_WHICH,
    help="Leave nodes whose name matches in float. Repeatable.",
)
@option(
    "--op-type",
    "op_types",
    metavar="TYPE",
    multiple=True,
    group=_WHICH,
    help="Quantize only operators of this type, such as Conv, even where that is expected to be slower. Repeatable.",
)
@packed_options(_PACKED)
@option(
    "--bias-correct/--no-bias-correct",
    default=None,
    group=_BETTER,
    default_text="on",
    help="Take from the bias of a Conv or Gemm what rounding its weights adds to the mean of its output.",
)
@option(
    "--equalize",
    is_flag=True,
    default=None,
    group=_BETTER,
    help="Even out the weights of neighbouring layers channel by channel first, without changing what they compute.",
)
@option(
    "--smooth",
    metavar="ALPHA|auto",
    callback=_alpha,
    group=_BETTER,
    default_text="off, or the preset's",
    help="SmoothQuant: even out the channels of activations by moving their range into the weights that read them; "
    "ALPHA from 0 to 1, 0.5 is usual, or auto, which tries some on the samples.",
)
@option(
    "--outliers",
    type=float,
    metavar="X",
    group=_BETTER,
    default_text="off; 6 with llm-int8",
    help="LLM.int8(): input channels of a layer that reach this magnitude are computed in float. With presets whose "
    "activations have a scale a row.",
)
@rotation_options(_BETTER)
@learning_options(_BETTER)
@float_options(_FORM)
@model_options(_FORM)
@option(
    "--fuse",
    metavar="TYPE",
    group=_FORM,
    help="First let onnxruntime.transformers join attention, embeddings and activations into its own operators: the "
    "model type, such as bert or gpt2, or auto to find it. The result is used only where it computes the same.",
)
@kv_cache_option(_FORM)
@option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    group=_PROOF,
    help="Search for the fastest model whose outputs all keep this signal-to-noise ratio, in decibels; if there is "
    "none, write nothing and exit with 3.",
)
@option(
    "--max-drop",
    type=FiniteRange(min=0),
    metavar="X",
    group=_PROOF,
    help="Search for the fastest model whose metric falls by at most X: points of accuracy (with labels) or of top-1 "
    "agreement, or the units of --metric.",
)
@option(
    "--metric",
    metavar="NAME",
    shell_complete=names_of("onnxq.cli.commands.cmd_compare:DROPS"),
    group=_PROOF,
    default_text="accuracy where the data has labels, else top1",
    help="What --max-drop is about: top1, accuracy, perplexity, divergence, or module:function, which gets a callable "
    "from a feed to the outputs by name and returns a number, higher for a better model.",
)
@option(
    "--budget",
    type=FiniteRange(min=0),
    metavar="SECONDS",
    group=_PROOF,
    default_text="120",
    help="Time that the preset auto, or a search for --max-drop and --min-sqnr, may take; then the best candidate "
    "so far is written.",
)
@workload_option(_PROOF)
@option(
    "--search-state",
    metavar="FILE",
    type=FILE,
    group=_PROOF,
    default_text="<output>.search.json",
    help="File that keeps what a search has measured so far; removed when the model is written.",
)
@option(
    "--resume",
    is_flag=True,
    group=_PROOF,
    help="Go on with a search that was interrupted, from the file of --search-state.",
)
@option(
    "--no-benchmark",
    is_flag=True,
    group=_PROOF,
    help="Do not measure latency; auto then means w8a8 with data, else w8.",
)
@option(
    "--no-cache",
    is_flag=True,
    group=_PROOF,
    help="Measure anew what auto has measured before for the same model, data, options and machine.",
)
@option(
    "--report",
    metavar="FILE.html",
    type=FILE,
    group=_PROOF,
    short="Also write a page of figures and pictures; needs the extra 'report'.",
    help="Also write one page with figures, pictures and the outputs of both models; needs the extra 'report'.",
)
@option("--force", is_flag=True, group=_PROOF, help="Write the model even if verification fails; replace a folder.")
@threads_option(_PROOF, default_text="the processors that are free, and 1 while latency is measured")
@custom_ops_option(_PROOF)
@engine_options("Engine", ray=True)
@engine_python_option("Engine")
@image_options()
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    preset: str | None,
    range_method: str | None,
    percentile: float | None,
    stats: Path | None,
    no_benchmark: bool,
    no_cache: bool,
    budget: float | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Quantize the float model MODEL, verify the result, and write it beside MODEL.

    MODEL is an ONNX file, or the folder of a language model: of onnxruntime-genai, optimum, transformers.js or
    sentence-transformers. Of a folder every graph is quantized, and the result is a folder for the same runtime.

    The result is opened in onnxruntime with and without optimizations, compared with MODEL on samples that were not
    used for calibration, and timed against it. If that fails, nothing is written and the exit code is 3. MODEL itself
    is never changed.

    PATTERN is the name of a node, in full or with wildcards, such as 'blocks.*'. One that matches nothing is an
    error.
    """
    if percentile is not None:
        if range_method not in (None, "percentile"):
            raise click.UsageError(f"--percentile does not go with --range {range_method}; leave one of them out")
        range_method, options["percentile"] = "percentile", percentile
    options |= {name: value for name, value in (("preset", preset), ("budget", budget)) if value is not None}
    if model.is_dir():
        named = {"range": range_method, "statistics": stats, "benchmark": not no_benchmark, "cache": not no_cache}
        quantize_a_folder(ctx, model, options.pop("output"), {**options, **named}, as_json=as_json)
        return
    from onnxq import api

    with working(as_json) as progress:
        result = api.quantize(
            model,
            range=range_method,
            statistics=stats,
            benchmark=not no_benchmark,
            cache=not no_cache,
            progress=progress,
            **options,
        )
    state(ctx).written = result.output
    if as_json:
        emit_json(result.to_dict())
    else:
        show_quantization(result.to_dict(), float_model=model, verbose=verbose)
    show_warnings(result.warnings)
