"""Compute one node on constants with onnx's reference implementation, knowing beforehand how large the result is."""

from __future__ import annotations

import math
import warnings

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxq.core.dtypes import Array
from onnxq.graph import walk

ARRANGE = frozenset(
    {
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Cast",
        "CastLike",
        "Concat",
        "Slice",
        "Split",
        "QuantizeLinear",
    }
)
"""Operators that only arrange or recode what is there."""

_ELEMENTWISE = frozenset(
    {
        "Abs",
        "Neg",
        "Sqrt",
        "Exp",
        "Log",
        "Reciprocal",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Not",
        "Sin",
        "Cos",
        "Tanh",
        "Sigmoid",
        "Relu",
        "Erf",
        "Softplus",
        "Clip",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Min",
        "Max",
        "Mod",
        "Sum",
        "Mean",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "And",
        "Or",
        "Xor",
        "Where",
    }
)
_SMALLER = frozenset(
    {
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "Trilu",
        "CumSum",
        "Softmax",
        "ArgMax",
        "ArgMin",
    }
)
_OWN = frozenset("Shape Size Range ConstantOfShape Expand Tile Pad Gather GatherElements MatMul NonZero".split())

OPERATORS = ARRANGE | _ELEMENTWISE | _SMALLER | _OWN
"""Operators that are deterministic, cheap, and whose result's size is known before it is computed."""

_MAX_RANK = 64


def result_bytes(node: ir.Node, inputs: list[Array | None]) -> int | None:
    """An upper bound of the bytes of all results; None where the node cannot be computed."""
    present = [array for array in inputs if array is not None]
    if node.op_type in ("Shape", "Size"):
        return 8 * _MAX_RANK
    if node.op_type not in ("ConstantOfShape", "Range") and (not present or inputs[0] is None):
        return None
    try:
        return _bytes(node, inputs, present)
    except (ValueError, IndexError, OverflowError):  # shapes that do not go together
        return None


def _bytes(node: ir.Node, inputs: list[Array | None], present: list[Array]) -> int:
    wide = max(8, *(array.itemsize for array in present))
    first = present[0]
    match node.op_type:
        case "ConstantOfShape":
            return int(wide) * math.prod(int(dim) for dim in first)
        case "Range":
            start, limit, delta = (float(array.reshape(())) for array in present)
            return int(wide) * max(0, math.ceil((limit - start) / delta) if delta else 0)
        case "Expand":
            return first.itemsize * _elements(first.shape, tuple(int(dim) for dim in present[1]))
        case "Tile":
            return first.nbytes * math.prod(int(n) for n in present[1])
        case "Pad":
            return first.itemsize * math.prod(_padded(first.shape, inputs))
        case "Gather" | "GatherElements":
            slices = first.size // max(1, first.shape[walk.attr_int(node, "axis", 0)])
            return int(first.itemsize * present[1].size * (slices if node.op_type == "Gather" else 1))
        case "MatMul":
            rows, columns = first.size // max(1, first.shape[-1]), present[1].size // max(1, present[1].shape[0])
            return int(first.itemsize * rows * columns)
        case "NonZero":
            return int(8 * first.size * max(1, first.ndim))
    if node.op_type in _ELEMENTWISE:
        return max(array.itemsize for array in present) * _elements(*(array.shape for array in present))
    if node.op_type in ("Cast", "CastLike", "QuantizeLinear"):
        return int(wide * first.size)
    return int(sum(array.nbytes for array in present))


def _padded(shape: tuple[int, ...], inputs: list[Array | None]) -> list[int]:
    """Lengths behind a Pad; it takes its lengths as an input from operator set 11 on."""
    lengths, given = list(shape), inputs[3] if len(inputs) > 3 else None
    axes = range(len(shape)) if given is None else [int(axis) for axis in given.reshape(-1)]
    pads = inputs[1].reshape(2, -1).sum(axis=0) if len(inputs) > 1 and inputs[1] is not None else None
    if pads is None or len(pads) != len(axes):
        raise ValueError("a Pad without lengths")
    for axis, more in zip(axes, pads, strict=True):
        lengths[axis] = max(0, lengths[axis] + int(more))
    return lengths


def _elements(*shapes: tuple[int, ...]) -> int:
    return math.prod(np.broadcast_shapes(*shapes))


def evaluate(node: ir.Node, inputs: list[Array | None], version: int) -> list[Array] | None:
    """The results, or None where the reference implementation cannot give those of a runtime.

    Args:
        node: of the default domain, one of `OPERATORS`.
        inputs: contents of its inputs, None for each that is left out.
        version: the default operator set of the model.
    """
    if node.op_type in ("Div", "Mod", "Pow") and any(
        array is not None and array.dtype.kind in "iu" and np.any(array < (1 if i else 0))
        for i, array in enumerate(inputs)
    ):
        return None  # integer division of negative numbers rounds differently, by zero is undefined
    if node.op_type == "Shape":
        return _shape(node, inputs[0])
    if node.op_type == "Transpose" and inputs[0] is not None:
        axes = walk.attr_ints(node, "perm") or tuple(reversed(range(inputs[0].ndim)))
        return [np.ascontiguousarray(np.transpose(inputs[0], axes))]
    model = _model(node, version)
    feeds = {name: array for name, array in zip(model.graph.node[0].input, inputs, strict=True) if array is not None}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # an operator or type that the reference lacks: the node stays for the runtime
        return None
    arrays = [np.ascontiguousarray(r).reshape(np.shape(r)) for r in results if isinstance(r, np.ndarray | np.generic)]
    return arrays if len(arrays) == len(results) else None


def _model(node: ir.Node, version: int) -> onnx.ModelProto:
    """The node alone as a model: given a bare node, the reference takes the newest version of the operator."""
    proto = ir.to_proto(node)
    graph = onnx.GraphProto(name="constant", node=[proto])
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(proto.input) if name)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
    return onnx.ModelProto(ir_version=8, graph=graph, opset_import=[onnx.OperatorSetIdProto(version=version)])


def _shape(node: ir.Node, array: Array | None) -> list[Array] | None:
    if array is None:
        return None
    end = walk.attr_int(node, "end", array.ndim)
    return [np.array(array.shape[walk.attr_int(node, "start", 0) : end], np.int64)]
