"""The operator table: what quantization needs to know about each operator, one row an operator.

A row says which inputs carry activations, which one the weight and the bias, how the output gets its parameters and
which integer operator of ONNX Runtime stands for it. What a runtime can do with a row, and how fast, is the target's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk

MICROSOFT = "com.microsoft"


class Kind(enum.Enum):
    """How an operator treats the values it gets."""

    WEIGHTED = "weighted"
    """Multiplies and accumulates (Conv, Gemm, MatMul): the work that integers speed up."""
    REQUANTIZING = "requantizing"
    """Computes new numbers; its output has parameters of its own."""
    CLAMPING = "clamping"
    """Relu and Clip: the output's quantized range can do their work."""
    PASSING = "passing"
    """Moves or selects elements; its outputs share the parameters of its first input."""
    READING = "reading"
    """Reads integers but gives no quantized value (ArgMax)."""


Refusal = Callable[[ir.Node], str | None]
"""Says why this one node cannot be quantized, or None where it can."""


@dataclass(frozen=True)
class OpRow:
    """One operator.

    Attributes:
        kind: how it treats its values.
        activations: positions of the inputs that carry activations; None means all of them.
        weight: position of the input that is a weight where it is constant.
        bias: position of the bias input.
        qoperator: (domain, type) of the integer operator; None where the operator itself takes integers.
        native: emitted on integers in the QDQ format as well, because the runtime keeps DQ → op → Q on floats.
        takes_integers: the operator itself has an 8-bit kernel in every supported runtime; where not, the QOperator
            format puts it between DQ and Q.
        fixed_range: (low, high) that the output has by definition.
        since: operator set from which on the node can stand between QuantizeLinear nodes, or take 8-bit integers.
        refuse: why a node cannot be quantized whatever the target.
    """

    kind: Kind
    activations: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    qoperator: tuple[str, str] | None = None
    native: bool = False
    takes_integers: bool = True
    fixed_range: tuple[float, float] | None = None
    since: int = 10
    refuse: Refusal | None = None


def _refuse_gemm(node: ir.Node) -> str | None:
    if walk.attr_float(node, "alpha", 1.0) != 1.0 or walk.attr_float(node, "beta", 1.0) != 1.0:
        return "alpha or beta is not 1, which the integer kernel does not take"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = walk.const_array(node.inputs[2])
        if bias is None:
            return "its bias is not constant"
        if not has_bias_by_column(node):
            return f"its bias of shape {bias.shape} is not one value a column"
    return None


def has_bias_by_column(node: ir.Node) -> bool:
    """Whether the constant bias of a Gemm is one value a column, as far as its weight tells."""
    bias, weight = walk.const_array(walk.input_at(node, 2)), walk.const_array(node.inputs[1])
    if bias is None or weight is None or weight.ndim != 2:
        return bias is not None
    columns = weight.shape[0] if walk.outputs_first(node) else weight.shape[1]
    return bias.size == columns and (not bias.ndim or bias.shape[-1] == columns)


def _refuse_conv(node: ir.Node) -> str | None:
    if len(node.inputs) > 2 and node.inputs[2] is not None and walk.const_array(node.inputs[2]) is None:
        return "its bias is not constant"
    return None


def _refuse_several_outputs(node: ir.Node) -> str | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its second output is used"
    return None


