"""onnx's inference of shapes, put right where onnx counts otherwise than ONNX Runtime does.

A pool that rounds up drops a last window that would begin behind the end of what it reads; onnx counts it. A
ConvTranspose that pads by itself gives a stride of positions for each that it reads; onnx adds output padding. Squeeze
and Unsqueeze of old operator sets may count their axes from the end; onnx leaves these out. Everything behind such a
node would have a wrong size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

from onnxq.graph.names import scopes

_POOLS = ("MaxPool", "AveragePool", "LpPool")
_SAME = (b"SAME_UPPER", b"SAME_LOWER")
_AXES = ("Squeeze", "Unsqueeze")


def infer_shapes(proto: onnx.ModelProto, *, data_prop: bool) -> onnx.ModelProto:
    """A copy with the types of all values that onnx can tell.

    Args:
        proto: names of values must be unique in the whole model; nodes that onnx would count wrongly are changed to
            others of the right size.
        data_prop: whether onnx may compute the elements of small integers.

    Raises:
        Exception: whatever an unknown construct leads onnx to.
    """
    nodes = [node for graph in scopes(proto.graph) for node in graph.node]
    weights = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    pending = {id(node) for node in nodes if _may_be_wrong(node)}
    while True:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=data_prop)
        if not pending:
            return inferred
        known = {info.name: info.type for info in [*inferred.graph.input, *value_infos(inferred.graph)]}
        changed: set[str] = set()  # values that may have another size than was found
        done = set()
        for node in nodes:
            if not changed.isdisjoint(node.input):
                changed.update(node.output)
            elif id(node) in pending and _put_right(node, known, weights):
                changed.update(node.output)
                done.add(id(node))
        if not done:
            return inferred
        pending -= done


def value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """What is said of the values that nodes give, subgraphs included."""
    for each in scopes(graph):
        yield from each.value_info
        yield from each.output


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _set(node: onnx.NodeProto, name: str, numbers: list[int], *dropped: str) -> bool:
    """Set an attribute, and take others away."""
    kept = [attribute for attribute in node.attribute if attribute.name not in (name, *dropped)]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, numbers)])
    return True


def _may_be_wrong(node: onnx.NodeProto) -> bool:
    given = _attributes(node)
    if node.op_type in _POOLS:
        return bool(given.get("ceil_mode")) and given.get("auto_pad", b"NOTSET") == b"NOTSET"
    if node.op_type == "ConvTranspose":
        return given.get("auto_pad") in _SAME and "output_shape" not in given
    return node.op_type in _AXES and min(given.get("axes", (0,)), default=0) < 0


def _put_right(node: onnx.NodeProto, known: Mapping[str, onnx.TypeProto], weights: Mapping[str, Sequence[int]]) -> bool:
    """Change a node that is counted wrongly; whether it was."""
    read = known.get(node.input[0])
    if read is None or not read.tensor_type.HasField("shape"):
        return False
    sizes = [dim.dim_value for dim in read.tensor_type.shape.dim]
    if node.op_type in _AXES:
        axes = _attributes(node)["axes"]
        rank = len(sizes) + (len(axes) if node.op_type == "Unsqueeze" else 0)
        return _set(node, "axes", [axis % rank for axis in axes] if rank else axes)
    if node.op_type == "ConvTranspose":
        reached = _reached(node, sizes[2:], weights)
        return bool(reached) and _set(node, "output_shape", reached, "auto_pad", "output_padding", "pads")
    dropped = _dropped_windows(node, sizes[2:])
    if dropped is None or not any(dropped):
        return False
    return _round_down(node, dropped)


def _reached(node: onnx.NodeProto, sizes: list[int], weights: Mapping[str, Sequence[int]]) -> list[int]:
    """The sizes that a ConvTranspose gives which pads by itself; nothing where they are not known."""
    given, ones = _attributes(node), [1] * len(sizes)
    kernel = given.get("kernel_shape", list(weights.get(node.input[1], ()))[2:])
    rows = [sizes, kernel, *(given.get(key, ones) for key in ("strides", "dilations"))]
    rows.append(given.get("output_padding", [0] * len(sizes)))
    if not all(sizes) or any(len(row) != len(sizes) for row in rows):
        return []
    columns = zip(*rows, strict=True)
    return [min(n * step, (n - 1) * step + apart * (k - 1) + 1 + more) for n, k, step, apart, more in columns]


def _dropped_windows(node: onnx.NodeProto, sizes: list[int]) -> list[bool] | None:
    """For each axis that a pool runs over, whether a window begins behind the end; None where that is not known."""
    given, rank = _attributes(node), len(sizes)
    ones, pads = [1] * rank, given.get("pads", [0] * 2 * rank)
    kernel, strides, dilations = given.get("kernel_shape", ()), given.get("strides", ones), given.get("dilations", ones)
    if not sizes or not all(sizes) or not len(kernel) == len(strides) == len(dilations) == rank:
        return None
    if len(pads) != 2 * rank or min(strides) < 1:
        return None
    dropped = []
    for axis, size in enumerate(sizes):
        begin = size + pads[axis]
        steps = -((begin + pads[rank + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // -strides[axis])
        dropped.append(steps * strides[axis] >= begin)
    return dropped


def _round_down(node: onnx.NodeProto, dropped: list[bool]) -> bool:
    """Let a pool round down, with padding at the end of those axes that have a last, partial window."""
    rank, given = len(dropped), _attributes(node)
    strides, pads = given.get("strides", [1] * rank), list(given.get("pads", [0] * 2 * rank))
    for axis, drops in enumerate(dropped):
        pads[rank + axis] += 0 if drops else strides[axis] - 1
    return _set(node, "pads", pads, "ceil_mode")
