"""A model that is run in pieces, one after the other, so that no more than one of them is in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.graph.files.io import forget_weights
from onnxq.graph.types import Model, Node
from onnxq.graph.views.extract import extract
from onnxq.graph.walk import const_array, subgraphs
from onnxq.runtime.session import session_of

_PIECE = 1 << 27
"""Bytes of weights up to which neighbours are one piece: the runtime lays them out a second time."""


@dataclass
class Pieces:
    """A model in pieces.

    Attributes:
        model: the whole; must not be changed.
        nodes: names of the nodes of each piece, in the order of the graph.
        optimize: as for `onnxq.runtime.session.open_session`, and likewise below.
        threads: see there.
    """

    model: Model
    nodes: list[list[str]]
    optimize: bool
    threads: int | None
    _needed: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        by_name = {node.name or "": node for node in self.model.graph}
        ends = {value.name or "" for value in self.model.graph.outputs}
        for names in reversed(self.nodes):
            self._needed.insert(0, set(ends))
            ends = ends | {value.name or "" for name in names for value in by_name[name].inputs if value is not None}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.nodes)

    def run(self, feed: Feed) -> list[object]:
        """Run all of them; the outputs of the model, in its order.

        Raises:
            ModelError: the runtime refuses a piece or what it is given.
        """
        known: dict[str, Array] = dict(feed)
        for names, needed in zip(self.nodes, self._needed, strict=True):
            part = extract(self.model, names, known)
            assert part is not None  # `in_pieces` has made sure
            session = session_of(part, optimize=self.optimize, threads=self.threads, label="quantized model")
            read = {value.name: known[value.name] for value in part.graph.inputs if value.name}
            known.update(zip(session.output_names, session.run(read), strict=True))
            known = {name: array for name, array in known.items() if name in needed}
            forget_weights(part)
            del session, part  # before the next one is laid out
        return [known[value.name or ""] for value in self.model.graph.outputs]


def in_pieces(model: Model, *, optimize: bool, threads: int | None) -> Pieces | None:
    """Cut a model into pieces of neighbours that have no more than a bounded size of weights together.

    Args:
        model: its nodes are in an order in which they can run.
        optimize: as for `Pieces`.
        threads: likewise.

    Returns:
        None where a node has a body, reads what nothing in the main graph gives, or gives what is no array.
    """
    made = {id(value) for value in model.graph.inputs}
    pieces: list[list[str]] = []
    left = 0
    for node in model.graph:
        if not node.name or subgraphs(node) or not all(_is_known(value, made) for value in node.inputs):
            return None
        size = _size(node)
        if not pieces or size > left:
            pieces.append([])
            left = _PIECE
        pieces[-1].append(node.name)
        left -= size
        made.update(id(value) for value in node.outputs)
    if not all(id(value) in made for value in model.graph.outputs):
        return None
    return Pieces(model, pieces, optimize, threads)


def _is_known(value: object, made: set[int]) -> bool:
    return value is None or id(value) in made or const_array(value) is not None  # type: ignore[arg-type]


def _size(node: Node) -> int:
    arrays = (const_array(value) for value in node.inputs if value is not None)
    return sum(array.nbytes for array in arrays if array is not None)
