"""``onnxq lint``: a model against the rules of a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.cli._output import emit_json, show_text, show_warnings
from onnxq.cli.options.completion import names_of
from onnxq.cli.options.shared_options import FILE, GroupedCommand, examples, option, output_options, state


@click.command(
    cls=GroupedCommand,
    short_help="Check a quantized model against the rules of a target.",
    epilog=examples(
        "onnxq lint model.w8a8.onnx --target qnn",
        "onnxq lint model.w8a8.onnx --target tensorrt --fix -o fixed.onnx",
        "onnxq lint model.w8a8.onnx --target qnn --fix --fix-dim batch=1 -o fixed.onnx --json",
    ),
)
@click.argument("model", type=FILE)
@option(
    "--target", metavar="NAME", required=True, shell_complete=names_of("onnxq.targets:TARGETS"),
    help="What will run the model; 'onnxq targets' lists the names.",
)  # fmt: skip
@option("--fix", is_flag=True, help="Make right what can be without data, and write it to the file of -o.")
@option("-o", "--output", metavar="FILE", type=FILE, help="File for the fixed model.")
@option(
    "--fix-dim",
    "fix_dims",
    metavar="NAME=N",
    multiple=True,
    help="With --fix: a size for a symbolic dimension, everywhere in the model. Repeatable.",
)
@option(
    "--engine-python",
    type=FILE,
    metavar="FILE",
    default_text="this Python",
    help="Python that has the engine of the target, which is asked too.",
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    target: str,
    fix: bool,
    output: Path | None,
    fix_dims: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Check the quantized model MODEL, whoever made it, against the rules of a target, a line for each finding.

    The exit code is 1 if the target would refuse the model, or compute something else. Where its engine is installed it
    is asked too, and what it says is compared with the rules.
    """
    if fix != (output is not None):
        raise click.UsageError("--fix and -o go together: one says that, the other where a fixed model is written")
    if fix_dims and not fix:
        raise click.UsageError("--fix-dim changes the model, which --fix does; add --fix and -o")
    from onnxq import api

    python = options["engine_python"]
    result = api.lint(model, target=target, output=output, fix_dims=fix_dims, engine_python=python)
    state(ctx).written = output
    if as_json:
        emit_json(result.to_dict())
    else:
        for rule, count in result.fixed.items():
            show_text(f"fixed {rule} {count} time{'s' if count > 1 else ''}")
        show_text(result.summary())
    show_warnings(result.warnings)
    if result.refused:
        ctx.exit(1)
