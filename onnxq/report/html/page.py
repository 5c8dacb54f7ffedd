"""One page of HTML from the JSON form of a quantization."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from onnxq.errors import MissingExtraError, RecipeError
from onnxq.report.command_lines import command_line
from onnxq.report.html import drawing, parts
from onnxq.report.html.verdict import tiles, verdict
from onnxq.report.printable import printable

LARGEST = 1_400_000
"""Bytes of a page; samples with many pictures are left out where it would be larger."""

_OPTION = re.compile(r"(--[a-z][a-z-]*)")
"""Names of options, which are not broken at their hyphens."""

_LARGEST_JSON = 64 << 20
_INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}


def require_drawing() -> None:
    """Check that the libraries for a report are there.

    Raises:
        MissingExtraError: one is not.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"--report: pages are drawn with jinja2 and matplotlib, and {' and '.join(missing)} cannot be found; "
            "pip install 'onnxq[report]'"
        )


def result_page(result: Mapping[str, Any]) -> str:
    """The page of a quantization.

    Args:
        result: what `onnxq.report.results.QuantizeResult.to_dict` gives.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_drawing()
    most = len((result.get("evidence") or {}).get("outputs") or [])
    page = _page(result, most)
    while len(page.encode()) > LARGEST and most:
        most -= 1
        page = _page(result, most)
    return page


def _page(result: Mapping[str, Any], most: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    drawing.restart()
    evidence = result.get("evidence") or {}
    state, sentence = verdict(result)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["name"] = lambda text: printable(str(text))
    environment.filters["pieces"] = lambda text: _OPTION.split(printable(str(text)))
    style = (Path(__file__).parent / "page.css").read_text("utf8")
    words = (result.get("command") or {}).get("run")
    return environment.get_template("page.html").render(
        style=style,
        model=PurePath(str(result.get("model") or result.get("output") or "model")).name,
        result=result,
        state=state,
        sentence=sentence,
        tiles=tiles(result),
        candidates=parts.candidates(result),
        trail=parts.trail(result),
        outputs=parts.outputs(result),
        layers=parts.layers(evidence),
        activations=parts.activations(evidence),
        weights=parts.weights(evidence),
        schemes=parts.schemes(evidence),
        samples=parts.samples(evidence, most),
        kept=parts.stayed_float(result),
        coverage=parts.coverage(result),
        missing=evidence.get("missing") or ([] if evidence else ["run onnxq quantize with --report for these parts"]),
        command=command_line(words) if words else "",
    )


def read_result(path: Path) -> dict[str, Any]:
    """The JSON that ``onnxq quantize --json`` printed.

    Raises:
        RecipeError: the file cannot be read, or holds something else.
    """
    takes = "pass what 'onnxq quantize --json' printed"
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise RecipeError(f"{path}: more than {_LARGEST_JSON} bytes are no result; {takes}")
        data = json.loads(path.read_text("utf8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise RecipeError(f"{path}: cannot be read ({reason}); {takes}") from None
    if isinstance(data, dict) and "error" in data and "preset" not in data:
        raise RecipeError(f"{path}: holds the error of a run that failed, not a result; {takes}")
    needed = ("preset", "format", "size_bytes", "coverage", "kept_float", "sqnr_db", "warnings")
    if not isinstance(data, dict) or any(key not in data for key in needed):
        raise RecipeError(f"{path}: is no result of a quantization; {takes}")
    return {key: _numbers(value) for key, value in data.items()}


def page_of_file(path: Path) -> str:
    """The page of a result that was saved as JSON.

    Raises:
        RecipeError: the file is none.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_drawing()
    result = read_result(path)
    from jinja2 import TemplateError

    try:
        return result_page(result)
    except (
        KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, TemplateError,
    ) as error:  # fmt: skip
        raise RecipeError(
            f"{path}: is no result of this version of onnxq ({type(error).__name__}: {error}); pass what "
            "'onnxq quantize --json' printed"
        ) from None


def _numbers(value: Any) -> Any:
    """What JSON has as "Infinity" as the number."""
    if isinstance(value, str):
        return _INFINITIES.get(value, value)
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    return value
