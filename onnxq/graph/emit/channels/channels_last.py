"""Move Transposes beside products with the channels last to where they cost least.

What stands between such a product and the next one, or a float convolution, works element by element and does not care
where the channels lie. Behind a float convolution, and before one, ONNX Runtime reorders elements on x86 in any case,
and takes the Transpose along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.graph import edit, traits, walk
from onnxq.graph.emit.channels.pointwise import to_first, to_last, turned_shape

_ALONE = frozenset(
    "Abs Clip Elu Erf Exp FastGelu Gelu HardSigmoid HardSwish LeakyRelu Max Mish Neg QuantizeLinear QuickGelu Relu "
    "Selu Sigmoid Softplus Softsign Sqrt Tanh".split()
)
_JOINING = traits.ARITHMETIC | {"Max", "Min", "Sum"}
"""Operators that compute element by element, on one value or several."""

_JOINED = frozenset("Clip HardSigmoid HardSwish LeakyRelu Relu Sigmoid Tanh".split())
"""What ONNX Runtime joins with a float Conv that nothing else reads; also HardSigmoid and the product behind it."""

_SAME = 1e-5
"""Relative difference up to which a slope is the sixth of HardSwish."""

_READS_BLOCKS = frozenset("AveragePool Conv GlobalAveragePool MaxPool".split())
"""What reads a float Conv as the runtime leaves it, in blocks of channels."""

_FLOAT, _INTEGER = 4, 1
"""Bytes an element that a Transpose moves."""


@dataclass(eq=False)
class _Part:
    """Nodes that hang together, the Transposes in front of them, and what the rest of the graph reads of them."""

    nodes: list[ir.Node] = field(default_factory=list)
    turns: list[ir.Node] = field(default_factory=list)
    read_outside: list[ir.Value] = field(default_factory=list)
    before: int = 0
    after: int = 0


def settle(graph: ir.Graph, names: walk.Names) -> None:
    """Move them in place; the numbers stay the same.

    Args:
        graph: a graph with what `onnxq.graph.emit.channels.pointwise.as_product` wrote.
        names: names in use.
    """
    for part in _parts(graph):
        if part.after <= part.before:
            _sink(part, names)
    for node in list(graph):
        if node.graph is graph and _puts_last(node) and _feeds_product(node):
            _hoist(node, names)


def _is_turn(node: ir.Node | None, order: list[int]) -> bool:
    return (
        node is not None
        and node.op_type == "Transpose"
        and node.domain == ""
        and walk.attr_ints(node, "perm") == tuple(order)
    )


def _puts_last(node: ir.Node) -> bool:
    return _is_turn(node, to_last(len(walk.attr_ints(node, "perm"))))


def _puts_first(node: ir.Node) -> bool:
    """Whether a Transpose brings back the channels of a product."""
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    order = to_first(len(walk.attr_ints(node, "perm"))) if node.op_type == "Transpose" else []
    return _is_turn(node, order) and producer is not None and producer.op_type == "MatMulIntegerToFloat"


def _feeds_product(node: ir.Node) -> bool:
    return all(user.op_type == "MatMulIntegerToFloat" for user in node.outputs[0].consumers())


def _operands(node: ir.Node) -> list[ir.Value] | None:
    """The values that a node joins element by element, without single numbers; None where it does something else."""
    given = [value for value in node.inputs if value is not None]
    if node.op_type == "QuantizeLinear":
        scale = walk.dims(given[1])
        return given[:1] if scale in ((), (1,)) else None
    values = [value for value in given if not _is_number(value)]
    if any(walk.is_constant(value) for value in values) or len(node.outputs) != 1:
        return None
    if node.op_type in _ALONE and len(values) == 1 and values[0] is node.inputs[0]:
        return values
    return values if node.op_type in _JOINING and values else None


def _is_number(value: ir.Value) -> bool:
    array = walk.const_array(value)
    return array is not None and array.size == 1 and array.ndim < 3


# Behind products: on towards what reads them.


def _parts(graph: ir.Graph) -> list[_Part]:
    part_of: dict[int, _Part] = {}
    orders: dict[int, int] = {}
    found: list[_Part] = []
    for node in graph:
        if _puts_first(node):
            part = _Part(turns=[node], before=_FLOAT)
            orders[id(node.outputs[0])] = len(walk.attr_ints(node, "perm"))
        else:
            values = _operands(node)
            if not values or not all(id(value) in part_of for value in values):
                continue
            if len({orders[id(value)] for value in values}) > 1:
                continue
            part = _joined([part_of[id(value)] for value in values], part_of, found)
            part.nodes.append(node)
            orders[id(node.outputs[0])] = orders[id(values[0])]
        part_of[id(node.outputs[0])] = part
        if part not in found:
            found.append(part)
    for part in found:
        _count(part)
    return [part for part in found if part.nodes or any(_ends(turn.outputs[0]) for turn in part.turns)]


def _joined(parts: list[_Part], part_of: dict[int, _Part], found: list[_Part]) -> _Part:
    first = parts[0]
    for other in parts[1:]:
        if other is first:
            continue
        first.nodes += other.nodes
        first.turns += other.turns
        first.before += other.before
        for key, part in part_of.items():
            if part is other:
                part_of[key] = first
        found.remove(other)
    return first


def _count(part: _Part) -> None:
    """What the rest of the graph reads, and what Transposes move before and after."""
    inside = {id(node) for node in part.nodes}
    for value in [node.outputs[0] for node in (*part.turns, *part.nodes)]:
        width = _INTEGER if value.producer() is not None and _quantizes(value) else _FLOAT
        ends = _ends(value)
        part.before += width * len(ends)
        rest = [user for user in value.consumers() if id(user) not in inside and user not in ends]
        if rest or value.is_graph_output():
            part.read_outside.append(value)
            part.after += width


def _quantizes(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "QuantizeLinear"


def _ends(value: ir.Value) -> list[ir.Node]:
    """The Transposes that put the channels of a value last again, for others to read."""
    producer = value.producer()
    graph = producer.graph if producer is not None else None
    users = [user for user in value.consumers() if _puts_last(user) and user.graph is graph]
    return [user for user in users if not user.outputs[0].is_graph_output()]


def _sink(part: _Part, names: walk.Names) -> None:
    inside = {id(node) for node in part.nodes}
    for turn in part.turns:
        source, value = turn.inputs[0], turn.outputs[0]
        assert source is not None
        _replace(value, source, [*(u for u in value.consumers() if id(u) in inside), *_ends(value)])
        # Over one axis a Transpose that puts the channels first reads like one that puts them last.
        _drop([end for end in _ends(source) if end not in part.turns])
        if not value.uses() and not value.is_graph_output() and turn.graph is not None:
            turn.graph.remove(turn, safe=True)
    for node in part.nodes:
        value = node.outputs[0]
        rank = len(walk.attr_ints(part.turns[0], "perm"))
        ends = _ends(value)
        stay = [*(u for u in value.consumers() if id(u) in inside), *ends]
        if any(value is other for other in part.read_outside):
            back = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", to_first(rank))], num_outputs=1)
            back.name = names.node(f"{node.name}_turned")
            base = f"{value.name}_channels_last"
            edit.put_behind(value, back, names, base)
            _replace(back.outputs[0], value, stay)
        else:
            value.name = names.value(f"{value.name}_channels_last")
        value.shape = turned_shape(value.shape, to_last(rank))
        _drop(ends)


def _replace(old: ir.Value, new: ir.Value, readers: Iterable[ir.Node]) -> None:
    for node in readers:
        for index, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(index, new)


def _drop(ends: list[ir.Node]) -> None:
    """Let what reads the Transposes read what they read, which lies that way already."""
    for end in ends:
        source = end.inputs[0]
        assert source is not None and end.graph is not None
        end.outputs[0].replace_all_uses_with(source)
        end.graph.remove(end, safe=True)


# In front of products: back towards the convolution that what they read comes from.


def _hoist(turn: ir.Node, names: walk.Names) -> None:
    """Move a Transpose from between Q and a product to behind float convolutions, if nothing but these is in front."""
    source, graph = turn.inputs[0], turn.graph
    rank = len(walk.attr_ints(turn, "perm"))
    producer = source.producer() if source is not None else None
    if source is None or graph is None or producer is None or producer.op_type != "QuantizeLinear":
        return
    region = _region(turn, rank)
    values = {id(value): value for node in region for value in _operands(node) or ()}
    inner = {id(node.outputs[0]) for node in region}
    leaves = [value for key, value in values.items() if key not in inner]
    blocks = [value for value in leaves if _leaves_blocks(value, region)]
    if not blocks or not all(value in blocks or _is_narrow(value) for value in leaves):
        return
    for leaf in leaves:
        writer = leaf.producer()
        assert writer is not None
        known = next((user for user in _ends(leaf) if user.graph is graph), None)
        if known is None:
            known = ir.Node("", "Transpose", [leaf], [ir.AttrInt64s("perm", to_last(rank))], num_outputs=1)
            known.name = names.node(f"{leaf.name}_Transpose")
            out = known.outputs[0]
            out.name, out.type = names.value(f"{leaf.name}_channels_last"), leaf.type
            out.shape = turned_shape(leaf.shape, to_last(rank))
            graph.insert_after(writer, known)
        _replace(leaf, known.outputs[0], region)
    for node in region:
        value = node.outputs[0]
        value.name = names.value(f"{value.name}_channels_last")
        value.shape = turned_shape(value.shape, to_last(rank))
    _drop([turn])


def _region(turn: ir.Node, rank: int) -> list[ir.Node]:
    """The nodes in front of a Transpose that nothing else needs as they lie, the last first."""
    region: list[ir.Node] = []
    inside = {id(turn)}
    pending = [turn.inputs[0]]
    changed = True
    while changed:
        changed = False
        for value in list(pending):
            node = value.producer() if value is not None else None
            if value is None or node is None or id(node) in inside or node.graph is not turn.graph:
                continue
            operands = _operands(node)
            alone = all(id(user) in inside for user in value.consumers()) and not value.is_graph_output()
            if not operands or not alone or _is_joined(node):
                continue
            if any(walk.rank(operand) != rank for operand in operands):
                continue
            inside.add(id(node))
            region.append(node)
            pending += operands
            changed = True
    return region


def _is_joined(node: ir.Node) -> bool:
    """Whether the runtime makes one kernel of a float Conv and the activation that ends with this node."""
    if node.op_type == "Mul":
        return _ends_hard_swish(node)
    if node.op_type not in _JOINED:
        return False
    value = node.inputs[0]
    return value is not None and _is_float_conv(value.producer()) and walk.only_use(value) is node


def _ends_hard_swish(node: ir.Node) -> bool:
    """Whether a product is that of a float Conv and of HardSigmoid of it, which nothing else reads."""
    for x, gated in (tuple(node.inputs), tuple(reversed(node.inputs))):
        gate = gated.producer() if gated is not None else None
        if x is None or gate is None or gate.op_type != "HardSigmoid" or gate.domain != "" or gate.inputs[0] is not x:
            continue
        sixth = abs(walk.attr_float(gate, "alpha", 0.2) * 6.0 - 1.0) < _SAME
        users = {id(user) for user in x.consumers()}
        alone = users == {id(gate), id(node)} and not x.is_graph_output() and walk.only_use(gate.outputs[0]) is node
        return sixth and walk.attr_float(gate, "beta", 0.5) == 0.5 and alone and _is_float_conv(x.producer())
    return False


def _is_float_conv(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Conv" or node.domain != "":
        return False
    source = node.inputs[1].producer() if node.inputs[1] is not None else None
    return source is None or source.op_type != "DequantizeLinear"


def _leaves_blocks(value: ir.Value, region: list[ir.Node]) -> bool:
    """Whether a float convolution gives the value, and nothing outside would need it reordered once more."""
    node = value.producer()
    if node is None or value.is_graph_output() or not (_is_float_conv(node) or _is_joined(node)):
        return False
    return all(
        user in region or user.op_type in _READS_BLOCKS or _puts_last(user) for user in dict.fromkeys(value.consumers())
    )


def _is_narrow(value: ir.Value) -> bool:
    """Whether a value has one position, so that a Transpose of it moves nothing."""
    shape = walk.dims(value)
    return value.producer() is not None and shape is not None and all(length == 1 for length in shape[2:])
