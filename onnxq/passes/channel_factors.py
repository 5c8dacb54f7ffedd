"""Which channels of a graph's values can be scaled together: f(s·x) = s·f(x) from the layers that write to the readers.

Each channel that a layer writes has a factor of its own. Operators that keep channels apart pass factors on, sums and
joined values make several the same, and what reads values in another way pins the factor to 1. A layer takes up the
factors of what it reads and of what it writes in its weight, a depthwise one too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.graph import traits, walk
from onnxq.graph.prepare.folding.affine_layer import AffineLayer
from onnxq.graph.traits import Trait, having
from onnxq.graph.types import Graph, Node, Value
from onnxq.passes.pairs import input_channels, reads_channels, writer

_ALONE = traits.HOMOGENEOUS - {"PRelu"}
_POOLS = traits.POOLS
_REDUCTIONS = having(Trait.REDUCES)
_SAME = frozenset({"Add", "Sub", "Sum", "Max", "Min"})
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Carried:
    """The factors of a value's channels: their numbers, and the axis of the channels."""

    factors: Array
    axis: int


@dataclass
class Factors:
    """What can be scaled.

    Attributes:
        written: (layer, numbers of the factors of its output channels).
        read: (layer, value, numbers of the factors of the channels that it reads).
        axes: the axis of the channels of each value that a layer reads, by name.
        rounding: those of ``read`` that factors are chosen for.

    Numbers are 0 where a channel has to stay as it is.
    """

    written: list[tuple[AffineLayer, Array]] = field(default_factory=list)
    read: list[tuple[Node, Value, Array]] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)
    rounding: list[tuple[Node, Value, Array]] = field(default_factory=list)


class _Numbers:
    """Factors that are the same have one root; number 0 is the factor 1."""

    def __init__(self) -> None:
        self._parents = [0]

    def fresh(self, count: int) -> Array:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def join(self, first: Array, second: Array) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parents[high] = low

    def pin(self, numbers: Array) -> None:
        for number in numbers.tolist():
            self._parents[self.root(number)] = 0

    def roots(self, numbers: Array) -> Array:
        return np.array([self.root(number) for number in numbers.tolist()], np.int64)


def channel_factors(graph: Graph) -> Factors:
    """The factors that a graph's channels can have.

    Args:
        graph: the main graph of a prepared model; unchanged.
    """
    return _Walk(graph).run()


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._numbers = _Numbers()
        self._known: dict[int, Carried] = {}
        self._found = Factors()

    def run(self) -> Factors:
        for node in self._graph:
            if node.domain not in _STANDARD or not self._layer(node):
                carried = self._through(node) if node.domain in _STANDARD else None
                if carried is not None:
                    self._known[id(node.outputs[0])] = carried
                elif node.op_type not in ("Shape", "Size"):
                    self._pin_inputs(node)
            for output in node.outputs:
                carried = self._known.get(id(output))
                inside = any(user.graph is not self._graph for user in output.consumers())
                if carried is not None and (output.is_graph_output() or inside):
                    self._numbers.pin(carried.factors)
        roots, found = self._numbers.roots, self._found
        found.written = [(layer, roots(factors)) for layer, factors in found.written]
        found.read = [(node, value, roots(factors)) for node, value, factors in found.read]
        return found

    def _of(self, value: Value | None) -> Carried | None:
        return self._known.get(id(value)) if value is not None else None

    def _pin_inputs(self, node: Node) -> None:
        for value in node.inputs:
            carried = self._of(value)
            if carried is not None:
                self._numbers.pin(carried.factors)

    # Layers.

    def _layer(self, node: Node) -> bool:
        """Take a layer in; whether it was one."""
        if node.op_type not in traits.LAYERS:
            return False
        self._read(node)
        layer = writer(node)
        rank = layer.rank if layer is not None else None
        if layer is not None and rank is not None and layer.output.name:
            factors = self._numbers.fresh(layer.channels)
            self._found.written.append((layer, factors))
            self._known[id(layer.output)] = Carried(factors, rank - 1 if node.op_type == "MatMul" else 1)
        return True

    def _read(self, node: Node) -> None:
        source = walk.input_at(node, 0)
        carried = self._of(source)
        if source is None or carried is None:
            return self._pin_inputs(node)
        axis = (walk.rank(source) or 0) - 1 if node.op_type == "MatMul" else 1
        fits = reads_channels(node) and carried.axis == axis and input_channels(node) == carried.factors.size
        if not fits or any(self._of(value) is not None for value in node.inputs[1:]):
            return self._pin_inputs(node)
        self._found.read.append((node, source, carried.factors))
        self._found.axes[source.name or ""] = axis
        return None

    # What stands between them.

    def _through(self, node: Node) -> Carried | None:
        """The factors behind a node; None where it does not let them pass, or has none."""
        if id(node.outputs[0]) in self._known:  # the Add of a MatMul's bias
            return self._known[id(node.outputs[0])]
        carried, name = self._of(walk.input_at(node, 0)), node.op_type
        if name in _SAME:
            return self._alike(node)
        if name in ("Mul", "Div"):
            return self._product(node)
        if name == "Concat":
            return self._concat(node)
        if carried is None:
            return None
        if name in _ALONE:
            return carried if not any(output.uses() for output in node.outputs[1:]) else None
        if name == "PRelu":
            return carried if walk.is_constant(walk.input_at(node, 1)) else None
        if name == "Clip":
            return carried if _only_below_zero(node) else None
        if name in _POOLS:
            others = any(output.uses() for output in node.outputs[1:])
            return carried if carried.axis == 1 and not others else None
        if name == "Pad":
            return carried if _pads_with_zeros(node, carried.axis) else None
        if name == "Resize":
            return carried if _keeps_axis(node, carried.axis) else None
        if name in _REDUCTIONS:
            return _reduced(node, carried)
        if name in ("Flatten", "Reshape", "Squeeze"):
            return _flattened(node, carried)
        if name == "Transpose":
            order = walk.attr_ints(node, "perm")
            return Carried(carried.factors, order.index(carried.axis)) if carried.axis in order else None
        return None

    def _alike(self, node: Node) -> Carried | None:
        """Values that are added or compared have the same factors; zero has any."""
        found = []
        for value in node.inputs:
            array = walk.const_array(value)
            if array is not None and array.size == 1 and not array.any():
                continue
            carried = self._of(value)
            if carried is None:
                return None
            found.append((carried, walk.rank(value)))
        if not found:
            return None
        first, rank = found[0]
        for other, its_rank in found[1:]:
            alike = other.axis == first.axis and other.factors.size == first.factors.size
            if rank is None or its_rank != rank or not alike:
                return None
        for other, _ in found[1:]:
            self._numbers.join(first.factors, other.factors)
        return first

    def _product(self, node: Node) -> Carried | None:
        """One operand has the factors; the other, a constant or a gate, has none."""
        first, second = walk.input_at(node, 0), walk.input_at(node, 1)
        if first is second or first is None or second is None:
            return None
        options = [(first, second)] if node.op_type == "Div" else [(first, second), (second, first)]
        # of two that are as large, the one whose factors are free has them
        options.sort(key=lambda pair: not self._is_free(self._of(pair[0])))
        for main, other in options:
            carried, dims, its = self._of(main), walk.dims(main), walk.dims(other)
            if carried is None or dims is None or its is None or not _fits(its, dims):
                continue
            if dims[carried.axis] != carried.factors.size:
                continue
            gate = self._of(other)
            if gate is not None:
                self._numbers.pin(gate.factors)
            return carried
        return None

    def _is_free(self, carried: Carried | None) -> bool:
        return carried is not None and bool(self._numbers.roots(carried.factors).any())

    def _concat(self, node: Node) -> Carried | None:
        rank = walk.rank(node.outputs[0])
        found = [self._of(value) for value in node.inputs]
        axes = {carried.axis for carried in found if carried is not None}
        if rank is None or len(axes) != 1:
            return None
        (channels,) = axes
        if walk.attr_int(node, "axis") % rank != channels:
            first = found[0]
            if first is None or any(each is None or each.factors.size != first.factors.size for each in found):
                return None
            for each in found[1:]:
                assert each is not None
                self._numbers.join(first.factors, each.factors)
            return first
        parts = []
        for value, carried in zip(node.inputs, found, strict=True):
            dims = walk.dims(value)
            if carried is not None:
                parts.append(carried.factors)
            elif dims is not None and len(dims) == rank and dims[channels] is not None:
                parts.append(np.zeros(int(dims[channels] or 0), np.int64))
            else:
                return None
        return Carried(np.concatenate(parts), channels)


