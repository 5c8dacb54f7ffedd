"""Which layers with stored weights have float ones instead: that costs bytes and no time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from onnxq.graph import walk
from onnxq.graph.types import Node
from onnxq.search.choice import FLOAT, STORED, Layer

LITTLE = 0.1
"""Share of the noise allowed which stored weights may make together without being looked at."""


def weight_of(node: Node) -> Hashable:
    """The name of the largest constant that a node reads."""
    sizes = {
        value.name: array.size for value in node.inputs if value and (array := walk.const_array(value)) is not None
    }
    return max(sizes, key=lambda name: sizes[name], default=node.name)


def affordable(order: Sequence[Layer], weights: Sequence[Hashable], size: int, largest: float) -> int:
    """How many layers of a model of stored weights can have float ones before the file is too large.

    Args:
        order: the layers.
        weights: what each reads; what several read is in the file once.
        size: bytes of the model.
        largest: bytes of a file that will do.
    """
    seen: set[Hashable] = set()
    for count, (layer, weight) in enumerate(zip(order, weights, strict=True)):
        if weight not in seen:
            size += _bytes_more(layer)
        seen.add(weight)
        if size > largest:
            return count
    return len(order)


def that_matter(
    layers: Sequence[Layer], weights: Sequence[Hashable], allowed: float, size: int, largest: float
) -> list[Layer]:
    """The layers whose stored weights make noise that matters, in the order of the noise for each byte.

    Layers that read one weight go together: with one of them in float, the others would keep a second copy in the file.

    Args:
        layers: whose weights are stored; those whose error is not known are left alone.
        weights: what each reads.
        allowed: noise at the outputs that is allowed, relative to the signal.
        size: bytes of the model.
        largest: bytes of a file that will do.
    """
    groups: dict[Hashable, list[Layer]] = {}
    for layer, weight in zip(layers, weights, strict=True):
        if STORED in layer.forms and layer.forms[STORED].error_db is not None:
            groups.setdefault(weight, []).append(layer)
    noise = {weight: sum(map(_noise, group)) for weight, group in groups.items()}
    quiet = 0.0
    for weight in sorted(groups, key=lambda weight: noise[weight]):
        quiet += noise[weight]
        if quiet > LITTLE * allowed:
            break
        del groups[weight]
    found: list[Layer] = []
    for weight in sorted(groups, key=lambda weight: -noise[weight] / max(_bytes_more(groups[weight][0]), 1)):
        more = _bytes_more(groups[weight][0])
        if size + more <= largest:
            size += more
            found += groups[weight]
    return found


def _noise(layer: Layer) -> float:
    error = layer.forms[STORED].error_db
    return 0.0 if error is None else _power(error)


def _power(error_db: float) -> float:
    return float(10.0 ** (-min(max(error_db, -100.0), 400.0) / 10))


def _bytes_more(layer: Layer) -> int:
    known = FLOAT in layer.forms and STORED in layer.forms
    return layer.forms[FLOAT].size - layer.forms[STORED].size if known else 0
