"""Checks on whole models: the ONNX checker, and weights that are not finite."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.core.in_order import each
from onnxq.core.mapped import expect, forget
from onnxq.errors import ModelError
from onnxq.graph import names, traits, walk

_NO_SHAPE = "Field 'shape' of 'type' is required but missing"

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "LSTM": (1, 2, 3, 5, 6, 7),
    "GRU": (1, 2, 3, 5),
    "RNN": (1, 2, 3, 5),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
}
"""Inputs that hold weights, where neither NaN nor an infinity has a meaning."""

_NAN_INPUTS: dict[str, tuple[int, ...]] = {"Gather": (0,), "Add": (0, 1), "Sub": (0, 1), "Mul": (0, 1), "Div": (0, 1)}
"""Inputs where an infinity may be a mask but NaN is damage."""

_MOVES = traits.MOVING | {"Cast", "Identity", "Slice", "Split"}
"""Operators that hand a weight on: whoever reads their outputs reads the weight."""


_GROWN = 1 << 30
"""Bytes that a model may make out of constants: nothing that is worth storing as a recipe for itself is larger."""

_SLAB = 1 << 20
"""Elements that are looked at at a time."""

_GROWTH = 16
"""Times the bytes of its inputs that a node's result must have to count: unpacking weights makes them eight times."""


def check_sizes(model: ir.Model) -> None:
    """Refuse a model that makes very large values out of small constants, which would fill the memory when it is run.

    Args:
        model: its shapes are inferred.

    Raises:
        ModelError: names the node and the bytes.
    """
    grown: set[ir.Value] = set()
    total = 0
    for node in walk.all_nodes(model.graph):
        if walk.subgraphs(node) or not all(v is None or v in grown or walk.is_constant(v) for v in node.inputs):
            continue
        sizes = [_bytes_of(value) for value in node.outputs]
        grown.update(node.outputs)
        size = sum(sizes)
        if size > _GROWTH * sum(_bytes_of(value) for value in node.inputs if value is not None):
            total += size
        if total > _GROWN:
            raise ModelError(
                f"{node.op_type} '{node.name}': makes {size / 2**30:.3g} GiB out of constants, more than a model can "
                "be run with; it is damaged, or export it with smaller shapes"
            )


def _bytes_of(value: ir.Value) -> int:
    shape = walk.dims(value)
    if shape is None or any(dim is None for dim in shape):
        return 0
    width = value.dtype.bitwidth if value.dtype is not None and value.dtype != ir.DataType.STRING else 8
    return math.prod(max(dim or 0, 0) for dim in shape) * width // 8


def check_model(model: bytes | onnx.ModelProto) -> None:
    """Run the ONNX checker; operators of domains it does not know are accepted.

    So are inputs and outputs whose rank is open, of the model and of its bodies: the checker misses a shape there, and
    ONNX Runtime does not need one.

    Raises:
        ModelError: what is wrong, in one line.
    """
    try:
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:  # the checker's own error, or what protobuf says to damaged bytes
        if _NO_SHAPE in str(error) and isinstance(model, (bytes, onnx.ModelProto)):
            ranked = _with_ranks(model)
            if ranked is not None:
                check_model(ranked)
                return
        raise ModelError(f"model: not valid ONNX: {' '.join(str(error).split())}") from error


def complaints(model: bytes | Path) -> Counter[tuple[str, str, str]]:
    """What the ONNX checker says of each node by itself, and how often.

    Args:
        model: contents of a model file, or its path.

    Returns:
        Counts by (domain, operator, what is said without the names of the node and its values): two models have a
        complaint in common where it is about the same operator, whatever their nodes are called.

    Raises:
        ModelError: the bytes are no model.
    """
    try:
        proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else onnx.load_from_string(model)
    except Exception as error:  # protobuf's implementations differ in what they raise
        raise ModelError(f"model: not valid ONNX: {' '.join(str(error).split())}") from error
    context = onnx.checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in proto.opset_import}
    found: Counter[tuple[str, str, str]] = Counter()
    for node in (node for scope in names.scopes(proto.graph) for node in scope.node):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            continue  # what it says of them is about the nodes inside, which come by themselves
        try:
            onnx.checker.check_node(node, context)
        except Exception as error:
            found[node.domain, node.op_type, _without_names(str(error), node)] += 1
    return found


def _without_names(said: str, node: onnx.NodeProto) -> str:
    line = " ".join(said.partition("==> Context")[0].split())
    for name in sorted({node.name, *node.input, *node.output} - {""}, key=len, reverse=True):
        line = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", line)
    return line


def _with_ranks(model: bytes | onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy whose inputs and outputs of open rank have some shape, for the checker; None where there are none."""
    copy = onnx.ModelProto()
    copy.ParseFromString(model if isinstance(model, bytes) else model.SerializeToString())
    found = False
    scopes = names.scopes(copy.graph)
    for value in (value for scope in scopes for value in (*scope.input, *scope.output)):
        kind = value.type.WhichOneof("value")
        if kind == "tensor_type" and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
            found = True
    return copy if found else None


def check_weights(model: ir.Model) -> None:
    """Refuse weights that hold NaN or an infinity.

    Only weights count: the constants that Conv, Gemm, MatMul, recurrent, normalization and lookup operators read,
    directly or through Reshape, Transpose and the like. Infinities in masks and in bounds of Clip are legitimate.

    Raises:
        ModelError: names the first such initializer, how many elements are not finite, and the node that reads it.
    """
    for value, array in _float_constants(model):
        expect(array)
        if _all_finite(array):
            forget(array)
            continue
        finite = np.isfinite(array)
        readers = list(_readers(value))
        for node, index in readers:
            if node.domain == "" and index in _WEIGHT_INPUTS.get(node.op_type, ()):
                _refuse(value, array, array.size - int(np.count_nonzero(finite)), "not finite (NaN or infinite)", node)
        nans = int(np.count_nonzero(np.isnan(array)))
        for node, index in readers:
            if nans and node.domain == "" and index in _NAN_INPUTS.get(node.op_type, ()):
                _refuse(value, array, nans, "NaN", node)


def _all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite, with little of a large array in memory at a time."""
    flat = array.reshape(-1)
    return all(each(lambda start: bool(np.isfinite(flat[start : start + _SLAB]).all()), range(0, flat.size, _SLAB)))


def _refuse(value: ir.Value, array: Array, count: int, what: str, node: ir.Node) -> None:
    raise ModelError(
        f"initializer '{value.name}' of {node.op_type} '{node.name}': {count} of {array.size} elements are {what}; "
        "the model is damaged or its training diverged: export it again"
    )


def _float_constants(model: ir.Model) -> Iterator[tuple[ir.Value, Array]]:
    for graph in walk.all_graphs(model.graph):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in walk.FLOATS:
                yield value, value.const_value.numpy()
        for node in graph:
            if node.op_type == "Constant" and node.domain == "":
                array = walk.const_array(node.outputs[0])
                if array is not None and (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
                    yield node.outputs[0], array


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Who reads the value, also through operators that only move elements."""
    pending, seen = [value], {id(value)}
    while pending:
        for node, index in pending.pop().uses():
            yield node, index
            if node.domain == "" and node.op_type in _MOVES and index == 0:
                fresh = [output for output in node.outputs if id(output) not in seen]
                seen.update(id(output) for output in fresh)
                pending.extend(fresh)
