"""Round values as in training where nothing on integers reads them: what reads them was trained on that."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.core.spec import QParams
from onnxq.graph import walk
from onnxq.graph.emit import common


def round_again(model: ir.Model, grids: Mapping[str, tuple[QParams, tuple[int, int] | None]]) -> list[str]:
    """Put Q and DQ behind values that lost them.

    Args:
        model: quantized otherwise; changed in place.
        grids: parameters of values, and the smallest and largest integer where those are not the ends of the type.

    Returns:
        Names of the values that are rounded; one that was folded into a layer is not there any more.
    """
    builder = common.Builder(model)
    done = []
    for value in [value for value in walk.all_values(model.graph) if value.name in grids]:
        name = value.name or ""
        if not value.uses() and not value.is_graph_output():
            continue
        params, limits = grids[name]
        q = builder.quantize(value, params, builder.names.value(f"{name}_QuantizeLinear_Output"))
        clip = builder.limit(q.outputs[0], params, limits)
        integers = (clip or q).outputs[0]
        back = builder.dequantize(integers, params, builder.names.value(f"{name}_DequantizeLinear_Output"), name)
        builder.place_after(value, [node for node in (q, clip, back) if node is not None])
        common.replace_uses(value, back.outputs[0], keep=q)
        done.append(name)
    return done
