"""``onnxq finetune``: quantize, and let the result learn end to end from the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli._output import emit_json, show_warnings
from onnxq.cli._progress import working
from onnxq.cli._summary import show_quantization
from onnxq.cli.options.completion import names_of
from onnxq.cli.options.folder_options import generate_option, quantize_a_folder, tokenizer_option
from onnxq.cli.options.image_options import image_options
from onnxq.cli.options.learning_options import learning_options
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
    threads_option,
)
from onnxq.recipe.values import BITS

_FILES, _HOW, _LEARNING, _PROOF = "Input and output", "How to quantize", "Learning", "Verification"


@click.command(
    cls=GroupedCommand,
    common="output calibration preset recipe bits minutes device force preprocess as_json verbose".split(),
    short_help="Quantize a model and let it learn from the float model.",
    epilog=examples(
        "onnxq finetune model.onnx -c samples.npz",
        "onnxq finetune model.onnx -c samples.npz --bits 4 --minutes 20",
        "onnxq finetune lm.onnx -c text.npz -p w2 --train-on cuda",
    ),
)
@click.argument("model", type=FILE)
@option(
    "-o", "--output", metavar="FILE", type=FILE, group=_FILES, default_text="<model stem>.<preset>.onnx beside MODEL",
    help="File for the quantized model. An existing one is replaced when the new one is complete.",
)  # fmt: skip
@option(
    "-c", "--calibration", type=DATA, metavar="DATA", group=_FILES,
    default_text="calibration_data/<model stem>.npz beside MODEL, beside its folder or in the working folder, if there",
    short=f"Samples to learn from: {CALIBRATION_SHORT}.",
    help=f"Samples to learn from: {CALIBRATION_FORMS}. Labels, where there are any, count too.",
)  # fmt: skip
@generate_option(_FILES)
@tokenizer_option(_FILES)
@option(
    "-p", "--preset", metavar="NAME", group=_HOW, default_text="w8a8",
    shell_complete=names_of("onnxq.recipe.presets:PRESETS"),
    help="What weights and activations become; 'onnxq presets' lists the names.",
)  # fmt: skip
@option(
    "--recipe", metavar="FILE", type=FILE, group=_HOW,
    help="YAML file with all choices of 'onnxq quantize'. Options on the command line win over it.",
)  # fmt: skip
@option(
    "--bits", type=click.Choice([str(bits) for bits in BITS]), group=_HOW, default_text="the preset's",
    callback=lambda ctx, parameter, value: int(value) if value is not None else None,
    help="Bits of a weight. With w8a8 fewer than 8 are stored as 8.",
)  # fmt: skip
@option(
    "--kv-cache", metavar="FORM", group=_HOW, default_text="as they are",
    shell_complete=names_of("onnxq.recipe.recipe:CACHES"),
    help="What a decoder's caches of keys and values hold: int8, int4 or float. It learns with them rounded.",
)  # fmt: skip
@learning_options(_LEARNING, how=False)
@option("--no-benchmark", is_flag=True, group=_PROOF, help="Do not measure latency.")
@threads_option(_PROOF, default_text="the processors that are free, and 1 while latency is measured")
@custom_ops_option(_PROOF)
@option("--force", is_flag=True, group=_PROOF, help="Write the model even if verification fails; replace a folder.")
@image_options()
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    preset: str | None,
    no_benchmark: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Quantize the float model MODEL, and let the result learn to give what MODEL gives.

    No labels are needed. Blocks learn first, then everything together: scales, zero points and biases, and weights
    where they have few bits, or where there are hundreds of samples. The state that is best on samples of its own is
    kept. A run that was interrupted goes on where it was when the same command is given again.

    The result is verified as by 'onnxq quantize'. If that fails, nothing is written and the exit code is 3.
    """
    chosen = preset if preset is not None or options.get("recipe") is not None else "w8a8"
    if model.is_dir():
        named = {"finetune": True, "benchmark": not no_benchmark, "preset": chosen}
        named = {name: value for name, value in named.items() if value is not None}
        quantize_a_folder(ctx, model, options.pop("output"), {**options, **named}, as_json=as_json)
        return
    from onnxq import api

    with working(as_json) as progress:
        result = api.quantize(
            model, preset=chosen, finetune=True, benchmark=not no_benchmark, progress=progress, **options
        )
    state(ctx).written = result.output
    if as_json:
        emit_json(result.to_dict())
    else:
        show_quantization(result.to_dict(), float_model=model, verbose=verbose)
    show_warnings(result.warnings)