def _fits(dims: tuple[int | None, ...], into: tuple[int | None, ...]) -> bool:
    """Whether a value broadcasts to another's shape without making it larger, by what is known."""
    pairs = zip(reversed(dims), reversed(into), strict=False)
    return len(dims) <= len(into) and all(one == 1 or one == other for one, other in pairs)


def _only_below_zero(node: Node) -> bool:
    low, high = walk.const_array(walk.input_at(node, 1)), walk.input_at(node, 2)
    return low is not None and not low.any() and high is None and len(node.inputs) > 1


def _pads_with_zeros(node: Node, axis: int) -> bool:
    pads, value = walk.const_array(walk.input_at(node, 1)), walk.input_at(node, 2)
    if pads is None or walk.input_at(node, 3) is not None or pads.size // 2 <= axis:
        return False
    array = walk.const_array(value)
    zero = walk.attr_str(node, "mode", "constant") != "constant" or value is None
    zero = zero or (array is not None and not array.any())
    return zero and not pads[axis] and not pads[pads.size // 2 + axis]


def _keeps_axis(node: Node, axis: int) -> bool:
    before, after = walk.dims(walk.input_at(node, 0)), walk.dims(node.outputs[0])
    same = before is not None and after is not None and before[axis] is not None and before[axis] == after[axis]
    crops = walk.attr_str(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    return same and not crops and not walk.attr_ints(node, "axes")


def _reduced(node: Node, carried: Carried) -> Carried | None:
    rank, given = walk.rank(walk.input_at(node, 0)), walk.const_array(walk.input_at(node, 1))
    if walk.input_at(node, 1) is not None and given is None:
        return None
    axes = walk.attr_ints(node, "axes") if given is None else given.reshape(-1).tolist()
    if rank is None or not axes:
        return None
    taken = {int(axis) % rank for axis in axes}
    if carried.axis in taken:
        return None
    before = sum(axis < carried.axis for axis in taken)
    return carried if walk.attr_int(node, "keepdims", 1) else Carried(carried.factors, carried.axis - before)


def _flattened(node: Node, carried: Carried) -> Carried | None:
    """An image as one row of channel after channel."""
    before, after = walk.dims(walk.input_at(node, 0)), walk.dims(node.outputs[0])
    if before is None or after is None or len(after) != 2 or len(before) < 2 or carried.axis != 1:
        return None
    known = [dim for dim in before[1:] if dim is not None]
    if len(known) != len(before) - 1 or before[1] != carried.factors.size or after[1] != int(np.prod(known)):
        return None
    return Carried(np.repeat(carried.factors, int(np.prod(known[1:]))), 1)
