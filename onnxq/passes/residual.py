"""The residual stream of a transformer: what writes into it, which norms read it, and what reads those."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.graph import walk
from onnxq.graph.reading import patterns
from onnxq.graph.types import FLOAT32, Model, Node, Value

_STANDARD = ("", "ai.onnx")
_RMS = {"SimplifiedLayerNormalization": 1, "RMSNormalization": 1, "SkipSimplifiedLayerNormalization": 2}
"""Norms that divide by the root of the mean square, and where their gains are."""

_CENTRED = {"LayerNormalization": 1, "SkipLayerNormalization": 2}
"""Norms that subtract the mean first, and where their gains are; what they add stands behind."""

_SKIP = {"SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 4}
"""Norms of a sum that they make themselves, and where a bias is that they add to it."""


@dataclass(eq=False)
class Norm:
    """A norm that reads the stream.

    Attributes:
        output: what it gives.
        gain: (node, input) of the constant that scales its channels; None where it has none.
        nodes: all of it.
        shift: (node, input) of the constant that it adds to its channels; None where it adds none.
        centred: it subtracts the mean of all channels.
        layers: the MatMul and Gemm that read its output, and nothing else does.
    """

    output: Value
    gain: tuple[Node, int] | None
    nodes: tuple[Node, ...]
    layers: list[Node] = field(default_factory=list)
    shift: tuple[Node, int] | None = None
    centred: bool = False


@dataclass(eq=False)
class Stream:
    """A residual stream.

    Attributes:
        width: its channels.
        writers: (node, input, axis): constants whose axis writes the stream: weights of layers, tables, biases.
        norms: all that reads it.
        first: a value of it, for messages.
        reason: why it cannot be turned; empty where it can.
    """

    width: int
    writers: list[tuple[Node, int, int]]
    norms: list[Norm]
    first: str
    reason: str = ""


def streams_of(model: Model) -> list[Stream]:
    """Every residual stream of the main graph that norms read, whether it can be turned or not."""
    norms = _norms(model)
    found: list[Stream] = []
    taken: set[int] = set()
    for norm, x in norms.values():
        if id(x) in taken:
            continue
        walk_ = _Walk({id(node): entry for entry, _ in norms.values() for node in entry.nodes})
        walk_.follow(x)
        taken |= walk_.values.keys()
        found.append(walk_.stream(x, norm))
    return found


def _norms(model: Model) -> dict[int, tuple[Norm, Value]]:
    """(norm, what it reads) by the identity of its last node."""
    found: dict[int, tuple[Norm, Value]] = {}
    for node in model.graph:
        if node.op_type in _RMS and node.inputs[0] is not None and node.domain in (*_STANDARD, "com.microsoft"):
            found[id(node)] = Norm(node.outputs[0], (node, _RMS[node.op_type]), (node,)), node.inputs[0]
        elif node.op_type in _CENTRED and node.inputs[0] is not None and node.domain in (*_STANDARD, "com.microsoft"):
            place, rank = _CENTRED[node.op_type], walk.rank(node.inputs[0])
            if node.op_type == "LayerNormalization" and walk.attr_int(node, "axis", -1) not in (-1, (rank or 0) - 1):
                continue
            added = (node, place + 1) if walk.input_at(node, place + 1) is not None else None
            norm = Norm(node.outputs[0], (node, place), (node,), shift=added, centred=True)
            found[id(node)] = norm, node.inputs[0]
    for match in patterns.find(model.graph, (patterns.LAYER_NORM, patterns.RMS_NORM)):
        last, x = match.nodes[-1], match.values["x"]
        if match.shared or any(node.op_type == "Cast" for node in match.nodes):
            continue
        centred = match.pattern.name == patterns.LAYER_NORM.name
        shift = _constant_of(last) if centred and last.op_type == "Add" else None
        scaled = _before(last, match.nodes) if shift is not None else last
        gain = _constant_of(scaled) if scaled is not None and scaled.op_type == "Mul" else None
        if last.op_type == "Add" and (shift is None or scaled is None):
            continue  # in another order of its factors
        found[id(last)] = Norm(last.outputs[0], gain, match.nodes, shift=shift, centred=centred), x
    return found


def _constant_of(node: Node) -> tuple[Node, int] | None:
    return next(((node, i) for i, value in enumerate(node.inputs) if walk.is_constant(value)), None)


def _before(node: Node, nodes: tuple[Node, ...]) -> Node | None:
    """The node of a norm that makes what its last one reads."""
    makers = [value.producer() for value in node.inputs if value is not None and not walk.is_constant(value)]
    return next((maker for maker in makers if any(maker is each for each in nodes)), None)


class _Walk:
    """Follows a stream through all sums that it goes through, both ways."""

    def __init__(self, norms: dict[int, Norm]) -> None:
        self._norms = norms
        self.values: dict[int, Value] = {}
        self._writers: dict[tuple[int, int], tuple[Node, int, int]] = {}
        self._found: dict[int, Norm] = {}
        self._reason = ""

    def follow(self, start: Value) -> None:
        """Find everything that is connected with a value of the stream."""
        waiting = [start]
        while waiting:
            value = waiting.pop()
            if id(value) in self.values:
                continue
            self.values[id(value)] = value
            waiting += self._made(value)
            waiting += self._read(value)

    def stream(self, first: Value, norm: Norm) -> Stream:
        """What was found."""
        gain = norm.gain
        array = walk.const_array(gain[0].inputs[gain[1]]) if gain is not None else None
        writers = list(self._writers.values())
        width = _width(writers) or (array.size if array is not None else 0)
        stream = Stream(width, writers, list(self._found.values()), first.name or "", self._reason)
        stream.reason = stream.reason or _unfit(stream)
        return stream

    def _say(self, reason: str) -> list[Value]:
        self._reason = self._reason or reason
        return []

    def _write(self, node: Node, position: int, axis: int) -> None:
        self._writers[id(node), position] = (node, position, axis)

    def _made(self, value: Value) -> list[Value]:
        """Other values of the stream that a value of it is made of; constants that write it are noted."""
        node = value.producer()
        if node is None or walk.subgraphs(node):
            return self._say(f"'{value.name}' comes from outside")
        standard = node.domain in _STANDARD
        inputs = [read for read in node.inputs if read is not None]
        if node.op_type in _SKIP:
            bias = _SKIP[node.op_type]
            if walk.input_at(node, bias) is not None and not self._bias(node, bias):
                return self._say(f"the bias of {node.op_type} '{node.name}' is computed")
            return [read for read in node.inputs[:2] if read is not None]
        if standard and node.op_type == "MatMul" and _is_matrix(node.inputs[1]):
            self._write(node, 1, 1)
            return []
        if standard and node.op_type == "Gemm" and _is_matrix(node.inputs[1]):
            self._write(node, 1, 0 if walk.outputs_first(node) else 1)
            if len(inputs) > 2:
                return [] if self._bias(node, 2) else self._say(f"the bias of Gemm '{node.name}' is computed")
            return []
        if standard and node.op_type == "Gather" and _is_matrix(node.inputs[0]) and walk.attr_int(node, "axis") == 0:
            self._write(node, 0, 1)
            return []
        if standard and node.op_type in ("Add", "Sum"):
            found = []
            for position, read in enumerate(node.inputs):
                if not walk.is_constant(read):
                    found += [read] if read is not None else []
                elif not self._bias(node, position):
                    return self._say(f"{node.op_type} '{node.name}' adds a constant of another shape")
            return found
        if standard and node.op_type in ("Identity", "Dropout"):
            return inputs[:1]
        return self._say(f"{node.op_type} '{node.name}' writes it")

    def _bias(self, node: Node, position: int) -> bool:
        array = walk.const_array(node.inputs[position])
        if array is None or array.ndim < 1 or array.shape[-1] == 1 or array.dtype != np.float32:
            return False
        self._write(node, position, array.ndim - 1)
        return True

    def _read(self, value: Value) -> list[Value]:
        """Further values of the stream that a value of it is added to; norms are noted."""
        if value.is_graph_output():
            return self._say(f"'{value.name}' is an output of the model")
        found = []
        for use in value.uses():
            node = use.node
            norm = self._norms.get(id(node))
            if norm is not None:
                if node.op_type in _SKIP and use.idx < 2:
                    found += [read for read in node.inputs[:2] if read is not None]
                    found += [node.outputs[3]] if len(node.outputs) > 3 and node.outputs[3].name else []
                elif node.op_type in (*_RMS, *_CENTRED) and use.idx != 0:
                    return self._say(f"{node.op_type} '{node.name}' reads it otherwise than as its input")
                self._found[id(norm)] = norm
            elif node.op_type in ("Add", "Sum", "Identity", "Dropout") and node.domain in _STANDARD:
                found.append(node.outputs[0])
            elif node.op_type not in ("Shape", "Size"):
                return self._say(f"{node.op_type} '{node.name}' reads it, which is no norm and no sum")
        return found


def _is_matrix(value: Value | None) -> bool:
    array = walk.const_array(value)
    return array is not None and array.ndim == 2 and value is not None and value.dtype == FLOAT32


def _width(writers: list[tuple[Node, int, int]]) -> int:
    widths = {_shape(node, position)[axis] for node, position, axis in writers}
    return widths.pop() if len(widths) == 1 else 0


def _shape(node: Node, position: int) -> tuple[int, ...]:
    array = walk.const_array(node.inputs[position])
    assert array is not None
    return array.shape


def _unfit(stream: Stream) -> str:
    """Why a stream whose ends are all known cannot be turned; what its norms' outputs are read by is noted."""
    if not stream.writers or not stream.width:
        return "what writes it differs in width"
    tables = {
        id(node.inputs[position]): node
        for node, position, _ in stream.writers
        if node.op_type == "Gather" and node.inputs[position].is_initializer()  # type: ignore[union-attr]
    }
    for norm in stream.norms:
        gain = norm.gain
        array = walk.const_array(gain[0].inputs[gain[1]]) if gain is not None else None
        if gain is not None and (array is None or array.size not in (1, stream.width) or array.dtype != np.float32):
            return f"the gains of '{gain[0].name}' are no float32 constant of {stream.width}"
        shift = norm.shift
        added = walk.const_array(shift[0].inputs[shift[1]]) if shift is not None else None
        if shift is not None and (added is None or added.size not in (1, stream.width) or added.dtype != np.float32):
            return f"what '{shift[0].name}' adds is no float32 constant of {stream.width}"
        reason = _readers(norm, stream.width, tables)
        if reason:
            return reason
    return ""


