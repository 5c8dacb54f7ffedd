"""Plan nodes whose weights are packed and whose activations stay float."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxq.core.affine import quantize
from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerAxis, PerBlock, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.reading.ops import STORABLE, why_left
from onnxq.graph.types import FLOAT16, FLOAT32, Node
from onnxq.plan.decisions import STORAGE, WEIGHT, NodePlan
from onnxq.plan.placement.select import Choice
from onnxq.plan.weights.constants import Weights
from onnxq.plan.weights.effort import too_large
from onnxq.plan.weights.tables import BNB4, LOOKUP, PACKED_OPSET, codebook_rewrite, plan_codebook
from onnxq.recipe.presets import PRESETS, Preset
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.rounding import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA
from onnxq.stats.statistics import InputStatistics
from onnxq.targets import Target

NBITS, BLOCKED, GATHERED, EXPERTS = "MatMulNBits", "DequantizeLinear", "GatherBlockQuantized", "QMoE"
"""Forms of a weight in blocks: what unpacks it."""

MIN_ELEMENTS = 1024
"""Smaller weights stay as they are: scales and a kernel of their own would outweigh the saving."""
MIN_IN, MIN_OUT = 32, 16
"""Inputs and outputs below which unpacking costs more time than the product itself."""
MIN_8BIT = 256
"""Inputs or outputs below which 8 bits dequantized at load are faster than 8 bits unpacked at each inference."""

SYMMETRIC_FROM = 4
"""Bits from which on grids are symmetric by default; of the few levels of a coarser one that would waste too many."""

BLOCKS = (16, 32, 64, 128, 256)
BLOCKS_2BIT = (32, 64, 128)
"""Block sizes that MatMulNBits has fast kernels for; at 2 bits it has none at 16 and 256."""

FAST_LEVEL = 4
"""Accuracy level of MatMulNBits where nothing is said: it rounds activations to int8 inside the kernel."""

_STORAGE = {2: QType.UINT2, 3: QType.UINT4, 4: QType.UINT4, 8: QType.UINT8}
_OPSETS = {2: 25, 3: 21, 4: 21, 8: 21}
"""Operator sets that have a DequantizeLinear in blocks of these bits."""
FLOAT8_OPSET = 19
"""The operator set from which on Q and DQ know float8."""

_DEFAULT_BLOCK = {2: 32, 3: 32, 4: 32, 8: 128}
_SMALLEST_HALF = float(np.finfo(np.float16).tiny)


def plan_weight(
    node: Node, preset: Preset, recipe: Recipe, target: Target, choice: Choice, opset: int, *, inside: bool = False
) -> NodePlan | str:
    """What becomes of a node whose preset packs weights.

    Args:
        node: in the prepared model.
        preset: its preset; ``weights`` is "blocks" or "codebook".
        recipe: the user's choices.
        target: what the runtime can do.
        choice: what the user said of this node.
        opset: operator set of the model.
        inside: the node lies in the body of an If, Loop or Scan.

    Returns:
        Its plan, with action `WEIGHT`; or the reason why it does not have packed weights, which may still be stored.

    Raises:
        RecipeError: a block size or accuracy level that the form of the node does not have.
    """
    if preset.weights == "codebook":
        return plan_codebook(node, preset, recipe, choice, opset)
    if node.domain not in ("", "ai.onnx") or node.op_type not in (*STORABLE, "Gather"):
        return "activations stay float32 with this preset"
    if node.op_type not in ("MatMul", "Gemm", "Gather"):
        return f"no kernel reads packed weights of {node.op_type}"
    matrix = matrix_of(node)
    if isinstance(matrix, str):
        return matrix
    bits = choice.rule.bits or recipe.bits or preset.bits
    if node.op_type == "Gather":
        return _plan_table(node, matrix, max(bits, 4), recipe, choice)
    outputs, inputs = matrix.shape
    asked = recipe.accuracy_level if choice.rule.accuracy_level is None else choice.rule.accuracy_level
    level = FAST_LEVEL if asked is None else asked
    insisted = choice.insisted or choice.rule.bits is not None or recipe.bits is not None
    if matrix.size < MIN_ELEMENTS and not choice.insisted:
        return f"its weight has fewer than {MIN_ELEMENTS} elements, so that packing it would save nothing"
    if not insisted and (inputs < MIN_IN or outputs < MIN_OUT):
        return f"its weight of {inputs} × {outputs} is so small that unpacking it takes longer than multiplying"
    if not insisted and bits == 8 and min(inputs, outputs) < MIN_8BIT:
        return f"its weight of {inputs} × {outputs} is faster in 8 bits that are dequantized at load"
    if not insisted and bits == 8 and level != FAST_LEVEL:
        return (
            f"MatMulNBits in 8 bits is slower than float at accuracy level {level}; dequantized at load it is as exact"
        )
    spec = block_spec(node, matrix.shape, bits, recipe, choice)
    form, why = _form(node, bits, outputs, recipe, opset)
    if form == BLOCKED and inside:
        form, why = NBITS, "onnxruntime fuses DequantizeLinear and MatMul wrongly in subgraphs of If, Loop and Scan"
    if form == BLOCKED and level != FAST_LEVEL:
        raise RecipeError(
            f"--accuracy-level {level}: {node.op_type} {node.name!r} in the QDQ format takes its level from the "
            "session option session.qdq_matmulnbits_accuracy_level, which is 4 by default; use --format qoperator"
        )
    notes = [why] if why else []
    if bits == 3:
        notes.append("3 bits: 8 levels on the grid of 4-bit storage")
    algorithm = choice.rule.algorithm or recipe.algorithm or "rtn"
    too_much = too_large(inputs, recipe) if algorithm in ALGORITHMS_WITH_DATA else ""
    if too_much:
        notes.append(f"{too_much}: rounded by {ALGORITHM_WITHOUT_DATA} instead of {algorithm}")
        algorithm = ALGORITHM_WITHOUT_DATA
    return NodePlan(
        node.name or "",
        node.op_type,
        WEIGHT,
        "; ".join(notes),
        weights={weight_position(node): spec},
        form=form,
        algorithm=algorithm,
        accuracy_level=level,
    )


def _plan_table(node: Node, matrix: Array, bits: int, recipe: Recipe, choice: Choice) -> NodePlan | str:
    """An embedding: rows are looked up in packed form."""
    width = matrix.shape[1]
    if matrix.size < MIN_ELEMENTS:
        return f"its table has fewer than {MIN_ELEMENTS} elements, so that packing it would save nothing"
    if width < BLOCKS[0]:
        return f"its rows of {width} elements are shorter than the smallest block, {BLOCKS[0]}"
    if bits < 8 and width % 2:
        bits = 8  # rows of the packed table are whole bytes
    spec = block_spec(node, matrix.shape, bits, recipe, choice)
    notes = ["rows are looked up by GatherBlockQuantized"] if recipe.format == "qdq" else []
    if bits > (choice.rule.bits or recipe.bits or bits):
        notes.append(f"embeddings have {bits} bits at least")
    return NodePlan(
        node.name or "",
        node.op_type,
        WEIGHT,
        "; ".join(notes),
        weights={0: spec},
        form=GATHERED,
        algorithm=table_algorithm(recipe, choice),
    )


def table_algorithm(recipe: Recipe, choice: Choice) -> str:
    """How an embedding is rounded: no input is multiplied with it, so that data says nothing of it."""
    asked = choice.rule.algorithm or recipe.algorithm or "rtn"
    return ALGORITHM_WITHOUT_DATA if asked in ALGORITHMS_WITH_DATA else asked


def notes_on(nodes: Iterable[NodePlan], recipe: Recipe) -> tuple[str, ...]:
    """What the user should know of a plan whose preset packs weights in blocks."""
    preset, planned = PRESETS[recipe.preset], list(nodes)
    heavy = [node for node in planned if "--max-memory" in node.reason]
    if heavy:
        more = f" and {len(heavy) - 1} more" if len(heavy) > 1 else ""
        return (f"layer {heavy[0].name!r}{more}: {heavy[0].reason}",)
    bits = recipe.bits or preset.bits
    stored = sum(node.action == STORAGE for node in planned)
    if preset.weights != "blocks" or bits >= 8 or not stored or any(node.action == WEIGHT for node in planned):
        return ()
    return (
        f"--preset {recipe.preset}: no layer of this model has a kernel for packed weights, so that the weights of "
        f"{stored} are stored in 8 bits; --preset lut4 stores 4, at float speed",
    )


def needed_opset(recipe: Recipe) -> int:
    """The operator set that the forms of a recipe need; 0 where any will do."""
    needed = 0
    for rule in (None, *recipe.rules):
        preset = PRESETS[(rule.preset if rule is not None else None) or recipe.preset]
        bits = (rule.bits if rule is not None else None) or recipe.bits or preset.bits
        if preset.weights == "blocks" and recipe.format == "qdq":
            needed = max(needed, _OPSETS[bits if recipe.target_bits is None else 2])
        if preset.float8:
            needed = max(needed, FLOAT8_OPSET)
        if preset.weights == "codebook" and preset.bits == 4:
            needed = max(needed, PACKED_OPSET)
    return needed


def block_spec(node: Node, shape: tuple[int, int], bits: int, recipe: Recipe, choice: Choice) -> TensorSpec:
    """The grid of a weight in blocks, (out, in).

    Raises:
        RecipeError: the block size has no kernel.
    """
    size = recipe.block_size if choice.rule.block_size is None else choice.rule.block_size
    allowed = block_sizes(bits)
    if size is None:  # a block that is longer than the rows would be filled up with zeros
        size = min(_DEFAULT_BLOCK[bits], next((block for block in allowed if block >= shape[1]), allowed[-1]))
    if size and size not in allowed:
        raise RecipeError(
            f"{node.op_type} {node.name!r}: block size {size} has no kernel at {bits} bits (K = {shape[1]}); use "
            f"{', '.join(map(str, allowed))}, or 0 for one scale a column"
        )
    return grid(bits, size, recipe)


def block_sizes(bits: int) -> tuple[int, ...]:
    """Block sizes that have kernels."""
    return BLOCKS_2BIT if bits == 2 else BLOCKS


def grid(bits: int, size: int, recipe: Recipe) -> TensorSpec:
    """The grid of so many bits in blocks of ``size`` along the inputs, or with one scale a row where that is 0."""
    symmetric = recipe.symmetric if recipe.symmetric is not None else bits >= SYMMETRIC_FROM
    return TensorSpec(
        _STORAGE[bits],
        PerBlock(1, size) if size else PerAxis(0),
        symmetric=symmetric,
        grid_bits=3 if bits == 3 else None,
        # of 256 levels one more or less does not show
        mirrored=symmetric and bits < 8,
    )


def _form(node: Node, bits: int, outputs: int, recipe: Recipe, opset: int) -> tuple[str, str]:
    """The form of a MatMul or Gemm, and why where it is not the one asked for."""
    if recipe.format != "qdq":
        return NBITS, ""
    needed = _OPSETS[bits]
    if opset < needed:
        return NBITS, f"blocks in DequantizeLinear need operator set {needed}, and the model could not be raised to it"
    if bits == 2 and outputs % 4:
        return NBITS, f"onnxruntime fuses DequantizeLinear in 2 bits wrongly unless 4 divides N, and N = {outputs}"
    clamp = _clamp_behind(node)
    if clamp is not None:
        return NBITS, f"onnxruntime does not fuse DequantizeLinear and MatMul in front of {clamp.op_type}"
    weight, bias = node.inputs[1], walk.const_array(walk.input_at(node, 2))
    if weight is not None and len(weight.consumers()) > 1:
        return NBITS, "onnxruntime joins the DequantizeLinear nodes of a shared weight and does not fuse one of several"
    if (
        node.op_type == "Gemm"
        and walk.input_at(node, 2) is not None
        and (bias is None or bias.size not in (1, outputs))
    ):
        return NBITS, "onnxruntime joins MatMul and a bias of several rows to a float Gemm"
    return BLOCKED, ""


def _clamp_behind(node: Node) -> Node | None:
    """The Relu or Clip that keeps ONNX Runtime (seen in 1.32) from fusing a DequantizeLinear with the node."""
    user = walk.only_use(node.outputs[0])
    if (
        user is not None
        and user.op_type == "Add"
        and node.op_type == "MatMul"
        and walk.rank(node.inputs[0]) in (2, None)
    ):
        user = walk.only_use(user.outputs[0])  # in two dimensions MatMul and Add become a Gemm first
    return user if user is not None and user.op_type in ("Relu", "Clip") else None


def weight_position(node: Node) -> int:
    """The input that holds the weight."""
    return 0 if node.op_type == "Gather" else 1


def matrix_of(node: Node) -> Array | str:
    """The constant of a MatMul, Gemm or Gather as (out, in), or (rows, width); else why it has none.

    A Gather of matrices from a stack, as of the experts of a mixture, has the rows of all of them.

    The float array is not copied; it may be a transposed view.
    """
    position = weight_position(node)
    value = walk.input_at(node, position)
    array = walk.const_array(value)
    if value is None or array is None:
        if node.op_type == "Gather":
            return "its table is not constant"
        if (left := why_left(node)) is not None:
            return left
        return "neither of its operands is constant: there is no weight to pack"
    if value.dtype not in (FLOAT32, FLOAT16):
        return f"its weight is {value.dtype.name.lower() if value.dtype else 'of unknown type'}, not float32 or float16"
    if node.op_type == "Gather":
        if array.ndim < 2 or array.size == 0 or walk.attr_int(node, "axis"):
            return f"its table of shape {array.shape} is not looked up by rows"
        return array.reshape(-1, array.shape[-1])  # of stacked matrices (experts) each row is a row
    if array.ndim != 2 or array.size == 0:
        return f"its weight of shape {array.shape} is no matrix, and kernels read packed matrices"
    if node.op_type == "Gemm" and walk.attr_int(node, "transA"):
        return "transA = 1: no kernel with packed weights transposes its input"
    if node.op_type == "Gemm" and _unfoldable_bias(node):
        return "beta is not 1 and its bias is not constant"
    return array if walk.outputs_first(node) else array.T


def _unfoldable_bias(node: Node) -> bool:
    bias = walk.input_at(node, 2)
    return bias is not None and walk.const_array(bias) is None and walk.attr_float(node, "beta", 1.0) != 1.0


def weight_rewrite(node: Node, plan: NodePlan, weights: Weights, statistics: InputStatistics | None) -> WeightRewrite:
    """Quantize the constants of a node with a `WEIGHT` plan.

    A matrix that is an embedding too is rounded as that is, so that the two share one tensor.

    Args:
        node: the node in the prepared model.
        plan: what becomes of it.
        weights: what is quantized already.
        statistics: of the input that the weight is multiplied with; None where the algorithm needs none.

    Raises:
        CalibrationError: the statistics do not fit the weight.
    """
    if plan.form in (BNB4, LOOKUP):
        return codebook_rewrite(node, plan, weights)
    (position, spec), *_ = plan.weights.items()
    matrix = matrix_of(node)
    assert not isinstance(matrix, str)
    algorithm = plan.algorithm
    if algorithm in ALGORITHMS_WITH_DATA and weights.packed.find(matrix, spec, ALGORITHM_WITHOUT_DATA) is not None:
        algorithm = ALGORITHM_WITHOUT_DATA
    tensor = packed_tensor(matrix, spec, algorithm, weights, statistics)
    return WeightRewrite(plan.form, {position: tensor}, plan.accuracy_level, algorithm=algorithm)


def packed_tensor(
    matrix: Array, spec: TensorSpec, algorithm: str, weights: Weights, statistics: InputStatistics | None
) -> QTensor:
    """Quantize a matrix, or find it; scales of a float16 weight are float16 numbers.

    Args:
        matrix: float32 or float16, (out, in).
        spec: its grid.
        algorithm: how it is rounded.
        weights: what is quantized already.
        statistics: of the input that it is multiplied with; None where the algorithm needs none.

    Raises:
        CalibrationError: the statistics do not fit the weight.
    """
    tensor = weights.packed.of(matrix, spec, algorithm, statistics)
    if matrix.dtype != np.float16:
        return tensor
    half: QTensor | None = weights.packed.find(matrix, spec, algorithm, np.float16)
    if half is None:
        half = weights.packed.add(matrix, _with_half_scales(tensor, matrix, algorithm), spec, algorithm, np.float16)
    return half


def _with_half_scales(tensor: QTensor, matrix: Array, algorithm: str) -> QTensor:
    """Scales as a float16 model takes them; what is rounded to nearest is rounded to the grid of the new scales."""
    scale = tensor.params.scale
    half = np.copysign(np.maximum(np.abs(scale).astype(np.float16), np.float16(_SMALLEST_HALF)), scale)
    params = QParams(tensor.params.spec, half.astype(np.float32), tensor.params.zero_point)
    values = quantize(np.ascontiguousarray(matrix, np.float32), params) if algorithm == "rtn" else tensor.values
    return QTensor(values, params)
