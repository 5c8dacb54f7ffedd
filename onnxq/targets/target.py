"""What a target is: the types, operators and costs of one runtime on one kind of machine, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.core.dtypes import QType


@dataclass(frozen=True)
class Rate:
    """Time of a kernel as ``fixed_us + ns_per_element · elements / 1000``.

    Attributes:
        ns_per_element: nanoseconds an element takes, of the larger of input and output; of each window for pools.
        fixed_us: microseconds a call takes whatever its size.
    """

    ns_per_element: float
    fixed_us: float = 2.0

    def us(self, elements: float) -> float:
        """Microseconds for so many elements."""
        return self.fixed_us + self.ns_per_element * elements / 1000.0


@dataclass(frozen=True)
class MacRates:
    """Speed of multiply-accumulate kernels, in multiply-accumulates a microsecond.

    Attributes:
        dense: Conv with one group, Gemm and MatMul.
        products: MatMul of two activations, whose right side is not packed beforehand.
        grouped: Conv with several groups of more than one channel.
        depthwise: Conv with one channel a group.
        depthwise_width: channels that a depthwise kernel computes together; fewer take as long.
        output_ns: nanoseconds an output element takes besides its products.
        row_ns: nanoseconds to gather one row of an input window, for kernels that unfold their input; 0 where none.
        thin_row_ns: the same where fewer than 4 channels lie side by side.
        weights_per_us: elements of weight read a microsecond, the bound where the input has few rows.
        min_columns: output channels of a Conv are computed in multiples of so many.
        fixed_us: microseconds a call takes whatever its size.
    """

    dense: float
    grouped: float
    depthwise: float
    depthwise_width: int
    output_ns: float
    row_ns: float
    thin_row_ns: float
    weights_per_us: float
    min_columns: int
    fixed_us: float
    products: float


@dataclass(frozen=True)
class Costs:
    """Measured times of float and integer kernels; they decide what is worth quantizing.

    Attributes:
        float_macs: multiply-accumulate kernels on float32.
        int_macs: the same on uint8 × int8.
        quantize: QuantizeLinear and the change of layout that comes with it.
        dequantize: DequantizeLinear, likewise.
        float_ops: other operators on float32.
        int_ops: other operators on 8-bit integers.
        behind_quantize: operators on images that are this much slower where a Q stands right before them, because
            their integers then do not lie as an integer convolution leaves them.
        before_quantize: float operators that the runtime would move a Q across, and what keeping them apart takes.
        pointwise_float: what it takes longer to give floats than integers, for the kernel that multiplies each position
            of an image by a matrix; None where there is no such kernel, and a Q has to stand behind such a Conv.
        float_default: an operator without an entry in ``float_ops``.
    """

    float_macs: MacRates
    int_macs: MacRates
    quantize: Rate
    dequantize: Rate
    float_ops: dict[str, Rate] = field(default_factory=dict)
    int_ops: dict[str, Rate] = field(default_factory=dict)
    behind_quantize: dict[str, Rate] = field(default_factory=dict)
    before_quantize: dict[str, Rate] = field(default_factory=dict)
    pointwise_float: Rate | None = None
    float_default: Rate = field(default_factory=lambda: Rate(0.15))


MEASURED, WHOLE, INPUTS = "measured", "whole", "inputs"
"""What becomes integers: what is faster so by measured costs; every value of the graph, outputs too; the inputs of the
operators that the target runs on integers."""


SLOW_16 = "more than twice as slow as float alone (2.2 to 2.4x for digits_resnet)"
"""What activations of 16 bits cost on a CPU, which has no kernels for them."""


@dataclass(frozen=True)
class Ops:
    """A set of operators, as ``type`` or ``domain.type``: those that are named, or all but those.

    Attributes:
        names: the operators.
        but: the set is what is not named.
    """

    names: frozenset[str] = frozenset()
    but: bool = False

    def __contains__(self, op_type: object) -> bool:
        return (op_type in self.names) != self.but


@dataclass(frozen=True)
class Target:
    """A runtime on a kind of machine.

    Attributes:
        name: what ``--target`` takes.
        description: one line.
        activation: type of quantized activations.
        symmetric_activations: whether activations have their zero point at the middle.
        weight: type of quantized weights.
        weight_bits: bits of the weight grid that are used (7 keeps saturating kernels exact).
        integer_ops: operators with an integer kernel.
        formats: formats its models can have, the default first.
        min_opset: opset the emitted models need.
        slow_norms: the runtime joins a residual Add and the normalization behind it into a kernel that is slower.
        adds_bias: the kernel that scales the products of a MatMul to float also adds a bias, but only as an operator of
            its own.
        costs: times that decide what is worth quantizing.
        halves: operators that compute in a 16-bit float type, by the type's name. Weights can be stored in either type
            for any target.
        activations: all types that activations may have, its own choice first.
        weights: all types that weights between Q and DQ may have.
        coverage: `MEASURED`, `WHOLE` or `INPUTS`.
        runs: with `WHOLE` and `INPUTS`: the operators that it runs on integers.
        per_channel: operators whose weights may have a scale a channel.
        float_bias: biases stay float; it quantizes them itself.
        presets: the presets that it runs; empty for all.
        why_presets: why it runs no others.
        own_operators: ONNX Runtime's own operators (com.microsoft) run there.
        steered: the emitters keep ONNX Runtime's CPU provider from computing on integers what is to stay float.
        max_opset: the newest operator set that it reads.
        fixed_shapes: all dimensions of inputs have to be numbers.
        provider: execution provider of the engine that runs it, where that is not ONNX Runtime's CPU provider here.
        finest: least step that products may have there, in steps of the result's grid; 0 for any.
        scales_turn: a scale a channel holds for a product that is transposed and reshaped before anything is rounded.
        booleans_pass: a boolean input may be handed on as an output.
        wide_costs: times that a kernel takes longer where its activations have 16 bits.
        rough_in_8: operators whose kernels for 8-bit activations are off by more than rounding; they have 16 bits.
        sum_unit: products of 16-bit activations that its kernels' sums are a multiple of; what is below is cut off.
        expert_levels: the exact accuracy level of its QMoE and, where it has levels, the fastest; empty where experts
            in one node are not packed.
        fewest_bits: of weights in blocks; 3 are stored as 4.
        measured: what ``costs`` were measured on; empty where they stand in for what was not, and nothing is called
            faster.
    """

    name: str
    description: str
    activation: QType
    symmetric_activations: bool
    weight: QType
    weight_bits: int
    integer_ops: frozenset[str]
    formats: tuple[str, ...]
    min_opset: int
    costs: Costs
    slow_norms: bool = False
    adds_bias: bool = False
    halves: Mapping[str, Ops] = field(default_factory=dict)
    activations: tuple[QType, ...] = (QType.UINT8,)
    weights: tuple[QType, ...] = (QType.INT8,)
    coverage: str = MEASURED
    runs: Ops = field(default_factory=Ops)
    per_channel: Ops = field(default_factory=lambda: Ops(but=True))
    float_bias: bool = False
    presets: tuple[str, ...] = ()
    why_presets: str = ""
    own_operators: bool = True
    steered: bool = True
    max_opset: int = 99
    fixed_shapes: bool = False
    provider: str = ""
    finest: float = 0.0
    scales_turn: bool = True
    booleans_pass: bool = True
    wide_costs: float = 1.0
    rough_in_8: frozenset[str] = frozenset()
    sum_unit: int = 1
    expert_levels: tuple[int, ...] = (0, 4)
    fewest_bits: int = 2
    measured: str = ""

    @property
    def is_here(self) -> bool:
        """Whether this process's ONNX Runtime is what runs the model, so that times measured here are its own."""
        return not self.provider and bool(self.measured)

    @property
    def pointwise_float(self) -> Rate | None:
        """As of `Costs`, where it is ONNX Runtime's CPU provider here that runs the model."""
        return self.costs.pointwise_float if self.is_here and self.own_operators and self.steered else None