def _readers(norm: Norm, width: int, tables: dict[int, Node]) -> str:
    if norm.output.is_graph_output():
        return f"'{norm.output.name}', which a norm gives, is an output of the model"
    if any(output.uses() for node in norm.nodes[-1:] for output in node.outputs[1:3]):
        return f"{norm.nodes[-1].op_type} '{norm.nodes[-1].name}' gives its mean or deviation away"
    waiting, layers = [norm.output], []
    while waiting:
        for use in waiting.pop().uses():
            node = use.node
            if node.op_type in ("Identity", "Dropout") and node.domain in _STANDARD:
                waiting.append(node.outputs[0])
                continue
            if node.op_type in ("Shape", "Size"):
                continue
            weight = walk.input_at(node, 1)
            linear = node.op_type in ("MatMul", "Gemm") and node.domain in _STANDARD and use.idx == 0
            if not linear or walk.attr_int(node, "transA"):
                return f"{node.op_type} '{node.name}' reads what a norm gives, and is no layer with a weight"
            if weight is None or not _is_matrix(weight):
                return f"the weight of {node.op_type} '{node.name}' is computed" + _tied(weight, tables)
            if id(weight) in tables:
                return f"'{weight.name}' is both the table of the embedding and the weight of '{node.name}'"
            if _shape(node, 1)[1 if walk.outputs_first(node) else 0] != width:
                return f"the weight of '{node.name}' does not have {width} inputs"
            if norm.shift is not None and _odd_bias(node):
                return f"Gemm '{node.name}' scales its bias, or computes it"
            layers.append(node)
    norm.layers = layers
    return ""


def _odd_bias(node: Node) -> bool:
    """Whether a Gemm takes no further constant into its bias."""
    if node.op_type != "Gemm":
        return False
    bias = walk.input_at(node, 2)
    plain = walk.attr_float(node, "alpha", 1.0) == walk.attr_float(node, "beta", 1.0) == 1.0
    return not plain or (bias is not None and walk.const_array(bias) is None)


def _tied(weight: Value | None, tables: dict[int, Node]) -> str:
    maker = weight.producer() if weight is not None else None
    source = maker.inputs[0] if maker is not None and maker.op_type == "Transpose" else None
    return f": it is '{source.name}', the table of the embedding, turned" if id(source) in tables and source else ""
