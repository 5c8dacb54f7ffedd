"""A quantized graph as a torch module whose integers, scales, zero points and biases can learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from onnxq.core.dtypes import Array
from onnxq.errors import ModelError
from onnxq.graph import traits
from onnxq.graph.views.plain_graph import PlainGraph, PlainNode, limits_behind
from onnxq.qat.fake_quantization import dequantize, quantize
from onnxq.qat.parameters import RANGES, Bias, Integers, Scale, ZeroPoint, as_tensor
from onnxq.qat.torch_ops.call import Call, Function, NodeError, Tensor
from onnxq.qat.torch_ops.registry import function_of

_PAIRS: dict[str, tuple[tuple[int, int], ...]] = {
    "QuantizeLinear": ((1, 2),),
    "DequantizeLinear": ((1, 2),),
    "MatMulIntegerToFloat": ((2, 4), (3, 5)),
    "DynamicQuantizeMatMul": ((2, 3),),
    "DynamicQuantizeLSTM": ((8, 9), (10, 11)),
}
"""Inputs that are a scale and the zero point that goes with it."""

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,), "Cast": (0,), "MatMulInteger": (1,), "ConvInteger": (1,), "MatMulIntegerToFloat": (1,),
    "DynamicQuantizeMatMul": (1,), "DynamicQuantizeLSTM": (1, 2), "MatMulNBits": (1,),
}  # fmt: skip
"""Inputs that are integers of a weight where they are constant."""

_FAILURES = (RuntimeError, IndexError, KeyError, TypeError, ValueError, AssertionError)
"""What torch functions raise on inputs that they cannot compute with."""


@dataclass
class Grid:
    """Scale and zero point that activations are quantized with.

    Attributes:
        scale: what learns.
        zero: what learns; None where there is none.
        values: the values that QuantizeLinear nodes put on it.
        learns: whether the scale may change; for whoever learns, and to be set by whoever knows better.
        moves: the same for the zero point.
    """

    scale: Scale
    zero: ZeroPoint | None
    values: tuple[str, ...]
    learns: bool = True
    moves: bool = True

    def __post_init__(self) -> None:
        if self.zero is None or any(self.zero.at_end):
            self.moves = False  # what lies beyond the end is clamped on purpose, as behind a Relu

    @property
    def levels(self) -> int:
        """How many integers the grid has; QuantizeLinear without a zero point gives uint8."""
        return 256 if self.zero is None else int(self.zero.high - self.zero.low) + 1


@dataclass(frozen=True)
class IntegerWeight:
    """A constant weight on integers.

    Attributes:
        integers: what learns.
        scale: its scales; None where they do not stand beside it.
        zero: its zero points; None where there are none.
        node: the node that reads the integers.
    """

    integers: Integers
    scale: Scale | None
    zero: ZeroPoint | None
    node: PlainNode


class GraphModule(nn.Module):
    """The graph.

    Attributes:
        graph: what it was made of.
        grids: of activations, by the name of their scale's constant.
        weights: by the name of the constant that holds the integers.
        biases: int32 biases by the name of their constant.
        floats: float constants as parameters by name; they learn where ``requires_grad`` is set.
        drop: share of the elements that no QuantizeLinear of an activation rounds while the module trains (QDrop).
    """

    def __init__(self, graph: PlainGraph) -> None:
        super().__init__()
        self.graph, self.drop = graph, 0.0
        self.grids: dict[str, Grid] = {}
        self.weights: dict[str, IntegerWeight] = {}
        self.biases: dict[str, Bias] = {}
        self.floats: dict[str, nn.Parameter] = {}
        self._scales: dict[str, Scale] = {}
        self._zeros: dict[str, ZeroPoint] = {}
        self._integers: dict[str, Integers] = {}
        self._bias_steps: dict[str, tuple[str, str]] = {}
        self._plain: dict[str, str] = {}
        self._reads: dict[int, list[str]] = {}
        self._uses: dict[tuple[int, int], str] = {}
        self._functions: dict[int, Function | None] = {}
        self._producers = {name: node for node in graph.nodes for name in node.outputs if name}
        for node in graph.nodes:
            self._add(node)
        self._find_biases()
        self._find_roles()
        self._last_use = _last_uses(graph)

    # Making it.

    def _add(self, node: PlainNode) -> None:
        reads, constants = list(node.inputs), self.graph.constants
        self._functions[node.index] = self._function(node)
        for scale_at, zero_at in _PAIRS.get(node.op_type, ()):
            scale = _at(node.inputs, scale_at)
            if scale in constants:
                self._scale(scale)
                self._uses[node.index, scale_at] = scale
            zero = _at(node.inputs, zero_at)
            if zero in constants:  # constants of equal contents are one, but grids learn apart
                alias = f"{zero}@{scale}"
                if alias not in self._zeros:
                    self._zeros[alias] = ZeroPoint(constants[zero])
                    self.add_module(f"zero_{len(self._zeros)}", self._zeros[alias])
                reads[zero_at] = alias
                self._uses[node.index, zero_at] = alias
        if node.op_type == "MatMulNBits" and _at(node.inputs, 2) in constants:
            self._scale(node.inputs[2])
            self._uses[node.index, 2] = node.inputs[2]
        for position in _WEIGHTS.get(node.op_type, ()):
            name = _at(node.inputs, position)
            if name in constants and constants[name].dtype.name in RANGES:
                bits = node.attributes.get("bits", 4) if node.op_type == "MatMulNBits" else None
                self._integer(name, bits)
                self._uses[node.index, position] = name
        if node.op_type == "Pad" and len(reads) > 2 and reads[2]:
            reads[2] = self._zero_behind(node.inputs[0], reads[2])
            if reads[2] in self._zeros:
                self._uses[node.index, 2] = reads[2]
        for position, name in enumerate(reads):
            if name in constants:
                self._constant(name)
                self._uses.setdefault((node.index, position), name)
        for name in node.captured:
            if name in constants:
                self._constant(name)
        self._reads[node.index] = reads

    def _function(self, node: PlainNode) -> Function | None:
        own = {"QuantizeLinear": self._quantize, "DequantizeLinear": self._dequantize}
        return own.get(node.op_type) or function_of(node)

    def _scale(self, name: str) -> None:
        if name not in self._scales:
            self._scales[name] = Scale(self.graph.constants[name])
            self.add_module(f"scale_{len(self._scales)}", self._scales[name])

    def _integer(self, name: str, bits: int | None) -> None:
        if name not in self._integers:
            self._integers[name] = Integers(self.graph.constants[name], bits)
            self.add_module(f"integers_{len(self._integers)}", self._integers[name])

    def _constant(self, name: str) -> None:
        if name in self._scales or name in self._integers or name in self.floats or name in self._plain:
            return
        tensor = as_tensor(self.graph.constants[name])
        if tensor.is_floating_point() and self.graph.constants[name].dtype.name not in RANGES:
            self.floats[name] = nn.Parameter(tensor, requires_grad=False)
            self.register_parameter(f"float_{len(self.floats)}", self.floats[name])
        else:
            self._plain[name] = f"plain_{len(self._plain)}"
            self.register_buffer(self._plain[name], tensor)

    def _zero_behind(self, value: str, given: str) -> str:
        """The zero point of integers that are padded with the same number."""
        node = self._producers.get(value)
        while node is not None and node.op_type != "QuantizeLinear" and node.inputs:
            node = self._producers.get(node.inputs[0])
        if node is None or _at(node.inputs, 2) != given:
            return given
        return f"{given}@{node.inputs[1]}"

    def _find_biases(self) -> None:
        """DequantizeLinear of int32 constants that are biases at the scale of a layer's products."""
        constants = self.graph.constants
        for node in self.graph.nodes:
            if node.op_type not in traits.LAYERS or len(node.inputs) < 3:
                continue
            x, w, b = (self._producers.get(name) for name in node.inputs[:3])
            if x is None or w is None or b is None:
                continue
            if any(other.op_type != "DequantizeLinear" for other in (x, w, b)):
                continue
            name, scales = b.inputs[0], (x.inputs[1], w.inputs[1])
            if name in constants and constants[name].dtype == np.int32 and all(s in self._scales for s in scales):
                if b.inputs[1] in constants and self._bias_steps.setdefault(b.outputs[0], scales) == scales:
                    self.biases[b.outputs[0]] = Bias(constants[name], constants[b.inputs[1]])
                    self.add_module(f"bias_{len(self.biases)}", self.biases[b.outputs[0]])
                else:  # two layers of other scales share it
                    self._bias_steps.pop(b.outputs[0], None)
                    self.biases.pop(b.outputs[0], None)

    def _find_roles(self) -> None:
        """Which scales are of activations, which of weights."""
        quantized: dict[tuple[str, str], list[str]] = {}
        for node in self.graph.nodes:
            if node.op_type == "QuantizeLinear" and node.inputs[0] not in self.graph.constants:
                key = (node.inputs[1], _at(self._reads[node.index], 2))
                quantized.setdefault(key, []).append(node.inputs[0])
            for position in _WEIGHTS.get(node.op_type, ()):
                name = _at(node.inputs, position)
                if name in self._integers and name not in self.weights:
                    pair = next((p for p in _PAIRS.get(node.op_type, ()) if p[1] > position), (2, 3))
                    if node.op_type == "MatMulIntegerToFloat":
                        pair = (3, 5)
                    reads = self._reads[node.index]
                    self.weights[name] = IntegerWeight(
                        self._integers[name],
                        self._scales.get(_at(reads, pair[0])),
                        self._zeros.get(_at(reads, pair[1])),
                        node,
                    )
        limits = limits_behind(self.graph)
        for node in self.graph.nodes:
            quantizes = node.op_type == "QuantizeLinear" and node.outputs[0] in limits
            limited = self._zeros.get(_at(self._reads[node.index], 2)) if quantizes else None
            if limited is not None:
                limited.low, limited.high = limits[node.outputs[0]]
        undone = {node.inputs[1] for node in self.graph.nodes if node.op_type == "DequantizeLinear"}
        undone |= {node.inputs[2] for node in self.graph.nodes if node.op_type == "MatMulIntegerToFloat"}
        for (scale, zero), values in quantized.items():
            if scale in self._scales and scale in undone:
                self.grids[scale if scale not in self.grids else f"{scale}@{zero}"] = Grid(
                    self._scales[scale], self._zeros.get(zero), tuple(values)
                )

    # Running it.

    @property
    def unsupported(self) -> list[PlainNode]:
        """Nodes without a torch function, such as If and Loop."""
        return [node for node in self.graph.nodes if self._functions[node.index] is None]

    def runs(self, node: PlainNode) -> bool:
        """Whether a node has a torch function."""
        return self._functions[node.index] is not None

    def forward(self, feed: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            feed: tensors by the names of the graph's inputs; narrow integers as whole numbers in float32.
            outputs: names of any values; None gives the graph's outputs.

        Returns:
            Tensors by name.

        Raises:
            NodeError: a node has no torch function, or one that cannot compute with what it is given.
        """
        wanted = list(outputs) if outputs is not None else list(self.graph.outputs)
        values = dict(feed)
        held = set(wanted)
        for node in self.graph.nodes:
            self.step(node, values)
            for name in self._last_use.get(node.index, ()):
                if name not in held:
                    values.pop(name, None)
        return {name: self._read(name, values) for name in wanted}

    def run(self, nodes: Iterable[PlainNode], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run some nodes on the values that they read; gives all that they read and wrote."""
        known = dict(values)
        for node in nodes:
            self.step(node, known)
        return known

    def step(self, node: PlainNode, values: dict[str, Tensor]) -> None:
        """Run one node: reads and writes ``values``."""
        function = self._functions[node.index]
        if function is None:
            raise NodeError(node, "has no torch function")
        outputs: Tensor | Sequence[Tensor | None]
        if node.outputs[0] in self.biases:
            outputs = self.bias(node)
        else:
            try:
                outputs = function(Call(node, self.inputs_of(node, values)))
            except NotImplementedError as error:
                raise NodeError(node, f"{error} has no torch function") from None
            except _FAILURES as error:  # a shape or type that its function does not expect
                raise NodeError(node, f"PyTorch cannot run it: {' '.join(str(error).split())}") from None
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        for name, value in zip(node.outputs, outputs, strict=False):
            if name and value is not None:
                values[name] = value

    def inputs_of(self, node: PlainNode, values: Mapping[str, Tensor]) -> list[Tensor | None]:
        """What a node reads."""
        return [self._read(name, values) if name else None for name in self._reads[node.index]]

    def bias(self, node: PlainNode) -> Tensor:
        """What the DequantizeLinear of an int32 bias gives."""
        x, w = (self._scales[name]() for name in self._bias_steps[node.outputs[0]])
        return self.biases[node.outputs[0]](x * w)

    def _read(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name in values:
            return values[name]
        if name in self._scales:
            return self._scales[name]()
        if name in self._zeros:
            return self._zeros[name]()
        if name in self._integers:
            return self._integers[name]()
        if name in self.floats:
            return self.floats[name]
        if name in self._plain:
            return getattr(self, self._plain[name])
        raise ModelError(f"value {name!r}: is not there; feed it")

    def _quantize(self, call: Call) -> Tensor:
        x, zero = call.need(0), call.at(2)
        drop = self.drop if self.training and call.node.inputs[0] not in self.graph.constants else 0.0
        limits = RANGES["uint8"]
        if zero is not None and call.node.inputs[2] in self.graph.constants:
            limits = RANGES[self.graph.constants[call.node.inputs[2]].dtype.name]
        zero = torch.zeros((), device=x.device) if zero is None else zero
        axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
        return quantize(x, call.need(1), zero, limits, axis=axis, block=block, drop=drop)

    def _dequantize(self, call: Call) -> Tensor:
        axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
        return dequantize(call.need(0).float(), call.need(1), call.at(2), axis=axis, block=block)

    # Giving back what was learned.

    def changed(self) -> dict[tuple[int, int], tuple[str, Array]]:
        """Constants that are not what they were, as `onnxq.graph.views.plain_graph.replace_constants` takes them."""
        found: dict[tuple[int, int], tuple[str, Array]] = {}
        arrays: dict[str, Array | None] = {}
        for place, name in self._uses.items():
            if name not in arrays:
                arrays[name] = self._new(name)
            array = arrays[name]
            if array is not None:
                found[place] = (name, array)
        for node in self.graph.nodes:
            if node.outputs and node.outputs[0] in self.biases:
                x, w = (self._scales[name]() for name in self._bias_steps[node.outputs[0]])
                whole, scale = self.biases[node.outputs[0]].arrays((x * w).reshape(-1))
                for position, new in enumerate((whole, scale)):
                    old = self.graph.constants[node.inputs[position]]
                    if not np.array_equal(new, old):
                        found[node.index, position] = (f"{node.inputs[position]}@{node.outputs[0]}", new)
                    else:
                        found.pop((node.index, position), None)
        return found

    def _new(self, name: str) -> Array | None:
        known = self._scales.get(name) or self._zeros.get(name) or self._integers.get(name)
        if known is not None:
            array = known.array()
            return None if np.array_equal(array, known.original) else array
        if name in self.floats:
            old = self.graph.constants[name]
            array = self.floats[name].detach().cpu().numpy().astype(old.dtype)
            return None if np.array_equal(array, old) else array
        return None


def _at(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else ""


def _last_uses(graph: PlainGraph) -> dict[int, list[str]]:
    """By node: the values that nothing reads after it."""
    last: dict[str, int] = {}
    for node in graph.nodes:
        for name in (*node.inputs, *node.outputs, *node.captured):
            if name:
                last[name] = node.index
    found: dict[int, list[str]] = {}
    for name, index in last.items():
        found.setdefault(index, []).append(name)
    return found
