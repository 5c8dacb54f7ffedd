"""Pages of a folder's graphs: one a graph, written when the folder is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from onnxq.folders.beside import one_each
from onnxq.folders.layouts import Layout
from onnxq.graph.files import saving
from onnxq.report.folder_results import FolderResult
from onnxq.report.html.page import require_drawing, result_page


def places_of(report: str | os.PathLike[str], layout: Layout, target: Path) -> dict[str, Path]:
    """Where the page of each graph goes, by the graph's path in the folder; arguments and errors as of `one_each`.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_drawing()
    return one_each("--report", report, layout, target)


def write_pages(result: FolderResult, places: Mapping[str, Path], command: dict[str, list[str]]) -> None:
    """Write the page of each graph that was quantized.

    Args:
        result: what became of the folder; it gets the places.
        places: as of `places_of`.
        command: of the whole run, which each page shows.
    """
    for graph in result.graphs:
        page = places.get(graph.source)
        if graph.result is None or page is None:
            continue
        graph.result.report, graph.result.command = page, command
        graph.result.source = str(result.folder / graph.source)
        saving.write_text(page, result_page(graph.result.to_dict()))
