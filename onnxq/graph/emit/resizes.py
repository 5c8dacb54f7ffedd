"""Resize nodes that ONNX Runtime breaks where it puts the channels of integer convolutions last."""

from __future__ import annotations

import numpy as np

from onnxq.graph import walk
from onnxq.graph.emit.common import Builder


def hold_layout(builder: Builder) -> None:
    """Put a Reshape to the same shape, which copies nothing, behind each Resize that names its axes or is cubic.

    ONNX Runtime (seen in 1.32) moves the Transposes beside integer convolutions past a Resize, reads ``scales`` and
    ``sizes`` as if they were given for all axes, and has no cubic kernel for channels that lie last. Past a Reshape it
    moves none.
    """
    if not any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in walk.all_nodes(builder.graph)):
        return
    for node in list(walk.all_nodes(builder.graph)):
        if node.op_type != "Resize" or node.domain != "" or node.graph is None:
            continue
        output = node.outputs[0]
        rank = walk.rank(output) or walk.rank(node.inputs[0])
        if rank is None or not ("axes" in node.attributes or walk.attr_str(node, "mode", "nearest") == "cubic"):
            continue
        if output.is_graph_output() or any(user.op_type == "Reshape" for user in output.consumers()):
            continue
        same = builder.node(
            "Reshape", [output, builder.constant("same_shape", np.zeros(rank, np.int64))],
            builder.names.value(f"{output.name}_held"), dtype=output.dtype, shape=output.shape,
        )  # fmt: skip
        node.graph.insert_after(node, [same])
        for user, index in list(output.uses()):
            if user is not same:
                user.replace_input_with(index, same.outputs[0])