def _refuse_resize(node: ir.Node) -> str | None:
    mode = walk.attr_str(node, "mode", "nearest")
    if mode != "nearest":
        return f"Resize in mode {mode!r} interpolates; only nearest runs on integers"
    if walk.attr_str(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it fills what lies outside the image with a real number"
    return None


def _refuse_pad(node: ir.Node) -> str | None:
    if walk.attr_str(node, "mode", "constant") != "constant" or walk.input_at(node, 2) is None:
        return None
    value = walk.const_array(node.inputs[2])
    if value is None:
        return "its padding value is not constant"
    return "it pads with a number that may lie outside the range of its input" if value.any() else None


def _refuse_clip(node: ir.Node) -> str | None:
    bounds = [value for value in node.inputs[1:3] if value is not None]
    if any(walk.const_array(value) is None for value in bounds):
        return "its bounds are not constant"
    return None


def _refuse_average_pool(node: ir.Node) -> str | None:
    if any(d != 1 for d in walk.attr_ints(node, "dilations", [])):
        return "dilated AveragePool has no integer kernel"
    if walk.attr_int(node, "ceil_mode") and walk.attr_int(node, "count_include_pad"):
        return "with ceil_mode and count_include_pad the integer kernel divides by another number than the float one"
    return None


OPS: dict[str, OpRow] = {
    # Multiply and accumulate.
    "Conv": OpRow(Kind.WEIGHTED, weight=1, bias=2, qoperator=("", "QLinearConv"), refuse=_refuse_conv),
    "Gemm": OpRow(Kind.WEIGHTED, weight=1, bias=2, qoperator=(MICROSOFT, "QGemm"), refuse=_refuse_gemm),
    "MatMul": OpRow(Kind.WEIGHTED, activations=(0, 1), weight=1, qoperator=("", "QLinearMatMul")),
    # New numbers.
    "Add": OpRow(Kind.REQUANTIZING, activations=(0, 1), qoperator=(MICROSOFT, "QLinearAdd")),
    "Mul": OpRow(Kind.REQUANTIZING, activations=(0, 1), qoperator=(MICROSOFT, "QLinearMul")),
    "Concat": OpRow(Kind.REQUANTIZING, activations=None, qoperator=(MICROSOFT, "QLinearConcat")),
    "AveragePool": OpRow(Kind.REQUANTIZING, qoperator=(MICROSOFT, "QLinearAveragePool"), refuse=_refuse_average_pool),
    "GlobalAveragePool": OpRow(Kind.REQUANTIZING, qoperator=(MICROSOFT, "QLinearGlobalAveragePool")),
    "LeakyRelu": OpRow(Kind.REQUANTIZING, qoperator=(MICROSOFT, "QLinearLeakyRelu")),
    "Sigmoid": OpRow(Kind.REQUANTIZING, qoperator=(MICROSOFT, "QLinearSigmoid")),
    "Softmax": OpRow(Kind.REQUANTIZING, qoperator=(MICROSOFT, "QLinearSoftmax"), fixed_range=(0.0, 1.0)),
    "Where": OpRow(Kind.REQUANTIZING, activations=(1, 2), qoperator=(MICROSOFT, "QLinearWhere")),
    # Clamping.
    "Relu": OpRow(Kind.CLAMPING),
    "Clip": OpRow(Kind.CLAMPING, refuse=_refuse_clip),
    # The same numbers elsewhere.
    "MaxPool": OpRow(Kind.PASSING, since=12, refuse=_refuse_several_outputs),
    "Resize": OpRow(Kind.PASSING, refuse=_refuse_resize),
    "Reshape": OpRow(Kind.PASSING),
    "Transpose": OpRow(Kind.PASSING),
    "Squeeze": OpRow(Kind.PASSING),
    "Unsqueeze": OpRow(Kind.PASSING),
    "Flatten": OpRow(Kind.PASSING),
    "Slice": OpRow(Kind.PASSING),
    "Split": OpRow(Kind.PASSING),
    "Gather": OpRow(Kind.PASSING),
    "GatherElements": OpRow(Kind.PASSING, since=11),
    "Expand": OpRow(Kind.PASSING),
    "Tile": OpRow(Kind.PASSING),
    "DepthToSpace": OpRow(Kind.PASSING, takes_integers=False),
    "SpaceToDepth": OpRow(Kind.PASSING, takes_integers=False),
    "ReduceMax": OpRow(Kind.PASSING, since=12),
    "Pad": OpRow(Kind.PASSING, native=True, refuse=_refuse_pad),
    # Integers in, something else out.
    "ArgMax": OpRow(Kind.READING),
}

ROW = "onnxq.row"
"""Key of a node's metadata for a row that it has instead of its operator's (see `onnxq.graph.emit.wrapped`)."""

_SMALLEST_LEFT, _LEFT_WORK = 1024, 16.0
"""Elements of a constant on the left, and its rows × columns ÷ (rows + columns), from which integers pay there."""

KEEP_FLOAT = "onnxq.keep_float"
"""Key of a node's metadata for why it has to stay float; for nodes that a pass has added."""

EDGE = "onnxq.edge"
"""Key of a node's metadata: a Cast at an input or output of the graph, which stands for none of the user's nodes."""

STORABLE: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (1, 0),
    "Einsum": (0, 1, 2, 3),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
"""Operators whose weights can be stored as integers and dequantized at load, and these weights' input positions."""


_GEMM_ACTIVATIONS = frozenset(
    "Elu HardSigmoid LeakyRelu Relu Selu Sigmoid Softplus Softsign Tanh ThresholdedRelu".split()
)


def gives_float(node: ir.Node) -> bool:
    """Whether the integer kernel of a node can scale its products back to float by itself.

    Gemm in front of an activation cannot: ONNX Runtime joins the two before it looks for integers, and computes both in
    float with the weight dequantized at every inference.
    """
    if node.op_type == "MatMul":
        return True
    if node.op_type != "Gemm":
        return False
    user = walk.only_use(node.outputs[0])
    return user is None or user.op_type not in _GEMM_ACTIVATIONS


def is_pointwise(node: ir.Node) -> bool:
    """Whether a Conv multiplies the channels at each position by one constant matrix."""
    shape = walk.dims(walk.input_at(node, 1)) if node.op_type == "Conv" and node.domain in ("", "ai.onnx") else None
    if shape is None or len(shape) < 3 or any(length != 1 for length in shape[2:]):
        return False
    if not walk.is_constant(node.inputs[1]) or walk.attr_int(node, "group", 1) != 1:
        return False
    return max(walk.attr_ints(node, "strides", (1,))) == 1 and not any(walk.attr_ints(node, "pads", (0,)))


def bias_behind(node: ir.Node) -> ir.Node | None:
    """The Add behind a MatMul with a constant matrix that adds one constant a column, and nothing else."""
    weight = walk.const_array(walk.input_at(node, 1))
    user = walk.only_use(node.outputs[0])
    if node.op_type != "MatMul" or weight is None or weight.ndim != 2 or user is None or user.graph is not node.graph:
        return None
    if user.op_type != "Add" or user.domain not in ("", "ai.onnx"):
        return None
    bias = next((array for value in user.inputs if (array := walk.const_array(value)) is not None), None)
    fits = bias is not None and bias.shape == weight.shape[1:] and bias.dtype == weight.dtype
    return user if fits else None


def why_left(node: ir.Node) -> str | None:
    """Why the constant of a MatMul stays on its left side, where no kernel takes integers; None where it has none."""
    left = walk.const_array(walk.input_at(node, 0)) if node.op_type == "MatMul" else None
    if left is None or walk.is_constant(walk.input_at(node, 1)):
        return None
    if left.ndim < 2:
        return "its left operand is a constant vector, and one row is multiplied faster in float"
    if not pays_turned(left):
        return "its left operand is constant, and so small that turning the product around costs what integers save"
    return "its left operand is constant; kernels for integers take the constant on the right"


def pays_turned(left: Array) -> bool:
    """Whether integers save more on a product with such a left side than two transpositions take."""
    rows, columns = left.shape[-2:]
    return left.size >= _SMALLEST_LEFT and rows * columns >= _LEFT_WORK * (rows + columns)


def scalings_beside(node: ir.Node) -> list[ir.Node]:
    """Products with one number right before or behind a MatMul, which the runtime joins with it."""
    before = [value.producer() for value in node.inputs if value is not None and walk.only_use(value) is node]
    found = [*before, walk.only_use(node.outputs[0])]
    return [n for n in found if n is not None and n.op_type in ("Mul", "Div") and n.domain == "" and _by_number(n)]


def _by_number(node: ir.Node) -> bool:
    arrays = [walk.const_array(value) for value in node.inputs]
    candidates = arrays if node.op_type == "Mul" else arrays[1:]
    return any(array is not None and array.size == 1 for array in candidates)


def row_of(node: ir.Node) -> OpRow | None:
    """The row of a node: its own, else that of a standard operator, else None."""
    own = node.meta.get(ROW)
    if isinstance(own, OpRow):
        return own
    return OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def row_in(node: ir.Node) -> OpRow:
    """The row of a node that has one."""
    row = row_of(node)
    assert row is not None, node.op_type
    return row


def activation_positions(node: ir.Node, row: OpRow) -> list[int]:
    """Input positions that carry activations of this node, without its weight."""
    positions: Iterable[int] = range(len(node.inputs)) if row.activations is None else row.activations
    skip = row.weight if row.weight is not None and is_weight(node, row) else None
    return [i for i in positions if i != skip and i < len(node.inputs) and node.inputs[i] is not None]


def is_weight(node: ir.Node, row: OpRow) -> bool:
    """Whether the node's weight input is there and constant."""
    if row.weight is None or row.weight >= len(node.inputs):
        return False
    value = node.inputs[row.weight]
    return value is not None and walk.const_array(value) is not None


def channel_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of the weight that holds output channels, or None where per-channel scales do not apply.

    Args:
        node: a node with a weight.
        rank: the weight's rank.
    """
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1 if walk.attr_int(node, "group", 1) == 1 else None
        case "Gemm":
            return 0 if walk.outputs_first(node) else 1
        case "MatMul":
            return 1 if rank == 2 else None
        case "LSTM" | "GRU" | "RNN":
            return 1
        case _:
            return None


def contracted_axes(node: ir.Node, position: int, rank: int) -> tuple[int, ...] | None:
    """Axes of an operand that the sums of a MatMul or Einsum run over.

    Args:
        node: a MatMul or Einsum.
        position: the operand.
        rank: its rank, 2 or more.

    Returns:
        The axes, ascending; None where the equation does not tell (an ellipsis, an index twice), or nothing is summed.
    """
    if node.op_type == "MatMul":
        return (rank - 1,) if position == 0 else (rank - 2,)
    attribute = node.attributes.get("equation")
    equation = "".join(attribute.as_string().split()) if attribute is not None and not attribute.is_ref() else ""
    terms, arrow, output = equation.partition("->")
    operands = terms.split(",")
    if "." in equation or position >= len(operands) or len(operands[position]) != rank:
        return None
    indices = operands[position]
    if len(set(indices)) != rank:
        return None
    # without an arrow the output has the indices that occur once
    kept = output if arrow else "".join(index for index in indices if terms.count(index) == 1)
    summed = tuple(axis for axis, index in enumerate(indices) if index not in kept)
    return summed or None


def clamp_bounds(node: ir.Node) -> tuple[float, float]:
    """(low, high) that a Relu or Clip node lets through; infinite where open."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [-float("inf"), float("inf")]
    for position in (1, 2):
        value = node.inputs[position] if position < len(node.inputs) else None
        array = walk.const_array(value) if value is not None else None
        if array is not None:
            bounds[position - 1] = float(array.reshape(()))
    return bounds[0], bounds[1]
