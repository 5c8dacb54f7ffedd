"""Plan nodes whose activations are quantized at inference."""

from __future__ import annotations

from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, PerToken, TensorSpec
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import ATTENTION, GATHER, LSTM, SPLIT, TENSOR, TOKEN, DynamicRewrite
from onnxq.graph.reading.ops import MICROSOFT, why_left
from onnxq.graph.types import FLOAT32, Node
from onnxq.plan.decisions import DYNAMIC, STORAGE, NodePlan
from onnxq.plan.placement.select import Choice
from onnxq.plan.weights.constants import Weights
from onnxq.plan.weights.outlier_channels import split_rewrite, threshold
from onnxq.recipe.presets import Preset
from onnxq.recipe.recipe import Recipe
from onnxq.targets import Target

MIN_OPSET = 11
"""Operator set of DynamicQuantizeLinear."""

LEAST_WORK = {TENSOR: 16.0, TOKEN: 64.0}
"""Rows × columns ÷ (rows + columns) of a weight from which its integer product saves more than quantizing costs.

The time of a product grows with rows × columns for each line of its input; finding scales and rounding with the rows,
scaling back with the columns. Measured with ONNX Runtime on one thread: DynamicQuantizeMatMul gains from about 16 on;
scales by row take several passes over the input and gain from about 64 on.
"""

MIN_ELEMENTS = 1024
"""Recurrent weights, attention weights and tables of fewer elements stay float: scales would outweigh the saving."""

_ROWS_A_SCALE = 16
"""Rows from which a matrix in a stack has a scale for each column: fewer would not pay for theirs."""

_ELEMENTS_A_SCALE = 8
"""Elements of a slice of a table, of those along another axis than the first, from which its scale pays."""

_NO_KERNEL = {
    "Conv": "an integer convolution that quantizes its input at inference is slower than the float one",
    "ConvTranspose": "onnxruntime has no integer ConvTranspose",
    "GRU": "onnxruntime has no GRU that quantizes its input at inference, only an LSTM",
    "RNN": "onnxruntime has no RNN that quantizes its input at inference, only an LSTM",
}
_ATTENTION_ATTRIBUTES = frozenset(("num_heads", "unidirectional", "scale", "mask_filter_value"))
_TABLES = {"EmbedLayerNormalization": (2, 3, 4)}
"""Operators of ONNX Runtime's own with tables that can be stored as integers, and their positions."""


def plan_dynamic(node: Node, preset: Preset, recipe: Recipe, target: Target, choice: Choice) -> NodePlan | str:
    """What becomes of a node whose preset quantizes activations at inference.

    Args:
        node: in the prepared model.
        preset: its preset; ``activations`` is "dynamic" or "token".
        recipe: the user's choices.
        target: what the runtime can do.
        choice: what the user said of this node.

    Returns:
        Its plan, with action `DYNAMIC`, or `STORAGE` for weights of ONNX Runtime's own operators that can only be
        stored; or the reason why it stays float, whose weights may still be stored.
    """
    planner = _Planner(node, preset, recipe, target, choice)
    match node.domain, node.op_type:
        case "" | "ai.onnx", "MatMul" | "Gemm":
            return planner.product()
        case "" | "ai.onnx", "LSTM":
            return planner.lstm()
        case "" | "ai.onnx", "Gather":
            return planner.table()
        case "com.microsoft", "Attention":
            return planner.attention()
        case "com.microsoft", name if name in _TABLES:
            return planner.stored(
                f"com.microsoft.Q{name} has one scale a table and is slower than float",
                {i: PerAxis(0) for i in _TABLES[name]},
            )
        case "" | "ai.onnx", name if name in _NO_KERNEL:
            return _NO_KERNEL[name]
    return "no integer kernel that quantizes activations at inference"


