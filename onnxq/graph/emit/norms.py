"""What ONNX Runtime joins or moves to a slower kernel, or would join were there no DQ, written so that it is fast."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import edit, traits, walk
from onnxq.graph.emit.common import Builder
from onnxq.graph.reading import patterns
from onnxq.graph.reading.ops import MICROSOFT

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


def keep_apart(model: ir.Model) -> int:
    """Write the Add in front of a normalization as Sum, which is the same operation.

    ONNX Runtime (seen in 1.32) joins Add and LayerNormalization into SkipLayerNormalization, whose kernel takes seven
    times as long on CPUs as both; a Sum it leaves alone.

    Returns:
        How many were rewritten.
    """
    done = 0
    for graph in walk.all_graphs(model.graph):
        sources = [node.inputs[0] for node in graph if node.op_type in _NORMS and node.inputs]
        found = patterns.find(graph, (patterns.LAYER_NORM, patterns.RMS_NORM))
        sources += [match.values["x"] for match in found]
        for source in sources:
            node = source.producer() if source is not None else None
            if node is None or node.op_type != "Add" or node.domain != "" or node.graph is not graph:
                continue
            if node.outputs[0].dtype == ir.DataType.FLOAT and not any(map(walk.is_constant, node.inputs)):
                node.op_type = "Sum"
                done += 1
    return done


_MOVERS = traits.MOVING | {"Slice"}


def hold_pools(builder: Builder) -> None:
    """Keep a float MaxPool in front of the Q that quantizes what it gives, with a Max of one input between the two.

    ONNX Runtime moves the Q above the pool, also above what only moves elements behind it. The pool then runs on
    integers whose channels lie first, for which its kernel takes four to nine times as long as the float one. A Max of
    one input copies it, bit for bit.
    """
    for pool in list(walk.all_nodes(builder.graph)):
        source = pool.inputs[0].producer() if pool.inputs and pool.inputs[0] is not None else None
        if pool.op_type != "MaxPool" or pool.domain != "" or pool.graph is None:
            continue
        if (source is not None and source.op_type == "DequantizeLinear") or not _reaches_q(pool):
            continue
        output = pool.outputs[0]
        name = f"{output.name}_held"
        held = builder.node("Max", [output], builder.names.value(name), dtype=ir.DataType.FLOAT, shape=output.shape)
        pool.graph.insert_after(pool, [held])
        for user, index in list(output.uses()):
            if user is not held:
                user.replace_input_with(index, held.outputs[0])


def _reaches_q(pool: ir.Node) -> bool:
    """Whether nothing but a Q reads what the pool gives, through nodes that move elements or not."""
    user = walk.only_use(pool.outputs[0])
    while user is not None and user.domain == "" and user.op_type in _MOVERS and user.graph is pool.graph:
        user = walk.only_use(user.outputs[0])
    return user is not None and user.op_type == "QuantizeLinear" and user.graph is pool.graph


def join_gelus(builder: Builder) -> None:
    """Write a Gelu that an exporter spelled out as one operator where a DQ gives what it reads.

    ONNX Runtime joins such nodes in a float model. Between quantized layers it gives every reader of a DQ a DQ of its
    own before it looks, and then finds nothing to join.
    """
    for graph in list(walk.all_graphs(builder.graph)):
        for match in patterns.find(graph, (patterns.GELU,)):
            last, x = match.nodes[-1], match.values["x"]
            source = x.producer()
            if match.shared or source is None or source.op_type != "DequantizeLinear" or x.dtype != ir.DataType.FLOAT:
                continue
            if any(node.op_type == "Cast" for node in match.nodes):
                continue
            has_erf = any(node.op_type == "Erf" for node in match.nodes)
            output = last.outputs[0]
            joined = builder.node(
                "Gelu" if has_erf else "FastGelu", [x], builder.names.value(f"{output.name}_joined"), name=last.name,
                domain=MICROSOFT, dtype=ir.DataType.FLOAT, shape=output.shape,
            )  # fmt: skip
            graph.insert_before(last, [joined])
            edit.take_over(output, joined.outputs[0])
            read = [value for node in match.nodes for value in node.inputs]
            graph.remove(match.nodes, safe=True)
            for value in read:
                edit.drop_unused_initializer(value)
