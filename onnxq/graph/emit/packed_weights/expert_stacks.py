"""QMoE in the place of MoE: the matrices of all experts packed, in blocks along their inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.core.packing import pack
from onnxq.core.spec import PerBlock, QTensor
from onnxq.graph import walk
from onnxq.graph.emit import common
from onnxq.graph.emit.packed_weights.replace import Replacer
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.experts import STACKS

ZERO_POINTS = 11
"""Input of QMoE with the zero points of the first stack; those of the others follow."""

WEIGHTS = {2: 2, 4: 5, 6: 8}
"""Input of QMoE that holds the stack of this input of MoE; its scales and its bias follow."""


def emit_experts(emitter: Replacer, node: ir.Node, change: WeightRewrite) -> None:
    """Make a node a QMoE.

    References:
        ONNX Runtime, contrib operator QMoE: weights (experts, out, bytes), first of a byte in its lowest bits.
    """
    old = list(node.inputs)
    inputs: list[ir.Value | None] = [*old[:2], *[None] * (ZERO_POINTS + len(STACKS) - 2)]
    spec = next(iter(change.constants.values())).params.spec
    for index, (position, into) in enumerate(WEIGHTS.items()):
        tensor = change.constants.get(position)
        if tensor is not None:
            parts = _parts(emitter, node, position, tensor)
            inputs[into], inputs[into + 1] = parts[:2]
            if len(parts) > 2:
                inputs[ZERO_POINTS + index] = parts[2]
        inputs[into + 2] = walk.input_at(node, position + 1)
    while inputs[-1] is None:
        inputs.pop()
    attributes = [*node.attributes.values(), ir.AttrInt64("expert_weight_bits", spec.dtype.bits)]
    if isinstance(spec.granularity, PerBlock):
        attributes.append(ir.AttrInt64("block_size", spec.granularity.size))
    if change.accuracy_level:
        attributes.append(ir.AttrInt64("accuracy_level", change.accuracy_level))
    emitter.replace(node, "QMoE", inputs, attributes, None)
    common.drop_inputs(old)


def _parts(emitter: Replacer, node: ir.Node, position: int, tensor: QTensor) -> list[ir.Value]:
    """Integers, scales and, where there are any, zero points of a stack."""
    original = node.inputs[position]
    assert original is not None and original.shape is not None and original.dtype is not None
    experts = int(original.shape.numpy()[0])
    spec, dtype = tensor.params.spec, original.dtype.numpy()
    bits = spec.dtype.bits
    is_blocked = isinstance(spec.granularity, PerBlock)

    def stacked(array: Array) -> Array:
        """(experts, out, …), without the last axis where a matrix has one number a row."""
        whole = array.reshape(experts, -1, array.shape[-1])
        return whole if is_blocked else whole[..., 0]

    shift = (1 << (bits - 1)) - spec.midpoint if spec.symmetric else 0
    makes: dict[str, Callable[[], Array]] = {
        "packed": lambda: pack(tensor.values.astype(np.uint8) + np.uint8(shift), bits).reshape(
            experts, -1, tensor.values.shape[1] * bits // 8
        ),
        "scale": lambda: stacked(tensor.params.scale.astype(dtype)),
    }
    if not spec.symmetric:
        makes["zero_point"] = lambda: pack(stacked(tensor.params.zero_point.astype(np.uint8)), bits)
    return [emitter.once(tensor, what, original, make, f"{experts} experts") for what, make in makes.items()]
