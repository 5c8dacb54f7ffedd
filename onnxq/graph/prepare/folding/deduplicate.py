"""Equal large initializers become one, so that each is stored and quantized once."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array

_SMALLEST = 1024
"""Bytes below which a second copy costs nothing."""


def run(model: ir.Model) -> int:
    """Let the readers of equal initializers of the main graph read the first of them.

    Returns:
        How many were dropped.
    """
    groups: defaultdict[tuple[object, ...], list[ir.Value]] = defaultdict(list)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input() or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes >= _SMALLEST:
            groups[(tensor.dtype, tuple(tensor.shape.numpy()))].append(value)
    return sum(_merge(model.graph, group) for group in groups.values() if len(group) > 1)


def _merge(graph: ir.Graph, group: list[ir.Value]) -> int:
    alike: defaultdict[bytes, list[ir.Value]] = defaultdict(list)
    for value in group:
        content = _content(value)
        alike[content[:_SMALLEST].tobytes() + content[-_SMALLEST:].tobytes()].append(value)
    first: dict[bytes, ir.Value] = {}
    dropped = 0
    for values in alike.values():
        for value in values if len(values) > 1 else ():
            kept = first.setdefault(hashlib.sha256(_content(value).data).digest(), value)
            if kept is not value:
                assert value.name is not None
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name]
                dropped += 1
    return dropped


def _content(value: ir.Value) -> Array:
    assert value.const_value is not None
    array: Array = np.ascontiguousarray(value.const_value.numpy())
    return array.reshape(-1).view(np.uint8)
