"""A float graph whose weights are turned by matrices that learn, with what quantization will round rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from onnxq.core.spec import TensorSpec
from onnxq.graph.views.plain_graph import PlainGraph, PlainNode
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.rotations.grid_rounding import fake_rounded
from onnxq.qat.torch_ops.call import Tensor


@dataclass(frozen=True)
class NodeRounding:
    """What is rounded of what a node reads.

    Attributes:
        weight: grid of its weight; None where that stays float.
        position: input that is the weight.
        transposed: the grid is that of the weight's transpose, as kernels of packed weights have it.
        inputs: grid of its first input, found from each batch; None where that stays float.
    """

    weight: TensorSpec | None = None
    position: int = 1
    transposed: bool = False
    inputs: TensorSpec | None = None


@dataclass(frozen=True)
class TurnedConstant:
    """A constant, one axis of which a matrix turns.

    Attributes:
        node: index of a node that reads it.
        position: as which input.
        axis: of it.
        matrix: index of the matrix.
    """

    node: int
    position: int
    axis: int
    matrix: int


class TurnedModule(GraphModule):
    """The graph.

    Attributes:
        rounds: inputs of nodes are rounded when it runs; False gives the float model.
    """

    def __init__(
        self, graph: PlainGraph, turned: Sequence[TurnedConstant], roundings: Mapping[int, NodeRounding]
    ) -> None:
        super().__init__(graph)
        self.rounds = False
        self._roundings = roundings
        nodes = {node.index: node for node in graph.nodes}
        self._turned: dict[str, list[tuple[int, int]]] = {}
        for place in turned:
            name = nodes[place.node].inputs[place.position]
            self._turned.setdefault(name, []).append((place.axis, place.matrix))
        self._grids: dict[str, tuple[TensorSpec, bool]] = {}
        for index, rounding in roundings.items():
            name = nodes[index].inputs[rounding.position]
            if rounding.weight is not None and name in self.floats:
                self._grids.setdefault(name, (rounding.weight, rounding.transposed))

    def constants(self, matrices: Sequence[Tensor], *, rounded: bool) -> dict[str, Tensor]:
        """Constants to feed with a sample, by name: turned, and rounded or not.

        Args:
            matrices: (n, n) each, orthogonal.
            rounded: round those whose node has packed or integer weights.
        """
        found = {}
        for name in {**self._turned, **self._grids}:
            value: Tensor = self.floats[name]
            for axis, matrix in self._turned.get(name, ()):
                value = _turned(value, axis, matrices[matrix].to(value.dtype))
            if rounded and name in self._grids:
                spec, transposed = self._grids[name]
                value = fake_rounded(value.T, spec).T if transposed else fake_rounded(value, spec)
            found[name] = value
        return found

    def inputs_of(self, node: PlainNode, values: Mapping[str, Tensor]) -> list[Tensor | None]:
        """What a node reads; its first input is rounded where a kernel will do so."""
        found = super().inputs_of(node, values)
        rounding = self._roundings.get(node.index)
        if self.rounds and rounding is not None and rounding.inputs is not None and found[0] is not None:
            found[0] = fake_rounded(found[0], rounding.inputs)
        return found


def _turned(value: Tensor, axis: int, matrix: Tensor) -> Tensor:
    moved = value.movedim(axis, -1)
    apart = moved.reshape(*moved.shape[:-1], -1, len(matrix))
    result: Tensor = torch.matmul(apart, matrix).reshape(moved.shape).movedim(-1, axis)
    return result
