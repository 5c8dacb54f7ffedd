"""Where the orthogonal matrices of a turned transformer stand in its weights, so that others can go there too.

`onnxq.passes.rotate` has put Q into the weights that write and read a stream, and one into each pair of projections
around heads of values. A model of Q·R is the same model with R at the same places, whatever R is, as long as it is
orthogonal and, where norms subtract the mean, leaves the mean as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.types import Model, Node
from onnxq.passes.residual import streams_of
from onnxq.passes.rotate import Heads


@dataclass(frozen=True)
class Place:
    """A constant, and the axis of it that is turned.

    Attributes:
        node: that reads it.
        position: which input of the node it is.
        axis: as long as the matrix, or a multiple of it: each part of it is turned alike.
    """

    node: Node
    position: int
    axis: int


@dataclass(frozen=True)
class Turnable:
    """One orthogonal matrix that may be chosen freely.

    Attributes:
        size: its rows.
        keeps_mean: (1, …, 1)·R must be (1, …, 1).
        places: where it goes; a constant that several nodes read is there once.
    """

    size: int
    keeps_mean: bool
    places: tuple[Place, ...]


def turnables(model: Model, heads: Sequence[Heads]) -> list[Turnable]:
    """Every matrix of a model that was turned.

    Args:
        model: turned by `onnxq.passes.rotate.rotate`, which has taken gains out of the norms and made constants that
            were shared with others their own.
        heads: of values, found on this model.
    """
    found = []
    for stream in streams_of(model):
        if stream.reason:
            continue
        places = [Place(*writer) for writer in stream.writers]
        for norm in stream.norms:
            places += [Place(layer, 1, 1 if walk.outputs_first(layer) else 0) for layer in norm.layers]
        means = any(norm.centred for norm in stream.norms)
        found.append(Turnable(stream.width, means, _once(places)))
    for pair in heads:
        values, output = pair.values, pair.output
        places = [Place(values, 1, 0 if walk.outputs_first(values) else 1)]
        if len(values.inputs) > 2 and values.inputs[2] is not None:
            places.append(Place(values, 2, -1))
        if pair.bias is not None:
            constant = next(i for i, v in enumerate(pair.bias.inputs) if walk.is_constant(v))
            places.append(Place(pair.bias, constant, -1))
        places.append(Place(output, 1, 1 if walk.outputs_first(output) else 0))
        found.append(Turnable(pair.size, False, _once(places)))
    return found


def turn_further(found: Sequence[Turnable], matrices: Sequence[Array]) -> None:
    """Put further matrices into the weights of a turned model, in place.

    Args:
        found: of one model.
        matrices: of each, (size, size), orthogonal.
    """
    for turnable, matrix in zip(found, matrices, strict=True):
        for place in turnable.places:
            value = place.node.inputs[place.position]
            array = walk.const_array(value)
            assert value is not None and array is not None
            edit.set_contents(value, np.ascontiguousarray(turned_along(array, place.axis, matrix), np.float32))


def turned_along(array: Array, axis: int, matrix: Array) -> Array:
    """Each part of an axis, as a row, times a matrix; float64, of the same shape."""
    moved = np.moveaxis(np.asarray(array, np.float64), axis, -1)
    apart = moved.reshape(*moved.shape[:-1], moved.shape[-1] // len(matrix), len(matrix))
    return np.moveaxis((apart @ matrix).reshape(moved.shape), -1, axis)


def _once(places: Sequence[Place]) -> tuple[Place, ...]:
    """Places without those whose constant is there already."""
    first: dict[int, Place] = {}
    for place in places:
        first.setdefault(id(place.node.inputs[place.position]), place)
    return tuple(first.values())
