"""One layer of a model as a model of its own, before and after it was quantized."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.views.extract import extract

_ROWS = 8
"""Rows of a made-up input: enough for the mean error of a layer's outputs."""


class Layers:
    """The nodes of one model by the values that they make."""

    def __init__(self, model: ir.Model) -> None:
        """Look at a model, which must not be changed as long as this is used."""
        self._model = model
        self._values = {value.name: value for node in model.graph for value in node.outputs if value.name}

    def part(self, read: str, written: str, array: Array) -> ir.Model | None:
        """The nodes between two values, which quantizing a layer in between leaves their names.

        Args:
            read: the value that the layer reads.
            written: the value that it writes.
            array: contents for the former.

        Returns:
            A model that takes ``read``; None where what writes ``written`` reads another value of the model too.
        """
        names: list[str] = []
        pending, seen = [written], {read, written}
        while pending:
            value = self._values.get(pending.pop())
            node = value.producer() if value is not None else None
            if node is None or not node.name:
                return None
            names.append(node.name)
            for needed in node.inputs:
                if needed is not None and needed.name and needed.name not in seen and not walk.is_constant(needed):
                    seen.add(needed.name)
                    pending.append(needed.name)
        return extract(self._model, names, {read: array})


def layer_ends(node: ir.Node) -> tuple[str, str, tuple[int, ...], str, int] | None:
    """What has to be known to run one MatMul, Gemm or Gather of a constant alone.

    Returns:
        (value read, value written, shape of some rows for the former, its element type, numbers that it may hold if it
        is an index, else 0); None for other nodes, and where more than one input is not constant.
    """
    read = [(index, v) for index, v in enumerate(node.inputs) if v is not None and not walk.is_constant(v)]
    if node.domain != "" or len(read) != 1 or not node.outputs[0].name:
        return None
    position, value = read[0]
    weight = walk.dims(walk.input_at(node, 1 - position)) if position < 2 else None
    if not value.name or value.dtype is None or weight is None or len(weight) < 2 or None in weight:
        return None
    shape: tuple[int, ...]
    if node.op_type == "Gather" and position == 1 and not walk.attr_int(node, "axis"):
        return value.name, str(node.outputs[0].name), (_ROWS,), value.dtype.numpy().name, int(weight[0] or 0)
    if node.op_type not in ("MatMul", "Gemm") or position != 0:
        return None
    if node.op_type == "Gemm" and walk.attr_int(node, "transA"):
        shape = (int(weight[1 if walk.outputs_first(node) else 0] or 0), _ROWS)
    elif node.op_type == "Gemm":
        shape = (_ROWS, int(weight[1 if walk.outputs_first(node) else 0] or 0))
    else:
        lead = tuple(int(size or 0) for size in weight[:-2])
        rank = max(walk.rank(value) or 2, len(lead) + 2)
        shape = (*((1,) * (rank - 2 - len(lead))), *lead, _ROWS, int(weight[-2] or 0))
    return value.name, str(node.outputs[0].name), shape, value.dtype.numpy().name, 0
