"""Files that a run writes for each graph of a folder, beside the folder: pages, and what searches have measured."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from onnxq.errors import RecipeError
from onnxq.folders.layouts import Layout
from onnxq.graph.files import saving


def one_each(option: str, given: str | os.PathLike[str], layout: Layout, target: Path) -> dict[str, Path]:
    """A file for each graph, by the graph's path in the folder.

    Args:
        option: by which the user named the file, for messages.
        given: that file; where the folder has several graphs, each has its own name in front of the ending.
        layout: what came in.
        target: the folder that is written.

    Raises:
        RecipeError: it would lie in one of the two folders, or be no file.
        OnnxqError: it cannot be written.
    """
    place = Path(given)
    for folder in (layout.folder, target):
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)):
            raise RecipeError(f"{option} {given}: lies in {folder}, which is a model's own; name a file outside")
    found = {str(graph.path): own_name(place, layout, graph.path) for graph in layout.graphs}
    for file in found.values():
        saving.check_destination(file, [])
    return found


def own_name(place: Path, layout: Layout, graph: PurePosixPath) -> Path:
    """A place beside the folder for what belongs to one graph: with the graph's name where there are several."""
    if len(layout.graphs) == 1:
        return place
    return place.with_name(f"{place.stem}.{graph.with_suffix('').as_posix().replace('/', '-')}{place.suffix}")
