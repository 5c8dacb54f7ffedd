"""What an emitter is told: a plan whose numbers are known. Plain data, by the names of the prepared model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.core.codebook import CodebookTensor
from onnxq.core.dtypes import Array
from onnxq.core.spec import QParams, QTensor
from onnxq.graph.prepare.whole.lower_opset import NEWEST

TENSOR, TOKEN, LSTM, ATTENTION, GATHER = "tensor", "token", "lstm", "attention", "gather"
SPLIT = "split"
"""Forms of a `DynamicRewrite`."""


@dataclass(frozen=True)
class Style:
    """How Q and DQ are written.

    Attributes:
        steered: keep ONNX Runtime's CPU provider from computing on integers what stays float.
        float_bias: leave biases as they are.
        float_biases: names of those that are left if not all are.
        dedicated: give each reader of a value a pair of its own.
        own_pairs: write them as the runtime's own operators.
        pairs_until: the newest operator set of which the runtime has both; beyond it they are its own operators.
        own_grids: give each value and constant a scale and a zero point of its own, found by its name; those that take
            another value's have the very same.
        settled: move Transposes beside products to where they cost least; without, every value has the name and the
            axes of the float model's.
    """

    steered: bool = True
    float_bias: bool = False
    dedicated: bool = False
    own_pairs: bool = False
    pairs_until: int = NEWEST
    own_grids: bool = False
    settled: bool = True
    float_biases: frozenset[str] = frozenset()


USUAL = Style()
"""How Q and DQ are written where nobody says otherwise."""


@dataclass(frozen=True, eq=False)
class NodeRewrite:
    """One node that runs on integers.

    Attributes:
        constants: quantized constants by input position: the weight, and constant operands of element-wise nodes.
        bias: int32 values at ``scale_x · scale_w``, for the row's bias position; None where there is no bias.
        folds: name of the Relu or Clip right behind it whose work the output's range does; it is removed.
        float_output: the products are scaled back to float at once; the output has no integer form.
        adds: name of the Add behind it whose constant the kernel adds to these floats; it is removed.
    """

    constants: dict[int, QTensor] = field(default_factory=dict)
    bias: QTensor | None = None
    folds: str | None = None
    float_output: bool = False
    adds: str | None = None


@dataclass(frozen=True, eq=False)
class DynamicRewrite:
    """One node whose activations are quantized at inference.

    Attributes:
        form: `TENSOR` or `TOKEN`: what shares a scale; `LSTM`, `ATTENTION`, or `GATHER` for a table of which only
            the rows that are gathered are turned into floats; `SPLIT`: as `TOKEN`, without some channels.
        constants: quantized weights by input position.
        channels: int64, (outliers,): input channels that are computed in float; their weights above are zero.
        rows: float32, (outliers, out): their weights.
    """

    form: str
    constants: dict[int, QTensor]
    channels: Array | None = None
    rows: Array | None = None


@dataclass(frozen=True, eq=False)
class WeightRewrite:
    """One node that reads packed weights.

    Attributes:
        form: the operator or pattern that unpacks them.
        constants: quantized weights by input position.
        accuracy_level: of MatMulNBits.
        codebooks: weights as indices into a table, by input position.
        algorithm: how they were rounded.
    """

    form: str
    constants: dict[int, QTensor]
    accuracy_level: int = 0
    codebooks: dict[int, CodebookTensor] = field(default_factory=dict)
    algorithm: str = ""


@dataclass(frozen=True, eq=False)
class SecondGrid:
    """A second grid of a value.

    Attributes:
        params: its scale and zero point.
        readers: names of the nodes that read the value on it.
    """

    params: QParams
    readers: frozenset[str]


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Everything an emitter does to a graph.

    Attributes:
        values: parameters of each activation that has an integer form.
        nodes: the nodes that run on integers.
        storage: constants by node and input position that are only stored as integers and computed with as floats.
        dynamic: the nodes whose activations are quantized at inference.
        weights: the nodes that read packed weights.
        channels: grids of the channels (axis 1) of values that a layer writes scaled by channel and only nodes in float
            read; quantized by ``values`` all the same.
        fixed: values whose parameters the model brought along, with the smallest and the largest integer where a Clip
            has to see to them.
        converted: the second grid of the values that have one.
        sources: the value whose parameters each value has that takes another's.
    """

    values: dict[str, QParams] = field(default_factory=dict)
    nodes: dict[str, NodeRewrite] = field(default_factory=dict)
    storage: dict[str, dict[int, QTensor]] = field(default_factory=dict)
    dynamic: dict[str, DynamicRewrite] = field(default_factory=dict)
    weights: dict[str, WeightRewrite] = field(default_factory=dict)
    channels: dict[str, QParams] = field(default_factory=dict)
    fixed: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    converted: dict[str, SecondGrid] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def read_by(self, node: str) -> dict[str, QParams]:
        """Parameters of the activations as a node reads them."""
        return read_by(node, self.values, self.converted)

    def grid_behind(self, name: str) -> tuple[QParams, int | None]:
        """What the integers of a value are dequantized with, and the axis of its scales where each channel has one."""
        own = self.channels.get(name)
        return (self.values[name], None) if own is None else (own, 1)


def read_by(node: str, values: dict[str, QParams], converted: Mapping[str, SecondGrid]) -> dict[str, QParams]:
    """Parameters of activations as a node reads them, which may be those of their second grid."""
    own = {name: found.params for name, found in converted.items() if node in found.readers}
    return {**values, **own} if own else values
