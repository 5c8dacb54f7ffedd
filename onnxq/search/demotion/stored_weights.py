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


def together(layers: Sequence[Layer], weights: Sequence[Hashable]) -> list[list[Layer]]:
    """Layers by what they read, in the order in which they came.

    Those that read one weight leave it float together: with one of them, the file would hold the weight twice.

    Args:
        layers: whose weights are stored.
        weights: what each reads.
    """
    groups: dict[Hashable, list[Layer]] = {}
    for layer, weight in zip(layers, weights, strict=True):
        groups.setdefault(weight, []).append(layer)
    return list(groups.values())


def affordable(order: Sequence[Sequence[Layer]], size: int, largest: float) -> int:
    """How many groups of a model of stored weights can have float ones before the file is too large.

    Args:
        order: layers by what they read, which is in the file once.
        size: bytes of the model.
        largest: bytes of a file that will do.
    """
    for count, group in enumerate(order):
        size += _bytes_more(group[0])
        if size > largest:
            return count
    return len(order)


def that_matter(
    layers: Sequence[Layer], weights: Sequence[Hashable], allowed: float, size: int, largest: float
) -> list[Layer]:
    """The layers whose stored weights make noise that matters, in the order of the noise for each byte.

    Layers that read one weight go together.

    Args:
        layers: whose weights are stored; those whose error is not known are left alone.
        weights: what each reads.
        allowed: noise at the outputs that is allowed, relative to the signal.
        size: bytes of the model.
        largest: bytes of a file that will do.
    """
    known = [
        (layer, weight)
        for layer, weight in zip(layers, weights, strict=True)
        if STORED in layer.forms and layer.forms[STORED].error_db is not None
    ]
    groups = sorted(together([layer for layer, _ in known], [weight for _, weight in known]), key=_noise)
    quiet = 0.0
    while groups and (quiet := quiet + _noise(groups[0])) <= LITTLE * allowed:
        del groups[0]
    found: list[Layer] = []
    for group in sorted(groups, key=lambda group: -_noise(group) / max(_bytes_more(group[0]), 1)):
        more = _bytes_more(group[0])
        if size + more <= largest:
            size += more
            found += group
    return found


def _noise(group: Sequence[Layer]) -> float:
    errors = [layer.forms[STORED].error_db for layer in group]
    return sum(_power(error) for error in errors if error is not None)


def _power(error_db: float) -> float:
    return float(10.0 ** (-min(max(error_db, -100.0), 400.0) / 10))


def _bytes_more(layer: Layer) -> int:
    known = FLOAT in layer.forms and STORED in layer.forms
    return layer.forms[FLOAT].size - layer.forms[STORED].size if known else 0
