"""Options of language models, and what ``onnxq quantize`` does with a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxq.cli._output import emit_json, show_warnings
from onnxq.cli._progress import working
from onnxq.cli._summary import show_folder
from onnxq.cli.options.shared_options import FILE, option, state
from onnxq.recipe.values import WORKLOADS

F = TypeVar("F", bound=Callable[..., Any])


def tokenizer_option(group: str) -> Callable[[F], F]:
    """Add --tokenizer."""
    return option(
        "--tokenizer",
        metavar="FILE",
        type=FILE,
        group=group,
        default_text="tokenizer.json beside MODEL or above its folder",
        help="File of the tokenizer (tokenizer.json) that samples which are text are read with.",
    )


def generate_option(group: str) -> Callable[[F], F]:
    """Add --generate."""
    return option(
        "--generate",
        type=click.IntRange(min=1),
        metavar="N",
        group=group,
        help="Let a language model write N texts of its own, which are its samples in place of --calibration. --seed "
        "draws others.",
    )


def workload_option(group: str) -> Callable[[F], F]:
    """Add --workload."""
    return option(
        "--workload",
        type=click.Choice(WORKLOADS),
        group=group,
        default_text="chat",
        help="What the latency of a language model with a cache is of: a prompt of 128 tokens, one token behind a "
        "cache, or a chat, 128 tokens in and 128 out. Both kinds of pass are always measured.",
    )


def quantize_a_folder(
    ctx: click.Context, folder: Path, output: Path | None, options: dict[str, Any], *, as_json: bool
) -> None:
    """Quantize every graph of a folder and print a line for each."""
    from onnxq.folders.quantizing_folder import quantize_folder

    with working(as_json) as progress:
        result = quantize_folder(folder, output, progress=progress, **options)
    state(ctx).written = result.output
    if as_json:
        emit_json(result.to_dict())
    else:
        show_folder(result.to_dict())
    show_warnings(result.warnings)
