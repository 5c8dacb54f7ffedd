"""ONNX Runtime's CPU provider on a processor whose 8-bit dot products do not saturate (VNNI, ARM dot product).

The times are medians of one thread on a Zen 4 with AVX512-VNNI; ``python -m benchmarks.kernel_costs`` measures them
anew. Only their ratios matter: they decide what is worth quantizing, and every machine of this kind has similar ones.
"""

from __future__ import annotations

from onnxq.core.dtypes import QType
from onnxq.targets.target import Costs, MacRates, Ops, Rate, Target

COSTS = Costs(
    float_macs=MacRates(
        dense=57e3,
        grouped=53e3,
        depthwise=36e3,
        depthwise_width=16,
        output_ns=0.08,
        row_ns=0.0,
        thin_row_ns=0.0,
        weights_per_us=10e3,
        min_columns=16,
        fixed_us=3.0,
        products=57e3,
    ),
    int_macs=MacRates(
        dense=218e3,
        grouped=45e3,
        depthwise=22e3,
        depthwise_width=32,
        output_ns=0.09,
        row_ns=3.3,
        thin_row_ns=8.0,
        weights_per_us=22e3,
        min_columns=16,
        fixed_us=4.0,
        products=65e3,
    ),
    quantize=Rate(0.22, 3.0),
    dequantize=Rate(0.18, 3.0),
    float_ops={
        "Add": Rate(0.12),
        "Mul": Rate(0.16),
        "Concat": Rate(0.20),
        "AveragePool": Rate(0.024),
        "GlobalAveragePool": Rate(0.047),
        "LeakyRelu": Rate(0.12),
        "Relu": Rate(0.06),
        "Clip": Rate(0.06),
        "Sigmoid": Rate(0.5),
        "SiLU": Rate(0.25),  # Sigmoid and Mul, which become one kernel
        "Softmax": Rate(0.7),
        "Where": Rate(1.7),
        "MaxPool": Rate(0.024),
        "Reshape": Rate(0.0, 1.0),
        "Squeeze": Rate(0.0, 1.0),
        "Unsqueeze": Rate(0.0, 1.0),
        "Flatten": Rate(0.0, 1.0),
        "Transpose": Rate(0.34),
        "Transpose rows": Rate(0.30),
        "Slice": Rate(0.22),
        "Split": Rate(0.22),
        "Gather": Rate(0.22),
        "GatherElements": Rate(0.79),
        "Expand": Rate(0.25),
        "Tile": Rate(0.25),
        "Pad": Rate(0.44),
        "Resize": Rate(0.72),
        "DepthToSpace": Rate(2.1),
        "SpaceToDepth": Rate(0.51),
        "ArgMax": Rate(0.5),
        "ReduceMax": Rate(0.18),
    },
    int_ops={
        "Add": Rate(0.15),
        "Mul": Rate(0.23),
        "Concat": Rate(0.09),
        "AveragePool": Rate(0.6),
        "GlobalAveragePool": Rate(0.035),
        "LeakyRelu": Rate(0.25),
        "Sigmoid": Rate(0.25),
        "Softmax": Rate(2.7),
        "Where": Rate(2.7),
        "MaxPool": Rate(0.03),
        "Reshape": Rate(0.0, 1.0),
        "Squeeze": Rate(0.0, 1.0),
        "Unsqueeze": Rate(0.0, 1.0),
        "Flatten": Rate(0.0, 1.0),
        "Transpose": Rate(0.14),
        "Transpose rows": Rate(0.26),
        "Slice": Rate(0.12),
        "Split": Rate(0.12),
        "Gather": Rate(0.14),
        "GatherElements": Rate(0.98),
        "Expand": Rate(0.05),
        "Tile": Rate(0.05),
        "Pad": Rate(0.14),
        "Resize": Rate(0.87),
        "DepthToSpace": Rate(1.3),
        "SpaceToDepth": Rate(0.46),
        "ArgMax": Rate(0.5),
        "ReduceMax": Rate(0.48),
    },
    # Channels lie last in an integer network. A value that a Q makes has them first: the pool has no fast kernel for
    # that, and the operators that join it with others are followed by one transposition after another.
    behind_quantize={
        "MaxPool": Rate(2.9),
        "Add": Rate(1.5),
        "Mul": Rate(1.5),
        "Concat": Rate(1.5),
    },
    # A float pool is kept in front of a Q by a copy (see `onnxq.graph.emit.norms.hold_pools`).
    before_quantize={"MaxPool": Rate(0.02)},
    pointwise_float=Rate(0.13),
)

INTEGER_OPS = frozenset(
    "Conv Gemm MatMul Add Mul Concat AveragePool GlobalAveragePool LeakyRelu Sigmoid Softmax Where Relu Clip MaxPool "
    "Resize Reshape Transpose Squeeze Unsqueeze Flatten Slice Split Gather GatherElements Expand Tile DepthToSpace "
    "SpaceToDepth "
    "ReduceMax Pad ArgMax".split()
)

HALVES = {
    # What has no kernel of its own runs in float32 between Casts that the runtime puts there when it loads the model;
    # this one it writes out in operators instead, with a constant of float32 among them (seen in 1.32).
    "float16": Ops(frozenset({"MeanVarianceNormalization"}), but=True),
    # Here it puts none: an operator without a kernel is refused.
    "bfloat16": Ops(
        frozenset(
            "Cast Concat Flatten Gather GatherElements GatherND Identity LayerNormalization Reshape "
            "ScatterElements ScatterND SimplifiedLayerNormalization Slice Split Squeeze Transpose Unsqueeze".split()
        )
    ),
}

TARGET = Target(
    name="cpu",
    description="ONNX Runtime on CPUs with 8-bit dot products (VNNI, ARM dotprod): uint8 activations, int8 weights",
    activation=QType.UINT8,
    symmetric_activations=False,
    weight=QType.INT8,
    weight_bits=8,
    integer_ops=INTEGER_OPS,
    formats=("qdq", "qoperator"),
    min_opset=13,
    costs=COSTS,
    slow_norms=True,
    adds_bias=True,
    halves=HALVES,
    measured="Zen 4 with AVX512-VNNI, one thread",
)
