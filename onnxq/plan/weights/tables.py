"""Plan weights that are stored as indices into a table: NF4, FP4 and k-means."""

from __future__ import annotations

import numpy as np

from onnxq.core.codebook import CodebookTensor
from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.reading.ops import STORABLE
from onnxq.graph.types import FLOAT16, FLOAT32, Node
from onnxq.plan.decisions import WEIGHT, NodePlan
from onnxq.plan.placement.select import Choice
from onnxq.plan.weights.constants import Weights
from onnxq.plan.weights.weight_algorithms import quantize_by_table
from onnxq.recipe.presets import Preset
from onnxq.recipe.recipe import Recipe

BNB4, LOOKUP = "MatMulBnb4", "Gather"
"""What looks indices up: a kernel at each inference, or a Gather that the runtime computes once, at load."""

MIN_ELEMENTS = 1024
"""Smaller weights stay as they are: table and scales would outweigh the saving."""
MIN_ROW = 128
"""Elements of a row from which on it has a table of 16 entries of its own."""
PACKED_OPSET = 21
"""Operator set from which on indices can have 4 bits."""

_FIXED_BLOCK = 64


def plan_codebook(node: Node, preset: Preset, recipe: Recipe, choice: Choice, opset: int) -> NodePlan | str:
    """What becomes of a node whose preset stores indices into a table; arguments and result as for `plan_weight`."""
    positions = STORABLE.get(node.op_type, (0,) if node.op_type == "Gather" else ())
    if node.domain not in ("", "ai.onnx") or not positions or preset.codebook is None:
        return "activations stay float32 with this preset"
    fixed = preset.codebook != "kmeans"
    kernel = fixed and recipe.format != "qdq" and has_kernel(node)
    bits = preset.bits if opset >= PACKED_OPSET or kernel else 8
    size = recipe.block_size if choice.rule.block_size is None else choice.rule.block_size
    per_channel = recipe.per_channel if choice.rule.per_channel is None else choice.rule.per_channel
    specs: dict[int, TensorSpec] = {}
    for position in positions:
        matrix = matrix_at(node, position)
        if matrix is None or matrix.size < MIN_ELEMENTS:
            continue
        block = (_FIXED_BLOCK if fixed else 0) if size is None else size
        granularity = _granularity(matrix.shape[1], block, fixed, per_channel and bits == 4, kernel)
        specs[position] = TensorSpec(QType.UINT4 if bits == 4 else QType.UINT8, granularity)
    if not specs:
        return f"it has no constant float weight of {MIN_ELEMENTS} elements or more"
    if kernel and size == 0:
        kernel = False  # MatMulBnb4 has blocks of 256 at most
    notes = []
    if kernel:
        notes.append(
            "MatMulBnb4 is slower than float for inputs of few rows; --format qdq looks the table up at load instead"
        )
    elif bits != preset.bits:
        notes.append(f"indices of 4 bits need operator set {PACKED_OPSET}, so that they take 8")
    return NodePlan(
        node.name or "", node.op_type, WEIGHT, "; ".join(notes), weights=specs, form=BNB4 if kernel else LOOKUP,
        algorithm=preset.codebook,
    )  # fmt: skip


def _granularity(width: int, block: int, fixed: bool, per_channel: bool, kernel: bool) -> Granularity:
    """What shares a scale or, where tables are fitted, a table."""
    if block and (kernel or block < width):
        return PerBlock(1, block)
    if fixed or (per_channel and width >= MIN_ROW):
        return PerAxis(0)
    return PerTensor()


def has_kernel(node: Node) -> bool:
    """Whether MatMulBnb4 can stand for a node."""
    if node.op_type == "Gemm":
        bias = walk.input_at(node, 2)
        odd = bias is not None and walk.const_array(bias) is None and walk.attr_float(node, "beta", 1.0) != 1.0
        if walk.attr_int(node, "transA") or odd:
            return False
    elif node.op_type != "MatMul":
        return False
    value = walk.input_at(node, 1)
    array = walk.const_array(value)
    return array is not None and array.ndim == 2 and value is not None and value.dtype == FLOAT32


def matrix_at(node: Node, position: int) -> Array | None:
    """A constant weight as a matrix whose rows can have scales or tables of their own; None where there is none.

    Outputs are rows for MatMul, Gemm and Conv; the float array is not copied.
    """
    value = walk.input_at(node, position)
    array = walk.const_array(value)
    if array is None or value is None or value.dtype not in (FLOAT32, FLOAT16) or array.ndim < 2 or array.size == 0:
        return None
    if is_turned(node, array):
        return np.transpose(array)
    matrix: Array = np.reshape(array, (-1, array.shape[-1]) if _by_last_axis(node) else (array.shape[0], -1))
    return matrix


def is_turned(node: Node, array: Array) -> bool:
    """Whether rows of the matrix are columns of the weight."""
    if array.ndim != 2:
        return False
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not walk.outputs_first(node))


def _by_last_axis(node: Node) -> bool:
    return node.op_type in ("LSTM", "GRU", "RNN", "MatMul")


def codebook_rewrite(node: Node, plan: NodePlan, weights: Weights) -> WeightRewrite:
    """Quantize the constants of a node with a `WEIGHT` plan for a table."""
    tensors: dict[int, CodebookTensor] = {}
    for position, spec in plan.weights.items():
        matrix = matrix_at(node, position)
        assert matrix is not None
        how = (plan.algorithm, plan.form, spec)
        found = weights.packed.find(matrix, *how)
        if found is None:
            plain = np.ascontiguousarray(matrix, np.float32)
            if isinstance(spec.granularity, PerBlock) and plain.shape[1] % spec.granularity.size:
                plain = plain.reshape(1, -1)  # blocks run on over the ends of rows, as MatMulBnb4 counts them
            table = quantize_by_table(plain, plan.algorithm, spec.granularity, spec.dtype.bits)
            found = weights.packed.add(matrix, table, *how)
        tensors[position] = found
    return WeightRewrite(plan.form, {}, codebooks=tensors, algorithm=plan.algorithm)
