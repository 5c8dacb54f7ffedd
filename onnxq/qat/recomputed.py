"""A graph whose inner values are computed again on the way back, so that a step needs memory for a part of them only.

References:
    Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.utils.checkpoint import checkpoint

from onnxq.graph.views.plain_graph import PlainNode
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.torch_ops.call import Tensor

_PART_BYTES = 32 << 20
"""Bytes that the nodes of a part write, about; what gradients need of them is two to four times as much."""

_LEAST_PARTS = 8
"""Parts up to which a graph is run as one: there is memory for it, and computing twice takes a third more time."""

_PARTS = 24
"""Parts at most: what lies between them stays in memory."""


def written_bytes(module: GraphModule, feed: Mapping[str, Tensor]) -> list[int]:
    """Bytes that each node writes for a feed, in the order of the nodes; 0 for what depends on constants alone."""
    values, found = dict(feed), []
    held = set(module.graph.outputs)
    varying = set(feed)
    last = last_uses(module.graph.nodes)
    with torch.no_grad():
        for place, node in enumerate(module.graph.nodes):
            module.step(node, values)
            varies = any(name in varying for name in (*node.inputs, *node.captured))
            varying.update(node.outputs if varies else ())
            written = [values[name] for name in node.outputs if varies and name in values]
            found.append(sum(value.numel() * value.element_size() for value in written))
            for name in last.get(place, ()):
                if name not in held:
                    values.pop(name, None)
    return found


def last_uses(nodes: Sequence[PlainNode]) -> dict[int, list[str]]:
    """By place among the nodes: values that none after it reads."""
    last = {name: place for place, node in enumerate(nodes) for name in (*node.inputs, *node.outputs, *node.captured)}
    found: dict[int, list[str]] = {}
    for name, place in last.items():
        found.setdefault(place, []).append(name)
    return found


class Recomputed:
    """A module whose graph is run in parts; where one part is all of it, as the module runs it.

    Attributes:
        parts: nodes that are run together, in order.
    """

    def __init__(self, module: GraphModule, sizes: Sequence[int]) -> None:
        """Divide a graph.

        Args:
            module: whose.
            sizes: bytes that each node writes in a step.
        """
        self._module = module
        count = min(_PARTS, sum(sizes) // _PART_BYTES)
        count = count if count > _LEAST_PARTS else 1
        self._written = {name for node in module.graph.nodes for name in node.outputs}
        share, filled = sum(sizes) / count, 0
        self.parts: list[list[PlainNode]] = [[]]
        for node, size in zip(module.graph.nodes, sizes, strict=True):
            self.parts[-1].append(node)
            filled += size
            if filled >= share * len(self.parts) and len(self.parts) < count:
                self.parts.append([])

    def __call__(self, feed: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """As `GraphModule.forward`."""
        if len(self.parts) == 1 or not self._written.issuperset(outputs):
            found: dict[str, Tensor] = self._module(feed, outputs)
            return found
        values = dict(feed)
        wanted = set(outputs)
        readers = [_names(part) for part in self.parts]
        for place, part in enumerate(self.parts):
            later = wanted.union(*readers[place + 1 :])
            reads = [name for name in values if name in readers[place]]
            made: dict[str, Tensor] = checkpoint(
                self._run, part, later, reads, *(values[name] for name in reads), use_reentrant=False
            )
            values = {name: value for name, value in {**values, **made}.items() if name in later}
        return {name: values[name] for name in outputs}

    def _run(self, part: list[PlainNode], later: set[str], names: list[str], *given: Tensor) -> dict[str, Tensor]:
        values, ends = dict(zip(names, given, strict=True)), last_uses(part)
        for place, node in enumerate(part):
            self._module.step(node, values)
            for name in ends.get(place, ()):
                if name not in later:
                    values.pop(name, None)
        return {name: value for name, value in values.items() if name in later and name not in names}


def _names(part: Sequence[PlainNode]) -> set[str]:
    return {name for node in part for name in (*node.inputs, *node.captured)}
