"""Tying a quantized graph to a module: which of its constants are the module's, and where values are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from onnxq.core.dtypes import Array
from onnxq.graph.views.exported_module import BatchNorm, Dropout, ExportedGraph
from onnxq.graph.views.plain_graph import PlainGraph, PlainNode
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.trainable.tied_graph import Dropped, Threads, TrainedWeight, WeightGrid, zero_points
from onnxq.qat.trainable.ties import BIAS, PARAMETER, SHIFT, WEIGHT, Place, Tie

Ranges = Mapping[str, tuple[int, int]]

_SCALE_AT = {"DequantizeLinear": 1, "MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 2, "MatMulNBits": 2}


class Threader:
    """Finds the threads between one graph and one module."""

    def __init__(self, graph: PlainGraph, ties: Mapping[Place, Tie], ranges: Ranges) -> None:
        """Take what is known.

        Args:
            graph: the quantized one.
            ties: of the prepared graph that it was made of.
            ranges: smallest and largest integer of weights with fewer bits than their type, by the constant's name.
        """
        self.graph, self.ties, self.ranges = graph, ties, ranges
        self.plain = GraphModule(graph)
        self.writers = {name: node for node in graph.nodes for name in node.outputs if name}
        self.threads = Threads()
        self.loose: list[str] = []
        self.not_dropped: list[str] = []

    def find(self, exported: ExportedGraph, standing: Mapping[str, tuple[str, ...]]) -> Threads:
        """All of them; ``loose`` has the weights that nothing was found for.

        Args:
            exported: the float model, and the norms and dropouts of the module.
            standing: for each node, the names of the exported graph's nodes that it stands for.
        """
        for node in self.graph.nodes:
            for position, name in enumerate(node.inputs):
                tie = self.ties.get((node.name, position))
                if name in self.graph.constants:
                    self._constant(node, position, tie)
                elif tie is not None and name in self.writers:
                    self._behind(node, self.writers[name], tie)
        self._biases()
        self._equal_floats()
        self._norms({norm.module: norm for norm in exported.norms})
        for dropout in exported.dropouts:
            self._dropout(dropout, standing)
        tied = {layer.name for layer in self.threads.layers}
        self.loose = [name for name in self.plain.weights if name not in tied]
        return self.threads

    def _constant(self, node: PlainNode, position: int, tie: Tie | None) -> None:
        array = self.graph.constants[node.inputs[position]]
        if node.op_type in ("MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul") and position == 1:
            if tie is not None:
                self._layer(node, position, tie)
        elif tie is not None and array.shape == tie.shape and np.allclose(array, tie.constant, rtol=1e-5, atol=1e-7):
            self.threads.floats[node.index, position] = tie

    def _behind(self, node: PlainNode, writer: PlainNode, tie: Tie) -> None:
        if writer.op_type == "DequantizeLinear" and writer.outputs[0] not in self.plain.biases:
            self._layer(writer, 0, tie)

    def _layer(self, node: PlainNode, position: int, tie: Tie) -> None:
        name = node.inputs[position]
        weight = self.plain.weights.get(name)
        if (
            weight is None
            or weight.scale is None
            or any(layer.integers[0] == node.index for layer in self.threads.layers)
        ):
            return
        array = torch.from_numpy(np.array(tie.constant))
        scale = weight.scale.original
        limits = self.ranges.get(name, (weight.integers.low, weight.integers.high))
        packed, zero, axes = (
            None,
            None,
            (int(node.attributes.get("axis", 1)), int(node.attributes.get("block_size", 0))),
        )
        if node.op_type == "MatMulNBits":
            rows, blocks, size = (int(n) for n in (node.attributes["N"], 0, node.attributes["block_size"]))
            blocks = -(-int(node.attributes["K"]) // size)
            packed, axes, scale = (rows, blocks, size), (-1, size), scale.reshape(rows, blocks, 1)
            zero = self._packed_zero(node, limits, (rows, blocks))
        elif node.op_type != "DequantizeLinear":
            axes = (-1, 0)
        if packed is None and weight.zero is not None:
            zero = weight.zero.base.detach().clone()
        latent = weight.integers.latent
        layer = TrainedWeight(
            tie, WeightGrid(scale, zero, limits, axes), (node.index, position),
            (node.index, _SCALE_AT[node.op_type]), name, packed,
        )  # fmt: skip
        arranged = layer.arranged(array) if array.ndim == 2 or packed is None else None
        if arranged is None or arranged.numel() != latent.numel() or arranged.shape != latent.shape:
            return
        layer.grid.start(arranged)
        self.threads.layers.append(layer)

    def _packed_zero(self, node: PlainNode, limits: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
        bits = int(node.attributes.get("bits", 4))
        given = self.graph.constants.get(node.inputs[3]) if len(node.inputs) > 3 else None
        if given is None:
            return torch.full((*shape, 1), float(1 << (bits - 1)))
        return zero_points(given, bits, shape).unsqueeze(-1)

    def _biases(self) -> None:
        layers = {layer.integers[0]: layer for layer in self.threads.layers}
        for node in self.graph.nodes:
            made = [self.writers.get(name) for name in node.inputs[:3]]
            if len(made) < 3 or made[2] is None or made[2].outputs[0] not in self.plain.biases:
                continue
            x, w, b = made
            assert x is not None and w is not None and b is not None
            real = self.plain.biases[b.outputs[0]].real.detach().numpy()
            tie = self.ties.get((node.name, 2))
            if tie is not None and tie.constant.size != real.size:
                tie = None
            if tie is None and w.index not in layers:
                continue
            known = np.zeros_like(real) if tie is None else tie.constant.reshape(real.shape)
            flat = None if tie is None else replace(tie, shape=real.shape)
            if flat is not None and flat.factor is not None:
                flat = replace(flat, factor=flat.factor.reshape(real.shape))
            self.threads.biases[b.index] = (flat, (real - known).astype(np.float32))
            self.threads.steps[b.index] = ((x.index, 1), (w.index, 1))

    def _equal_floats(self) -> None:
        """Constants that have moved to another node: those that equal exactly one tied constant."""
        for node in self.graph.nodes:
            for position, name in enumerate(node.inputs):
                array = self.graph.constants.get(name)
                if array is None or array.dtype != np.float32 or array.size < 2 or array.ndim == 0:
                    continue
                if (node.index, position) in self.threads.floats or name in self.plain.weights or self._is_scale(name):
                    continue
                equal = {
                    (tie.kind, tie.name): tie
                    for tie in self.ties.values()
                    if tie.constant.size == array.size and np.array_equal(tie.constant.reshape(-1), array.reshape(-1))
                }
                if len(equal) == 1:
                    (tie,) = equal.values()
                    factor = None if tie.factor is None else tie.factor.reshape(array.shape)
                    self.threads.floats[node.index, position] = replace(tie, shape=array.shape, factor=factor)

    def _is_scale(self, name: str) -> bool:
        return any(grid.scale.original is self.graph.constants[name] for grid in self.plain.grids.values()) or any(
            weight.scale is not None and weight.scale.original is self.graph.constants[name]
            for weight in self.plain.weights.values()
        )

    def _norms(self, known: Mapping[str, BatchNorm]) -> None:
        layers = {layer.integers[0]: layer for layer in self.threads.layers}
        for node in self.graph.nodes:
            made = [self.writers.get(name) for name in node.inputs[:3]]
            layer = layers.get(made[1].index) if len(made) > 1 and made[1] is not None else None
            if layer is not None and layer.tie.kind == WEIGHT:
                bias = made[2].index if len(made) > 2 and made[2] is not None else -1
                if layer.tie.factor is None or bias in self.threads.biases:
                    self.threads.norms[node.index] = layer, bias
            if node.op_type == "BatchNormalization":
                tie = self.threads.floats.get((node.index, 3))
                if tie is not None and tie.kind == PARAMETER and tie.name.endswith("running_mean"):
                    self.threads.alone[node.index] = known[tie.name[: -len("running_mean")].rstrip(".")]

    def _dropout(self, dropout: Dropout, standing: Mapping[str, tuple[str, ...]]) -> None:
        """A dropout at the nodes that read its value, behind the rounding: what is left is larger by 1 ÷ (1 − rate)."""
        spots: set[tuple[int, int]] = set()
        carried = {dropout.value}
        for node in self.graph.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[0] in carried:
                carried.add(node.outputs[0])
            else:
                mine = not dropout.readers or not set(dropout.readers).isdisjoint(standing.get(node.name, (node.name,)))
                spots |= {(node.index, i) for i, name in enumerate(node.inputs) if name in carried and mine}
        if spots:
            self.threads.dropouts.append(Dropped(frozenset(spots), dropout.rate, dropout.module, dropout.channels))
        else:
            self.not_dropped.append(dropout.value)


def unused(ties: Threads, parameters: Sequence[str], constants: Mapping[str, Array]) -> list[str]:
    """Parameters of the module that no thread leads to."""
    used: set[str] = set()
    given = [layer.tie for layer in ties.layers] + list(ties.floats.values())
    given += [tie for tie, _ in ties.biases.values() if tie is not None]
    for tie in given:
        if tie.kind == PARAMETER or tie.norm is None:
            used.add(tie.name)
            continue
        prefix = f"{tie.norm.module}." if tie.norm.module else ""
        used |= {f"{prefix}weight", f"{prefix}bias"} if tie.kind in (WEIGHT, BIAS, SHIFT) else {f"{prefix}weight"}
        used |= {tie.norm.weight} if tie.kind == WEIGHT else set()
        used |= {tie.norm.bias} if tie.kind == BIAS and tie.norm.bias else set()
    return [name for name in parameters if name in constants and name not in used]
