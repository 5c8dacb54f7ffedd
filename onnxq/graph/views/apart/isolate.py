"""Take a quantized model apart: each quantized node on its own, fed with the float model's values.

A *unit* is what computes one value of the float model in the quantized one: the operator with its weights on their
grid, and the QuantizeLinear behind it. A QuantizeLinear in front of it belongs to the unit before; where the value
comes from a float node or from outside, to the unit that reads it. So every error belongs to one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, traits, walk
from onnxq.graph.emit import common
from onnxq.graph.prepare.folding import lift_constants
from onnxq.graph.prepare.whole import initializer_inputs
from onnxq.graph.views.apart.isolated_units import Isolated, Unit, grid_of
from onnxq.graph.views.canonical import to_qdq
from onnxq.graph.views.channels_first import bring_back
from onnxq.graph.views.counterparts import bare_name, dequantized, weights_of

_WORK = frozenset(
    "Conv ConvTranspose Gemm MatMul MatMulInteger ConvInteger MatMulNBits MatMulBnb4 DynamicQuantizeLSTM QAttention "
    "GatherBlockQuantized DynamicQuantizeMatMul MatMulIntegerToFloat LSTM GRU RNN".split()
)
_PACKED = traits.PACKED | {"DynamicQuantizeLSTM", "QAttention"}
_ROUNDING = frozenset("QuantizeLinear DynamicQuantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul".split())
_SMALL_INTEGERS = frozenset(
    ir.DataType[name] for name in "INT8 UINT8 INT4 UINT4 INT16 UINT16 INT2 UINT2".split() if hasattr(ir.DataType, name)
)


def float_values(model: ir.Model) -> dict[str, ir.Node | None]:
    """Producer by name of every value of the main graph; None for its inputs."""
    found: dict[str, ir.Node | None] = {value.name or "": None for value in model.graph.inputs}
    for node in model.graph:
        found |= {value.name: node for value in node.outputs if value.name}
    return found


def isolate(
    float_model: ir.Model,
    quantized: ir.Model,
    real: Mapping[str, bool],
    weights: Sequence[ir.Model] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Isolated:
    """Take the quantized model apart.

    Args:
        float_model: unchanged.
        quantized: the model made from it, by whatever tool; its constants become initializers.
        real: for each value of the float model's main graph, whether it holds real numbers.
        weights: models whose weights the quantized ones may stem from: the float model before and after what follows a
            layer was folded into it. None takes the float model.
        shapes: of the float model's values, where the units are to be computed as an engine does it: what a unit reads
            is then rounded to its grid first, and weights stay integers.
    """
    initializer_inputs.remove_initializers(quantized)
    lift_constants.lift(quantized)
    bring_back(quantized, float_model)
    copy = quantized.clone()
    to_qdq(copy)
    return _Taker(float_model, copy, real, quantized, weights or (float_model,), shapes).run()


class _Taker:
    def __init__(
        self,
        float_model: ir.Model,
        model: ir.Model,
        real: Mapping[str, bool],
        whole: ir.Model,
        weights: Sequence[ir.Model],
        shapes: Mapping[str, tuple[int, ...]] | None,
    ) -> None:
        self._shapes = shapes
        self._producers = float_values(float_model)
        self._nodes = {node.name: node for node in float_model.graph if node.name}
        self._layers = [{node.name: node for node in other.graph if node.name} for other in weights]
        self._real = real
        self._model, self._graph, self._whole = model, model.graph, whole
        self._names = walk.Names(model)
        self._here = {name for node in model.graph for name in (node.name or "", bare_name(node.name or ""))}
        self._sources: dict[str, str] = {}
        self._starts: dict[str, ir.Value] = {}
        self._units: list[Unit] = []
        self._ends: list[ir.Value] = []

    def run(self) -> Isolated:
        """Cut the graph at every value that the float model has too."""
        self._dequantize_for_bodies()
        graph = self._graph
        order = list(graph)
        between = {id(node) for node in order if any(_is_dequantized(value) for value in node.inputs)}
        for value in list(graph.inputs):
            if self._real.get(value.name or "", False):
                self._cut([value], value.name or "", keep=None, dtype=value.dtype)
        for node in order:
            for output in node.outputs:
                name = self._counterpart(output)
                if name is None:
                    continue
                closure = self._closure(output)
                q, ends = self._behind(output)
                on_integers = q is not None and any(id(inner) in between for inner in closure)
                if not on_integers and not any(_is_quantized(inner) for inner in closure):
                    self._cut([output], name, keep=None)
                    continue
                end = next((end for end in ends if (back := end.producer()) and back.graph is self._graph), output)
                self._units.append(self._unit(name, output, closure, q, end))
                self._ends.append(end)
                self._cut([output, *ends], name, keep=q)
        graph.outputs.clear()
        for unit, end in zip(self._units, self._ends, strict=True):
            end.name = unit.output
            end.shape = None
            end.type = ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(end)
        self._fold_weights()
        return Isolated(self._model, self._units, self._sources, self._whole)

    def _counterpart(self, value: ir.Value) -> str | None:
        """The float model's name of a float value that a node of the quantized model computes."""
        node = value.producer()
        name = value.name or ""
        if node is None or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            is_output = value.is_graph_output() and node is not None and node.op_type == "DequantizeLinear"
            return name if is_output and self._real.get(name, False) else None
        if self._real.get(name, False) and name not in self._starts:
            return name
        q, ends = self._behind(value)
        if q is None:
            return None
        for candidate in (*(end.name or "" for end in ends), bare_name(q.outputs[0].name or ""), bare_name(name)):
            if self._real.get(candidate, False) and candidate not in self._starts:
                if any(end.is_graph_output() for end in ends):
                    return None  # the DequantizeLinear behind it is the value itself
                return self._behind_clamp(candidate)
        return None

    def _behind_clamp(self, name: str) -> str:
        """The value behind the Relu or Clip that reads a value in the float model, where a range does its work here."""
        node = self._producers.get(name)
        value = next((v for v in node.outputs if v.name == name), None) if node is not None else None
        clamp = walk.only_use(value) if value is not None else None
        if clamp is None or clamp.op_type not in ("Relu", "Clip") or clamp.name in self._here:
            return name
        after = clamp.outputs[0].name or ""
        return after if self._real.get(after, False) and after not in self._starts else name

    def _behind(self, value: ir.Value) -> tuple[ir.Node | None, list[ir.Value]]:
        """The QuantizeLinear that reads a value, and what the DequantizeLinear nodes behind it give."""
        for user in value.consumers():
            if user.op_type == "QuantizeLinear" and user.inputs[0] is value:
                back = [u.outputs[0] for u in user.outputs[0].consumers() if u.op_type == "DequantizeLinear"]
                if back:
                    return user, back
        return None, []

    def _dequantize_for_bodies(self) -> None:
        """Give integers that are read in bodies of If and Loop alone a DequantizeLinear in the main graph."""
        for q in [node for node in self._graph if node.op_type == "QuantizeLinear"]:
            readers = q.outputs[0].consumers()
            if not readers or any(reader.graph is self._graph for reader in readers):
                continue
            name = self._names.value(f"{q.outputs[0].name}_dequantized")
            inputs = [q.outputs[0], *q.inputs[1:]]
            axes = {key: q.attributes[key] for key in ("axis", "block_size") if key in q.attributes}
            back = ir.node("DequantizeLinear", inputs, axes, domain=q.domain, name=self._names.node(name))
            back.outputs[0].name = name
            self._graph.insert_after(q, [back])

    def _closure(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that compute a value from values that were cut, and from constants."""
        found: dict[int, ir.Node] = {}
        pending = [value.producer()]
        while pending:
            node = pending.pop()
            if node is None or id(node) in found or node.graph is not self._graph:
                continue
            found[id(node)] = node
            pending += [source.producer() for source in node.inputs if source is not None]
        return list(found.values())

    def _cut(self, values: list[ir.Value], name: str, keep: ir.Node | None, dtype: ir.DataType | None = None) -> None:
        """Let all readers of a value take the float model's number instead, float32 unless its type is given."""
        start = self._starts.get(name)
        if start is None:
            given = self._names.value(f"float {name}")
            start = ir.Value(name=given, type=ir.TensorType(dtype or ir.DataType.FLOAT))
            if self._shapes is not None and name in self._shapes:
                start.shape = ir.Shape(self._shapes[name])
            self._starts[name] = start
            self._sources[name] = given
            self._graph.inputs.append(start)
        if keep is not None and self._shapes is not None:
            start = self._rounded(start, keep)
        for value in values:
            for user, index in [(use.node, use.idx) for use in value.uses()]:
                if user is keep or (keep is not None and user.op_type == "DequantizeLinear"):
                    continue
                user.replace_input_with(index, start)

    def _rounded(self, start: ir.Value, q: ir.Node) -> ir.Value:
        """A float value on the grid that a QuantizeLinear gives it, where the DequantizeLinear behind has the same."""
        back = next((user for user in q.outputs[0].consumers() if user.op_type == "DequantizeLinear"), None)
        if back is None or back.inputs[1] is not q.inputs[1]:
            return start
        integers = self._copied(q, [start, *q.inputs[1:]])
        rounded = self._copied(back, [integers, *back.inputs[1:]])
        rounded.dtype = ir.DataType.FLOAT
        first = [node for node in (integers.producer(), rounded.producer()) if node is not None]
        common.place_first(self._graph, first)
        return rounded

    def _copied(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
        """The output of a node that does the same with other inputs."""
        made = ir.node(
            node.op_type,
            inputs,
            node.attributes,
            domain=node.domain,
            name=self._names.node(node.name or node.op_type),
        )
        made.outputs[0].name = self._names.value(node.outputs[0].name or node.op_type)
        return made.outputs[0]

    def _unit(self, name: str, output: ir.Value, closure: list[ir.Node], q: ir.Node | None, end: ir.Value) -> Unit:
        main = next((node for node in closure if node.op_type in _WORK), output.producer())
        original = self._original(name, main)
        arriving = q.outputs[0].name if q is not None else output.name
        if end is output and (source := output.producer()) is not None and source.op_type == "DequantizeLinear":
            arriving = source.inputs[0].name if source.inputs[0] is not None else output.name
        unit = Unit(
            name=(original.name if original is not None else None) or (main.name if main is not None else "") or name,
            op_type=original.op_type if original is not None else (main.op_type if main is not None else "?"),
            value=name,
            output=self._names.value(f"quantized {name}"),
            arriving=arriving or "",
        )
        writer = output.producer()
        unit.grid = grid_of(q or (writer if writer is not None and writer.op_type == "DequantizeLinear" else None))
        unit.rounds_inputs = any(node.op_type in _ROUNDING for node in closure)
        if main is not None:
            pairs = [weights_of(layers[unit.name], main) for layers in self._layers if unit.name in layers]
            unit.weight = min((pair for pair in pairs if pair is not None), key=_distance, default=None)
        self._unscale(unit, q)
        return unit

    def _unscale(self, unit: Unit, q: ir.Node | None) -> None:
        """See through a layer that writes its channels scaled, each to be dequantized with a scale of its own."""
        back = next((u for u in q.outputs[0].consumers() if u.op_type == "DequantizeLinear"), None) if q else None
        scales = walk.const_array(walk.input_at(back, 1)) if back is not None else None
        common = walk.const_array(walk.input_at(q, 1)) if q is not None else None
        if back is None or scales is None or common is None or scales.ndim != 1 or common.size != 1:
            return
        unit.arriving = back.outputs[0].name or ""
        if unit.weight is not None and unit.weight[1].shape[0] == scales.size:
            before, after = unit.weight
            share = (scales / common.reshape(())).reshape((-1,) + (1,) * (after.ndim - 1))
            unit.weight = (before, after * share)

    def _original(self, value: str, main: ir.Node | None) -> ir.Node | None:
        """The float model's node that a unit stands for."""
        if main is not None and main.name:
            for candidate in (main.name, bare_name(main.name)):
                if candidate in self._nodes:
                    return self._nodes[candidate]
        return self._producers.get(value)

    def _fold_weights(self) -> None:
        """Give layers their weights as the floats they stand for, unless an engine has kernels for integers.

        DequantizeLinear is not folded by the runtime. Layers that read rounded activations keep their integers: between
        DQ and Q the runtime would round float weights anew, on one grid for all channels (seen in 1.32).
        """
        for node in list(self._graph) if self._shapes is None else ():
            if node.op_type != "DequantizeLinear" or any(map(_reads_rounded, node.outputs[0].consumers())):
                continue
            array = dequantized(node)
            if array is None:
                continue
            name = self._names.value(f"{node.outputs[0].name}_folded")
            constant = edit.add_initializer(self._graph, name, array)
            node.outputs[0].replace_all_uses_with(constant)
            self._graph.remove(node, safe=True)
        pending = True
        wanted = {id(value) for value in self._graph.outputs}
        while pending:
            pending = False
            for node in reversed(list(self._graph)):
                if not any(output.uses() or id(output) in wanted for output in node.outputs):
                    edit.remove_node(node)
                    pending = True
        for value in list(self._graph.initializers.values()):
            edit.drop_unused_initializer(value)
        for value in list(self._graph.inputs):
            if not value.uses() and value.name not in self._sources.values():
                self._graph.inputs.remove(value)
        unused = {value.name for value in self._graph.inputs if not value.uses()}
        for value in list(self._graph.inputs):
            if value.name in unused:
                self._graph.inputs.remove(value)
        self._sources = {name: given for name, given in self._sources.items() if given not in unused}


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _reads_rounded(node: ir.Node) -> bool:
    """Whether a node reads activations that were dequantized."""
    found = node.inputs[0] if node.inputs else None
    return _is_dequantized(found) and not walk.is_constant(_integers(found))


def _integers(value: ir.Value | None) -> ir.Value | None:
    """What the DequantizeLinear that gives a value reads."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None else None


def is_quantized(model: ir.Model) -> bool:
    """Whether a node of a model, or of its subgraphs, is quantized."""
    return any(map(_is_quantized, walk.all_nodes(model.graph)))


def _is_quantized(node: ir.Node) -> bool:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or node.op_type in _PACKED:
        return True
    return any(
        walk.is_constant(value) and value is not None and value.dtype in _SMALL_INTEGERS for value in node.inputs
    )


def _distance(pair: tuple[Array, Array]) -> float:
    return float(np.square(pair[0] - pair[1], dtype=np.float64).sum())
