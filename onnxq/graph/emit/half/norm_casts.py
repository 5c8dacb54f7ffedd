"""Casts in front of layer norms that are written out, which ONNX Runtime joins into one operator."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import walk


def hold_casts(model: ir.Model, kind: ir.DataType) -> int:
    """Put a Max of one input, a copy bit for bit, between a Cast to 16 bits and a norm that is written out.

    ONNX Runtime (seen in 1.32) takes the Cast for the one to float32 that norms of float16 models begin with, leaves it
    out, and has a LayerNormalization of both types, which it refuses to load.

    Args:
        model: changed in place.
        kind: the type of 16 bits.

    Returns:
        How many Casts are held.
    """
    names, count = walk.Names(model), 0
    for cast in list(walk.all_nodes(model.graph)):
        result = cast.outputs[0]
        if cast.op_type != "Cast" or result.dtype != kind or cast.graph is None:
            continue
        readers = {user.op_type for user in result.consumers() if user.graph is cast.graph}
        if not {"ReduceMean", "Sub"} <= readers:
            continue
        copy = ir.Value(name=names.value(f"{result.name}_held"), type=ir.TensorType(kind), shape=result.shape)
        held = ir.Node("", "Max", [result], outputs=[copy], name=names.node(f"{copy.name}_Max"))
        cast.graph.insert_after(cast, held)
        for user, position in list(result.uses()):
            if user is not held and user.graph is cast.graph:
                user.replace_input_with(position, copy)
        count += 1
    return count
