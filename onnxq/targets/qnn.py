"""Qualcomm's HTP (Hexagon) by ONNX Runtime's QNN provider, whose x86 build has a bit-true simulator of it.

The engine runs integers alone: a value without Q and DQ leaves its node to the CPU. Tried on onnxruntime-qnn 2.7.
"""

from __future__ import annotations

from onnxq.core.dtypes import QType
from onnxq.targets import cpu
from onnxq.targets.target import WHOLE, Ops, Target

REFUSED = frozenset(
    "Acos Acosh Asinh Atanh Bernoulli Celu Compress Cosh Det Erf GlobalLpPool GRU Hardmax If Loop Multinomial "
    "NonMaxSuppression NonZero RandomNormal RandomNormalLike RandomUniform RandomUniformLike RNN Scan Selu Shrink Sinh "
    "Softsign ThresholdedRelu Unique".split()
)
"""What the provider has no builder for, and so is not wrapped; an Erf in a Gelu becomes a Gelu, which it has."""

FINEST = 2.0**-22
"""On chips before v75 a depthwise convolution gives noise where a step of its products is less than 2^-24 of one of its
result: in channels whose weights are all but zero. What a coarser scale rounds away there is far below a step."""

TARGET = Target(
    name="qnn",
    description="Qualcomm HTP (QNN provider): every value between Q and DQ, uint8 or uint16 activations, shapes fixed",
    activation=QType.UINT8,
    symmetric_activations=False,
    weight=QType.INT8,
    weight_bits=8,
    integer_ops=cpu.INTEGER_OPS,
    formats=("qdq",),
    min_opset=13,
    costs=cpu.COSTS,
    activations=(QType.UINT8, QType.UINT16),
    weights=(QType.INT8, QType.INT4),
    coverage=WHOLE,
    runs=Ops(REFUSED, but=True),
    per_channel=Ops(frozenset({"Conv", "ConvTranspose"})),
    presets=("w8a8", "w8a16", "w4a16", "w8a8-smooth"),
    why_presets="it computes on integers alone",
    own_operators=False,
    steered=False,
    max_opset=21,
    fixed_shapes=True,
    provider="QNNExecutionProvider",
    finest=FINEST,
    rough_in_8=frozenset({"LayerNormalization"}),  # half a step off, root of the mean square; with 16 bits exact
    sum_unit=256,
    wide_costs=2.0,  # twice the bytes; the simulator tells nothing of times
)
