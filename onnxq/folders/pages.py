"""Pages of a folder's graphs: one a graph, written when the folder is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from onnxq.errors import RecipeError
from onnxq.folders.layouts import Layout
from onnxq.graph.files import saving
from onnxq.report.folder_results import FolderResult
from onnxq.report.html.page import require_drawing, result_page


def places_of(report: str | os.PathLike[str], layout: Layout, target: Path) -> dict[str, Path]:
    """Where the page of each graph goes, by the graph's path in the folder.

    Args:
        report: the file that the user named; of several graphs each has its own name in front of the ending.
        layout: what came in.
        target: the folder that is written.

    Raises:
        RecipeError: the page would lie in one of the two folders, or be no file.
        MissingExtraError: jinja2 or matplotlib is not installed.
        OnnxqError: it cannot be written.
    """
    require_drawing()
    place = Path(report)
    for folder in (layout.folder, target):
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)):
            raise RecipeError(f"--report {report}: lies in {folder}, which is a model's own; name a file outside")
    names = [str(graph.path) for graph in layout.graphs]
    if len(names) == 1:
        found = {names[0]: place}
    else:
        found = {
            name: place.with_name(f"{place.stem}.{Path(name).with_suffix('').as_posix().replace('/', '-')}.html")
            for name in names
        }
    for page in found.values():
        saving.check_destination(page, [])
    return found


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
