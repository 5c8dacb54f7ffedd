"""Where the report of a run goes, and the command line that the run comes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import RecipeError
from onnxq.graph.files import saving
from onnxq.pipeline.float_model import Source, is_path
from onnxq.pipeline.job import find_calibration
from onnxq.recipe.arguments import checked
from onnxq.recipe.recipe import Recipe
from onnxq.report.command_lines import quantize_words
from onnxq.report.html.page import page_of_file, result_page
from onnxq.report.results import QuantizeResult

if TYPE_CHECKING:
    from onnxq.request.run_options import Options


@checked
def report(result: QuantizeResult | str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write the page of a quantization.

    Args:
        result: what `quantize` returned, or a file with what ``onnxq quantize --json`` printed. It has error by layer,
            histograms and outputs side by side where the quantization was asked for a report.
        output: HTML file to write.

    Returns:
        The file.

    Raises:
        RecipeError: the file holds no result, or nothing can be written there.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    place = Path(output)
    if isinstance(result, QuantizeResult):
        page = result_page(result.to_dict())
    else:
        saving.check_destination(place, [result])
        page = page_of_file(Path(result))
    saving.write_text(place, page)
    return place


def place_of_report(model: Source, destination: Path | None, options: Options) -> Path | None:
    """Where the report goes; None where none was asked for.

    Raises:
        OnnxqError: it cannot be written there, or would go over a file of the run.
    """
    if options.report is None:
        return None
    path = Path(options.report)
    saving.check_destination(path, options.inputs(model, find_calibration(model)))
    if destination is not None and os.path.realpath(path) == os.path.realpath(destination):
        raise RecipeError(f"--report {path}: is the quantized model itself; name another file, such as report.html")
    return path


def command_of_run(
    model: Source, output: str | os.PathLike[str] | None, given: Recipe, options: Options
) -> dict[str, list[str]]:
    """The command line that does the same as a run, as far as its arguments are names of files."""

    def name(value: object) -> object:
        return value if isinstance(value, str | os.PathLike) else None

    said = (
        ("-o", output),
        ("-c", name(options.calibration)),
        ("--stats", name(options.statistics)),
        ("--recipe", name(options.recipe_file)),
        ("--metric", name(options.metric)),
        ("--threads", options.threads),
        *(("--state", f"{out}={into}") for out, into in (options.states or {}).items()),
    )
    return quantize_words(model if is_path(model) else "MODEL", said, given)
