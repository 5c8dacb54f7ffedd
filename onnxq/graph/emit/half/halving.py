"""Let a float32 model compute in float16 or bfloat16 where that is sound, with as few Casts around the rest as can be.

What has to stay float32 is told from outside, or is so by the operator's schema or a constant's size. Everything else
is placed at once: `Sides` is a network of nodes and the values between them, which a minimum cut divides.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.graph import edit, traits, walk
from onnxq.graph.emit.common import place_first
from onnxq.graph.emit.half.half_types import HalfPlaces, half_places
from onnxq.graph.emit.half.norm_casts import hold_casts
from onnxq.graph.prepare.whole.widen import narrow, why_not
from onnxq.graph.traits import Trait, having

WIDE = ir.DataType.FLOAT

_SCHEMA = "the operator is defined for float32 alone, or its types are not known"
_BETWEEN = "it stands between nodes that stay float32: the Casts around it would cost more than it"

_SCALES_LOST = "in a subgraph, onnxruntime's kernel of packed weights on int8 activations loses scales of 16 bits"
"""ONNX Runtime (seen in 1.32) lets a node between others without float16 kernels compute in float32, by Casts at all of
its inputs; the kernel takes constant scales alone, and gives zeros. In the main graph these Casts are folded."""

_HEAVY = 256
"""Elements of a constant from which a node is computed in 16 bits whatever stands around it."""

_WORKING = traits.LAYERS | having(Trait.RECURRENT) | {"Attention", "Einsum", "MultiHeadAttention"}
_LIGHT, _WORK = 0.6, 3.0
"""What a node costs that stays float32, in Casts."""


@dataclass(frozen=True)
class Edge:
    """A value between nodes that may have 16 bits.

    Attributes:
        producer: index of the node that writes it; None where it comes as float32 from elsewhere.
        readers: indices of the nodes that read it.
        wide: something reads it as float32 whatever is chosen.
    """

    producer: int | None
    readers: tuple[int, ...]
    wide: bool


@dataclass(frozen=True)
class Sides:
    """What is to be divided.

    Attributes:
        costs: of each node, in Casts, if it stays float32.
        edges: the values between them; one that crosses costs a Cast.
        forced: nodes whose side is given: True for 16 bits.
    """

    costs: Sequence[float]
    edges: Sequence[Edge]
    forced: dict[int, bool]


Divide = Callable[[Sides], list[bool]]
"""Chooses for each node whether it has 16 bits."""


@dataclass
class Halved:
    """What became of the nodes.

    Attributes:
        wide: why a node stays float32, by name.
        half: names of the nodes that compute in 16 bits.
        stored: names of nodes in float32 of whose weights some are stored in 16 bits.
    """

    wide: dict[str, str] = field(default_factory=dict)
    half: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Halving:
    """How a model is to be halved.

    Attributes:
        kind: "float16" or "bfloat16".
        kernels: the operators that compute in it, as ``type`` or ``domain.type``.
        keep: why a node has to stay float32, by name.
        keep_io: inputs and outputs of the model keep their types.
        store_only: every node stays float32, and only weights are stored in the type.
        exact: nodes that stay float32 for the sake of accuracy, whose weights do so too.
    """

    kind: str
    kernels: Container[str]
    keep: Mapping[str, str] = field(default_factory=dict)
    keep_io: bool = True
    store_only: bool = False
    exact: frozenset[str] = frozenset()


def halve(model: ir.Model, asked: Halving, divide: Divide, dtypes: Mapping[str, str]) -> Halved:
    """Rewrite a model in place.

    Args:
        model: whose nodes have unique names.
        asked: what is wanted.
        divide: places the nodes that could be either.
        dtypes: element types seen at a run, such as "float32", by the names of values that have none.
    """
    kind = ir.DataType[asked.kind.upper()]
    done = Halved()
    if not asked.store_only:
        _Halver(model, asked, kind, dtypes, done).run(divide)
        _drop_idle_casts(model, kind)
        hold_casts(model, kind)
    kept = {id(value) for n in walk.all_nodes(model.graph) if n.name in asked.exact for value in n.inputs}
    narrow(model, kind, exact=False, but=kept)
    for node in walk.all_nodes(model.graph):
        sources = [value.producer() for value in node.inputs if value is not None]
        if any(cast is not None and _unfolds(cast, kind) for cast in sources):
            done.stored.add(node.name or "")
    return done


def _unfolds(node: ir.Node, kind: ir.DataType) -> bool:
    """Whether a node is the Cast behind a weight that is stored in the type."""
    source = walk.input_at(node, 0)
    return node.op_type == "Cast" and source is not None and source.dtype == kind and walk.is_constant(source)


class _Halver:
    def __init__(
        self, model: ir.Model, asked: Halving, kind: ir.DataType, dtypes: Mapping[str, str], done: Halved
    ) -> None:
        self._model, self._asked, self._kind, self._dtypes, self._done = model, asked, kind, dtypes, done
        self._names = walk.Names(model)
        self._places: list[tuple[ir.Node, HalfPlaces]] = []
        self._made: dict[tuple[int, bool], ir.Value] = {}
        self._turned: set[int] = set()  # ids of the values that have 16 bits now
        self._held: list[ir.Value] = []  # what was replaced: an id is taken again once nothing holds its owner
        self._followed: set[int] = set()  # ids of the values whose type follows from what they are computed from

    def run(self, divide: Divide) -> None:
        """Find what can be halved, place it, and write it."""
        sides = self._survey()
        chosen = divide(sides)
        half = [entry for entry, chose in zip(self._places, chosen, strict=True) if chose]
        for (node, _), chose in zip(self._places, chosen, strict=True):
            if chose:
                self._done.half.add(node.name or "")
            else:
                self._done.wide.setdefault(node.name or "", _BETWEEN)
        inside = {id(node): places for node, places in half}
        for node, places in half:
            self._turn_outputs(node, places)
        if not self._asked.keep_io:
            self._turn_inputs()
        for node in list(walk.all_nodes(self._model.graph)):
            places_of = inside.get(id(node))
            for position, value in enumerate(node.inputs):
                if value is not None:
                    wants = places_of is not None and position in places_of.inputs
                    self._feed(node, position, value, wants)
        self._settle_outputs()

    # What can be halved.

    def _survey(self) -> Sides:
        version = walk.opset(self._model)
        self._follow_types(version)
        costs: list[float] = []
        forced: dict[int, bool] = {}
        for node in walk.all_nodes(self._model.graph):
            places = half_places(node, version, self._asked.kind)
            if not any(map(self._is_wide, (*node.inputs, *node.outputs))):
                continue
            reason = self._asked.keep.get(node.name or "") or self._why_wide(node, places)
            if places is None:
                self._done.wide[node.name or ""] = reason
                continue
            index = len(self._places)
            self._places.append((node, places))
            if reason:
                self._done.wide[node.name or ""] = reason
                forced[index] = False
            elif self._elements(node, places) >= _HEAVY:
                forced[index] = True
            costs.append(_WORK if node.op_type in _WORKING else _LIGHT)
        return Sides(costs, self._edges(forced, costs), forced)

    def _follow_types(self, version: int) -> None:
        """Find the types of what operators give that onnx does not know, and of what is computed from that."""
        for node in walk.all_nodes(self._model.graph):
            places = half_places(node, version, self._asked.kind)
            if places is None:
                continue
            read = [walk.input_at(node, position) for position in places.inputs]
            if any(map(self._is_wide, read)) and not any(map(self._is_unknown, read)):
                given = (value for position, value in enumerate(node.outputs) if position in places.outputs)
                self._followed.update(id(value) for value in given if self._is_unknown(value))

    def _edges(self, forced: dict[int, bool], costs: list[float]) -> list[Edge]:
        index = {id(node): i for i, (node, _) in enumerate(self._places)}
        written = {
            id(output): i
            for i, (node, places) in enumerate(self._places)
            for position, output in enumerate(node.outputs)
            if position in places.outputs and self._is_wide(output)
        }
        edges: list[Edge] = []
        for value in walk.all_values(self._model.graph):
            if not self._is_wide(value) or self._constant(value) is not None:
                continue
            readers: dict[int, None] = {}
            wide = value.is_graph_output() and (self._asked.keep_io or value.graph is not self._model.graph)
            for use in value.uses():
                i = index.get(id(use.node), -1)
                if i >= 0 and use.idx in self._places[i][1].inputs:
                    readers[i] = None
                else:
                    wide = True
            edges.append(Edge(written.get(id(value)), tuple(readers), wide))
        return edges

    def _why_wide(self, node: ir.Node, places: HalfPlaces | None) -> str:
        touched = ((node.inputs, places.inputs), (node.outputs, places.outputs)) if places is not None else ()
        known = not any(self._is_unknown(v) for values, at in touched for i, v in enumerate(values) if i in at)
        if places is None or not known:
            return _SCHEMA
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if op_type not in self._asked.kernels:
            return f"the target has no {self._asked.kind} kernel for {op_type}"
        if (
            node.op_type == "MatMulNBits"
            and node.graph is not self._model.graph
            and walk.attr_int(node, "accuracy_level")
        ):
            return _SCALES_LOST
        for position, value in enumerate(node.inputs):
            array = self._constant(value) if position in places.inputs else None
            if array is not None and array.dtype == np.float32 and (reason := why_not(array, self._kind)):
                return f"its constant {value.name if value is not None else ''!r} {reason}"
        return ""

    def _elements(self, node: ir.Node, places: HalfPlaces) -> int:
        arrays = [self._constant(walk.input_at(node, position)) for position in places.inputs]
        return max((array.size for array in arrays if array is not None), default=0)

    def _constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The contents of an initializer of float32 that is only read."""
        if value is None or not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
            return None
        return walk.const_array(value) if value.dtype == WIDE else None

    def _is_wide(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        if value.dtype is not None:
            return value.dtype == WIDE
        if value.type is not None:
            return False
        return id(value) in self._followed or self._dtypes.get(value.name or "") == "float32"

    def _is_unknown(self, value: ir.Value | None) -> bool:
        if value is None or value.type is not None or (value.is_initializer() and value.const_value is not None):
            return False
        return id(value) not in self._followed and (value.name or "") not in self._dtypes

    # How it is written.

    def _turn_outputs(self, node: ir.Node, places: HalfPlaces) -> None:
        for position, output in enumerate(node.outputs):
            if position in places.outputs and self._is_wide(output):
                output.type = ir.TensorType(self._kind)
                self._turned.add(id(output))
        if node.op_type == "Cast" and node.outputs[0].dtype == self._kind:
            node.attributes["to"] = ir.AttrInt64("to", int(self._kind))
        if node.op_type == "ConstantOfShape":
            attribute = node.attributes.get("value")
            tensor = walk.tensor_of(attribute) if attribute is not None else None
            number = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(number.astype(self._kind.numpy())))

    def _turn_inputs(self) -> None:
        for value in self._model.graph.inputs:
            if self._is_wide(value):
                value.type = ir.TensorType(self._kind)
                self._turned.add(id(value))

    def _feed(self, node: ir.Node, position: int, value: ir.Value, wants: bool) -> None:
        """Give a node the form of a value that it takes."""
        is_half = id(value) in self._turned
        if is_half == wants or (not is_half and not self._is_wide(value)):
            return
        array = self._constant(value)
        key = (id(value), wants)
        if key not in self._made:
            if array is not None:
                self._made[key] = self._small(value, array)
            else:
                self._made[key] = self._cast(value, self._kind if wants else WIDE)
        edit.set_input(node, position, self._made[key])
        if array is not None:
            self._held.append(value)
            edit.drop_unused_initializer(value)

    def _small(self, value: ir.Value, array: np.ndarray) -> ir.Value:
        home = value.graph or self._model.graph
        with np.errstate(under="ignore"):
            small = array.astype(self._kind.numpy())
        name = self._names.value(f"{value.name}_{self._asked.kind}")
        return edit.add_initializer(home, name, small, self._kind)

    def _cast(self, value: ir.Value, to: ir.DataType, name: str | None = None) -> ir.Value:
        result = ir.Value(
            name=name or self._names.value(f"{value.name}_{to.name.lower().replace('float', 'float32', to == WIDE)}"),
            type=ir.TensorType(to),
            shape=value.shape,
        )
        cast = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[result],
            name=self._names.node(f"{result.name}_Cast"),
        )  # fmt: skip
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            producer.graph.insert_after(producer, cast)
        else:
            place_first(value.graph or self._model.graph, [cast])
        return result

    def _settle_outputs(self) -> None:
        """Outputs of the model, and of subgraphs, that became 16 bits and have to be float32."""
        for graph in walk.all_graphs(self._model.graph):
            main = graph is self._model.graph
            for position, value in enumerate(list(graph.outputs)):
                if id(value) in self._turned and (self._asked.keep_io or not main):
                    graph.outputs[position] = self._output(value, WIDE)
                elif main and not self._asked.keep_io and self._is_wide(value):
                    graph.outputs[position] = self._output(value, self._kind)

    def _output(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        key = (id(value), to == self._kind)
        known = self._made.get(key)
        if known is not None and known.is_graph_output():
            return known
        name = value.name
        value.name = self._names.value(f"{name}_{'float32' if to == self._kind else self._asked.kind}")
        if known is not None:
            known.name = name
            return known
        self._made[key] = self._cast(value, to, name)
        return self._made[key]


def _drop_idle_casts(model: ir.Model, kind: ir.DataType) -> None:
    """Remove Casts from the type to itself, which stood at inputs that have it."""
    for node in walk.nodes_to_rewrite(model, "Cast"):
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.dtype != kind or walk.attr_int(node, "to") != int(kind) or node.graph is None:
            continue
        if result.is_graph_output():
            if source.producer() is None or source.is_graph_output() or source.graph is not result.graph:
                continue
            edit.take_over(result, source)
        else:
            result.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)