class _Planner:
    """The plan of one node."""

    def __init__(self, node: Node, preset: Preset, recipe: Recipe, target: Target, choice: Choice) -> None:
        self._node = node
        self._form = TOKEN if preset.activations == "token" else TENSOR
        self._recipe = recipe
        self._preset = preset
        self._choice = choice
        bits = min(choice.rule.bits or recipe.bits or target.weight_bits, target.weight_bits)
        self._bits = bits if bits < target.weight.bits else None
        self._type = target.weight
        rule = choice.rule
        self._per_channel = recipe.per_channel if rule.per_channel is None else rule.per_channel
        self._block = (recipe.block_size if rule.block_size is None else rule.block_size) or 0

    def product(self) -> NodePlan | str:
        """MatMul and Gemm."""
        node = self._node
        weight = walk.const_array(walk.input_at(node, 1))
        if weight is None:
            if (left := why_left(node)) is not None:
                return left
            return "both operands are activations: quantizing both at each inference costs what the product saves"
        if walk.is_constant(walk.input_at(node, 0)):
            return "all its inputs are constant"
        refused = self._refused(1)
        if refused:
            return refused
        if weight.ndim < 2 or weight.size == 0:
            return f"its weight of shape {weight.shape} is no matrix"
        transposed = walk.outputs_first(node)
        rows, columns = weight.shape[-2:] if not transposed else weight.shape[::-1]
        work = rows * columns / (rows + columns)
        if columns == 1 or (work < LEAST_WORK[self._form] and not self._choice.insisted):
            return (
                f"with a weight of {rows} × {columns} quantizing its input at each inference costs more than the "
                "integer product saves"
            )
        return self._plan(self._form, {1: self._spec(self._product_scales(weight, transposed))})

    def _product_scales(self, weight: Array, transposed: bool) -> Granularity:
        if not self._per_channel:
            return PerTensor()
        if transposed:
            return PerAxis(0)
        rows = weight.shape[-2]
        if self._form == TOKEN and weight.ndim == 2 and 0 < self._block < rows:
            return PerBlock(0, self._block)
        if weight.ndim == 2:
            return PerAxis(1)
        return PerBlock(weight.ndim - 2, rows)  # a scale for each column of each matrix

    def lstm(self) -> NodePlan | str:
        """LSTM: both weights, a scale for each gate's row in each direction."""
        node = self._node
        arrays = [walk.const_array(walk.input_at(node, i)) for i in (1, 2)]
        if any(array is None for array in arrays):
            return "its weights are not constant"
        if walk.attr_int(node, "layout"):
            return "onnxruntime has no LSTM with layout = 1 that quantizes its input"
        for position, array in zip((1, 2), arrays, strict=True):
            assert array is not None
            if refused := self._refused(position):
                return refused
            if array.ndim != 3 or array.size == 0:
                return f"its weight of shape {array.shape} is no stack of matrices"
        elements = sum(array.size for array in arrays if array is not None)
        if elements < MIN_ELEMENTS and not self._choice.insisted:
            return f"its weights have {elements} elements; quantizing its input would cost more than that saves"
        spec = self._spec(PerToken() if self._per_channel else PerTensor())
        return self._plan(LSTM, {1: spec, 2: spec})

    def attention(self) -> NodePlan | str:
        """com.microsoft.Attention with the weights of query, key and value in one matrix."""
        node = self._node
        weight = walk.const_array(walk.input_at(node, 1))
        if weight is None:
            return "its weight is not constant"
        if refused := self._refused(1):
            return refused
        reason = None
        unknown = [name for name in node.attributes if name not in _ATTENTION_ATTRIBUTES and _matters(node, name)]
        if unknown:
            reason = f"com.microsoft.QAttention has no attribute {unknown[0]}"
        elif any(walk.input_at(node, i) is not None for i in (5, 6)):
            reason = "com.microsoft.QAttention takes no attention bias and no shared cache"
        elif weight.ndim != 2 or weight.shape[1] % (3 * max(walk.attr_int(node, "num_heads", 1), 1)):
            reason = f"its weight of shape {weight.shape} is not one matrix of three equal parts"
        elif weight.size < MIN_ELEMENTS and not self._choice.insisted:
            reason = f"its weight has {weight.size} elements; quantizing its input would cost more than that saves"
        if reason is not None:
            return self.stored(reason, {1: PerAxis(weight.ndim - 1)})
        return self._plan(ATTENTION, {1: self._spec(PerAxis(1) if self._per_channel else PerTensor())})

    def table(self) -> NodePlan | str:
        """Gather from a constant table: slices are gathered as integers, and scaled once gathered."""
        node = self._node
        value = walk.input_at(node, 0)
        table = walk.const_array(value)
        if table is None or value is None:
            return "it only moves elements"
        if value.dtype != FLOAT32:
            return f"its table is {_named(value.dtype)}; only float32 tables are stored as integers"
        if table.ndim < 2 or table.size < MIN_ELEMENTS:
            return f"its table has fewer than {MIN_ELEMENTS} elements or no rows"
        others = [user for user in value.consumers() if user.op_type not in ("Gather", "MatMul", "Gemm")]
        if others:
            return f"its table is also read by {others[0].op_type} {others[0].name!r}, which needs it in float"
        axis = walk.attr_int(node, "axis") % table.ndim
        if axis and table.size // table.shape[axis] < _ELEMENTS_A_SCALE:
            return "its scales, one a slice, would take what the integers of its table save"
        # of matrices a scale for each column of each
        stacked = table.ndim > 2 and table.shape[-2] >= _ROWS_A_SCALE and axis == 0
        granularity = PerBlock(table.ndim - 2, table.shape[-2]) if stacked else PerAxis(axis)
        spec = TensorSpec(QType.INT8, granularity, symmetric=True, narrow_range=True)
        return self._plan(
            GATHER,
            {0: spec},
            f"{'slices' if axis else 'rows'} of the table are stored as int8 and scaled once gathered",
        )

    def stored(self, reason: str, positions: dict[int, Granularity]) -> NodePlan | str:
        """Weights that are only stored as integers, of operators that the general rule for storage does not know."""
        specs = {}
        for position, granularity in positions.items():
            value = walk.input_at(self._node, position)
            array = walk.const_array(value)
            if array is None or value is None or value.dtype != FLOAT32 or array.size < MIN_ELEMENTS or array.ndim < 2:
                continue
            specs[position] = TensorSpec(
                QType.INT8, granularity if self._per_channel else PerTensor(), symmetric=True, narrow_range=True
            )
        if not specs:
            return reason
        return NodePlan(self._node.name or "", _shown(self._node), STORAGE, reason, weights=specs)

    def _plan(self, form: str, weights: dict[int, TensorSpec], reason: str = "") -> NodePlan:
        node = self._node
        outliers = threshold(node, self._preset, self._recipe) if form == TOKEN else None
        return NodePlan(node.name or "", _shown(node), DYNAMIC, reason, weights=weights, form=form, outliers=outliers)

    def _spec(self, granularity: Granularity) -> TensorSpec:
        return TensorSpec(self._type, granularity, symmetric=True, narrow_range=True, grid_bits=self._bits)

    def _refused(self, position: int) -> str | None:
        node = self._node
        value = node.inputs[position]
        if value is not None and value.dtype != FLOAT32:
            return f"its weight is {_named(value.dtype)}; integer kernels take float32 models"
        if node.graph is not None and (version := _opset(node)) < MIN_OPSET:
            return f"it needs operator set {MIN_OPSET}, and the model could not be raised from {version}"
        return None


def _opset(node: Node) -> int:
    graph = node.graph
    assert graph is not None
    return walk.opset(graph) if "" in graph.opset_imports else MIN_OPSET


def _matters(node: Node, name: str) -> bool:
    """Whether an attribute has a value that changes something: zero and an empty list do not."""
    attribute = node.attributes[name]
    return attribute.is_ref() or bool(attribute.value)


def _named(dtype: object) -> str:
    return str(getattr(dtype, "name", dtype)).lower()


def _shown(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain == MICROSOFT else node.op_type


def dynamic_rewrite(node: Node, plan: NodePlan, weights: Weights) -> DynamicRewrite:
    """Quantize the constants of a node with a `DYNAMIC` plan."""
    if plan.form == SPLIT:
        return split_rewrite(node, plan)
    return DynamicRewrite(plan.form, {i: weights.of(node, i, spec) for i, spec in plan.weights.items()})
