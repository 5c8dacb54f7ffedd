"""Functions that exporters write as several operators: norms, activations, rotary embeddings, repeated heads.

Each is a template over operators, with one alternative for each spelling that exporters use. A template is matched from
its last node backwards; names in it stand for the same value wherever they occur.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph import walk


@dataclass(frozen=True)
class Var:
    """Any value; the same one wherever the name occurs."""

    name: str


@dataclass(frozen=True)
class Const:
    """A constant: of any contents, or a single number."""

    number: float | None = None


@dataclass(frozen=True)
class Op:
    """The output of a node.

    Attributes:
        op_type: operator of the standard domain.
        inputs: templates of its first inputs; it may have more.
        swaps: the first two inputs may come in either order.
        output: which of its outputs; None for any.
    """

    op_type: str
    inputs: tuple[Template, ...]
    swaps: bool = False
    output: int | None = 0


@dataclass(frozen=True)
class OneOf:
    """One of several templates."""

    choices: tuple[Template, ...]


Template = Var | Const | Op | OneOf


@dataclass(frozen=True)
class Pattern:
    """A function, and the ways it is written.

    Attributes:
        name: as the report says it.
        article: "a" or "an".
        template: of its output.
    """

    name: str
    article: str
    template: Template


@dataclass(frozen=True, eq=False)
class Match:
    """A place where a pattern was found.

    Attributes:
        pattern: which.
        nodes: its nodes; the last one in the graph writes its output.
        values: what its names stand for.
        shared: something outside reads a value inside it.
    """

    pattern: Pattern
    nodes: tuple[ir.Node, ...]
    values: dict[str, ir.Value]
    shared: bool

    @property
    def reason(self) -> str:
        """Why a node of it does not go alone."""
        return f"part of {self.pattern.article} {self.pattern.name}"


def op(op_type: str, *inputs: Template, output: int | None = 0) -> Op:
    """A template of a node whose first two inputs may be swapped where the operator commutes."""
    return Op(op_type, inputs, op_type in ("Add", "Mul"), output)


def either(*choices: Template) -> OneOf:
    """One of several templates."""
    return OneOf(choices)


_X, _ANY = Var("x"), Const()
_HALF, _ONE, _TWO = Const(0.5), Const(1.0), Const(2.0)


def _square(of: Template) -> Template:
    return either(op("Pow", of, _TWO), op("Mul", of, of))


def _over_root(what: Template, mean: Template) -> Template:
    """Something divided by the root of a mean, ε added."""
    shifted = either(op("Add", mean, _ANY), op("Max", mean, _ANY))
    root = op("Sqrt", shifted)
    inverse = either(op("Reciprocal", root), op("Div", _ONE, root), op("Pow", shifted, Const(-0.5)))
    return either(op("Div", what, root), op("Mul", what, inverse))


def _weighted(what: Template) -> Template:
    return either(op("Mul", what, _ANY), what)


_RMS = _over_root(_X, op("ReduceMean", _square(_X)))
_CENTERED = op("Sub", _X, op("ReduceMean", _X))
_VARIANCE = op("ReduceMean", _square(_CENTERED))
_LAYER_NORM = _over_root(_CENTERED, _VARIANCE)
# As Keras and tf2onnx write it: γ·x/σ + (β − γ·μ/σ).
_GAIN = op("Mul", op("Reciprocal", op("Sqrt", op("Add", _VARIANCE, _ANY))), _ANY)
_LAYER_NORM_TF = op("Add", op("Mul", _X, _GAIN), op("Sub", _ANY, op("Mul", op("ReduceMean", _X), _GAIN)))

_ERF = op("Add", op("Erf", either(op("Div", _X, Const(math.sqrt(2))), op("Mul", _X, Const(math.sqrt(0.5))))), _ONE)
_CUBE = either(op("Pow", _X, Const(3.0)), op("Mul", _X, _square(_X)))
_INNER = either(
    op("Mul", op("Add", _X, op("Mul", _CUBE, Const(0.044715))), Const(math.sqrt(2 / math.pi))),
    op("Mul", op("Mul", _X, op("Add", op("Mul", _square(_X), Const(0.044715)), _ONE)), Const(math.sqrt(2 / math.pi))),
    op("Mul", op("Mul", _X, Const(math.sqrt(2 / math.pi))), op("Add", op("Mul", _square(_X), Const(0.044715)), _ONE)),
)
_TANH = op("Add", op("Tanh", _INNER), _ONE)


def _gelu(gate: Template) -> Template:
    return either(
        op("Mul", op("Mul", _X, gate), _HALF),
        op("Mul", op("Mul", _X, _HALF), gate),
        op("Mul", _X, op("Mul", gate, _HALF)),
    )


_PART = either(op("Slice", _X), op("Split", _X, output=None), op("Gather", _X))
_TURNED = op("Concat", either(op("Neg", _PART), op("Mul", _PART, Const(-1.0))), _PART)
_TURNED_PAIRS = op(
    "Reshape", op("Concat", op("Unsqueeze", op("Neg", _PART)), op("Unsqueeze", _PART))
)  # neighbours, not halves
_COS, _SIN = Var("cos"), Var("sin")
_ROPE = op("Add", op("Mul", _X, _COS), op("Mul", either(_TURNED, _TURNED_PAIRS), _SIN))
_ROPE_HALVES = op(
    "Concat",
    op("Sub", op("Mul", _PART, _COS), op("Mul", _PART, _SIN)),
    op("Add", op("Mul", _PART, _COS), op("Mul", _PART, _SIN)),
)

_SILU = op("Mul", _X, op("Sigmoid", _X))
_QUICK_GELU = op("Mul", _X, op("Sigmoid", op("Mul", _X, Const(1.702))))

_REPEAT = op("Reshape", either(op("Expand", op("Unsqueeze", _X)), op("Tile", op("Unsqueeze", _X))))

LAYER_NORM = Pattern(
    "LayerNormalization",
    "a",
    either(op("Add", _weighted(_LAYER_NORM), _ANY), _weighted(_LAYER_NORM), _LAYER_NORM_TF),
)
RMS_NORM = Pattern("RMSNorm", "an", _weighted(_RMS))
GELU = Pattern("Gelu", "a", either(_gelu(_ERF), _gelu(_TANH)))
SILU = Pattern("SiLU", "a", _SILU)
QUICK_GELU = Pattern("QuickGelu", "a", _QUICK_GELU)
ROPE = Pattern("rotary embedding", "a", either(_ROPE, _ROPE_HALVES))
REPEAT = Pattern("repetition of key or value heads", "a", _REPEAT)

PATTERNS: tuple[Pattern, ...] = (LAYER_NORM, RMS_NORM, GELU, SILU, QUICK_GELU, ROPE, REPEAT)


@dataclass(frozen=True)
class _State:
    """What is matched so far."""

    nodes: tuple[ir.Node, ...] = ()
    values: tuple[tuple[str, ir.Value], ...] = ()

    def bind(self, name: str, value: ir.Value) -> _State | None:
        for known, bound in self.values:
            if known == name:
                return self if bound is value else None
        return _State(self.nodes, (*self.values, (name, value)))

    def take(self, node: ir.Node) -> _State:
        return self if any(n is node for n in self.nodes) else _State((*self.nodes, node), self.values)


def _match(template: Template, value: ir.Value | None, state: _State) -> Iterator[_State]:
    if value is None:
        return
    if isinstance(template, OneOf):
        for choice in template.choices:
            yield from _match(choice, value, state)
        return
    if isinstance(template, Const):
        if _is_number(value, template.number):
            yield state
        return
    if isinstance(template, Var):
        # Half precision models raise parts of a norm to float32: a Cast between does not matter.
        bound = state.bind(template.name, _before_cast(value)[0])
        if bound is not None:
            yield bound
        return
    inner, casts = _before_cast(value)
    node = inner.producer()
    if node is None or node.op_type != template.op_type or node.domain not in ("", "ai.onnx"):
        return
    if template.output is not None and node.outputs[template.output] is not inner:
        return
    if len(node.inputs) < len(template.inputs):
        return
    for cast in casts:
        state = state.take(cast)
    state = state.take(node)
    orders = [tuple(node.inputs)]
    if template.swaps and len(node.inputs) == 2:
        orders.append((node.inputs[1], node.inputs[0]))
    for order in orders:
        yield from _match_all(template.inputs, order, state)


def _match_all(templates: tuple[Template, ...], values: tuple[ir.Value | None, ...], state: _State) -> Iterator[_State]:
    if not templates:
        yield state
        return
    for found in _match(templates[0], values[0], state):
        yield from _match_all(templates[1:], values[1:], found)


def _before_cast(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    casts: list[ir.Node] = []
    producer = value.producer()
    while producer is not None and producer.op_type == "Cast" and producer.domain == "" and producer.inputs[0]:
        casts.append(producer)
        value = producer.inputs[0]
        producer = value.producer()
    return value, casts


def _is_number(value: ir.Value, number: float | None) -> bool:
    array = walk.const_array(value)
    if array is None or array.dtype.kind not in "fiu":
        return False
    if number is None:
        return True
    return array.size == 1 and bool(np.isclose(float(array.reshape(())), number, rtol=2e-3, atol=0.0))


def find(graph: ir.Graph, patterns: tuple[Pattern, ...] = PATTERNS) -> list[Match]:
    """Find patterns in a graph, without the subgraphs inside it.

    Args:
        graph: unchanged.
        patterns: what to look for.

    Returns:
        Matches in the order of their last node. Of matches that lie one inside another only the largest is given.
    """
    order = {id(node): index for index, node in enumerate(graph)}
    found: list[tuple[frozenset[int], Match]] = []
    for pattern in patterns:
        last = _last_types(pattern.template)
        for node in graph:
            if node.op_type not in last:
                continue
            state = next(_match(pattern.template, node.outputs[0], _State()), None)
            if state is None or any(id(n) not in order for n in state.nodes):
                continue
            members = tuple(sorted(state.nodes, key=lambda n: order[id(n)]))
            ids = frozenset(map(id, members))
            found = [(other, match) for other, match in found if not other < ids]
            if not any(ids <= other for other, _ in found):
                found.append((ids, Match(pattern, members, dict(state.values), _is_shared(node, members))))
    return [match for _, match in sorted(found, key=lambda item: order[id(item[1].nodes[-1])])]


def _last_types(template: Template) -> frozenset[str]:
    if isinstance(template, Op):
        return frozenset((template.op_type,))
    if isinstance(template, OneOf):
        return frozenset().union(*map(_last_types, template.choices))
    return frozenset()


def _is_shared(last: ir.Node, members: tuple[ir.Node, ...]) -> bool:
    inside = {id(node) for node in members}
    for node in members:
        for output in node.outputs:
            if node is not last and (
                output.is_graph_output() or any(id(user) not in inside for user in output.consumers())
            ):
                return True
    return False
