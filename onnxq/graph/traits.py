"""What is known of an operator whatever quantizes it: a row an operator, read by everything that walks over a graph.

The operator table (`onnxq.graph.reading.ops`) says how an operator is quantized; most rows here have none there. Those
who ask take the operators of a trait (`having`) and add or leave out what is particular to their question.
"""

from __future__ import annotations

import enum


class Trait(enum.Flag):
    """One fact of an operator."""

    LAYER = enum.auto()
    """Multiplies with a weight, each output with a scale of its own."""
    RESHAPES = enum.auto()
    """Hands on all elements in their order; only the shape is another."""
    TRANSPOSES = enum.auto()
    """Hands on all elements in another order."""
    COPIES = enum.auto()
    """Hands on its first input as it is, at inference."""
    CASTS = enum.auto()
    """Changes the type."""
    TAKES = enum.auto()
    """Hands on some of the elements, in their order along each axis."""
    ARITHMETIC = enum.auto()
    """Adds, subtracts, multiplies or divides element by element, with broadcasting."""
    EXTREMA = enum.auto()
    """The larger or smaller one of two elements, with broadcasting."""
    CLAMPS = enum.auto()
    """Cuts off what lies outside a range, and leaves the rest."""
    HOMOGENEOUS = enum.auto()
    """f(c·x) = c·f(x) for every c > 0, element by element."""
    POOLS = enum.auto()
    """Mean or maximum over positions, each channel alone."""
    REDUCES = enum.auto()
    """One number out of those along axes, homogeneous."""
    RECURRENT = enum.auto()
    """Keeps a state from step to step."""
    ATTENDS = enum.auto()
    """Attention in one node."""
    HOLDS_GRAPHS = enum.auto()
    """Runs graphs of its own."""
    DESCRIBES = enum.auto()
    """Gives a constant or a shape, whatever the elements are."""
    CONVERTS = enum.auto()
    """From real numbers to integers on a grid, or back."""
    PACKED = enum.auto()
    """Has its weight as packed integers, and computes with real numbers."""
    ROUNDS_AT_INFERENCE = enum.auto()
    """A layer on integers whose activations are rounded as they come, or come as integers and leave as real numbers."""
    DRAWS_LIKE = enum.auto()
    """Draws random numbers, as many as its input has."""
    DRAWS = enum.auto()
    """Draws random numbers, as many as an attribute says."""


_T = Trait
TRAITS: dict[str, Trait] = {
    "Abs": _T.HOMOGENEOUS,
    "Add": _T.ARITHMETIC,
    "Attention": _T.ATTENDS,
    "AveragePool": _T.POOLS,
    "Cast": _T.CASTS,
    "CastLike": _T.CASTS,
    "Clip": _T.CLAMPS,
    "Constant": _T.DESCRIBES,
    "Conv": _T.LAYER,
    "ConvInteger": _T.ROUNDS_AT_INFERENCE,
    "ConvTranspose": _T.LAYER,
    "DecoderMaskedMultiHeadAttention": _T.ATTENDS,
    "DequantizeLinear": _T.CONVERTS,
    "Div": _T.ARITHMETIC,
    "Dropout": _T.COPIES | _T.HOMOGENEOUS,
    "DynamicQuantizeLSTM": _T.ROUNDS_AT_INFERENCE,
    "DynamicQuantizeMatMul": _T.ROUNDS_AT_INFERENCE,
    "Flatten": _T.RESHAPES,
    "GRU": _T.RECURRENT,
    "GatherBlockQuantized": _T.PACKED,
    "Gemm": _T.LAYER,
    "GlobalAveragePool": _T.POOLS,
    "GlobalMaxPool": _T.POOLS,
    "Identity": _T.COPIES | _T.HOMOGENEOUS,
    "If": _T.HOLDS_GRAPHS,
    "LSTM": _T.RECURRENT,
    "LeakyRelu": _T.HOMOGENEOUS,
    "Loop": _T.HOLDS_GRAPHS,
    "MatMul": _T.LAYER,
    "MatMulBnb4": _T.PACKED,
    "MatMulInteger": _T.ROUNDS_AT_INFERENCE,
    "MatMulIntegerToFloat": _T.ROUNDS_AT_INFERENCE,
    "MatMulNBits": _T.PACKED,
    "Max": _T.EXTREMA,
    "MaxPool": _T.POOLS,
    "Min": _T.EXTREMA,
    "Mul": _T.ARITHMETIC,
    "MultiHeadAttention": _T.ATTENDS,
    "Neg": _T.HOMOGENEOUS,
    "PRelu": _T.HOMOGENEOUS,
    "QAttention": _T.ROUNDS_AT_INFERENCE,
    "QMoE": _T.PACKED,
    "QuantizeLinear": _T.CONVERTS,
    "RNN": _T.RECURRENT,
    "RandomNormal": _T.DRAWS,
    "RandomNormalLike": _T.DRAWS_LIKE,
    "RandomUniform": _T.DRAWS,
    "RandomUniformLike": _T.DRAWS_LIKE,
    "ReduceL1": _T.REDUCES,
    "ReduceL2": _T.REDUCES,
    "ReduceMax": _T.REDUCES,
    "ReduceMean": _T.REDUCES,
    "ReduceMin": _T.REDUCES,
    "ReduceSum": _T.REDUCES,
    "Relu": _T.CLAMPS | _T.HOMOGENEOUS,
    "Reshape": _T.RESHAPES,
    "Scan": _T.HOLDS_GRAPHS,
    "Shape": _T.DESCRIBES,
    "Size": _T.DESCRIBES,
    "Slice": _T.TAKES,
    "Split": _T.TAKES,
    "Squeeze": _T.RESHAPES,
    "Sub": _T.ARITHMETIC,
    "Transpose": _T.TRANSPOSES,
    "Unsqueeze": _T.RESHAPES,
}


def having(traits: Trait) -> frozenset[str]:
    """Operators that have at least one of the traits."""
    return frozenset(name for name, row in TRAITS.items() if row & traits)


LAYERS = having(Trait.LAYER)
RESHAPING = having(Trait.RESHAPES)
MOVING = having(Trait.RESHAPES | Trait.TRANSPOSES)
"""Every element comes out once, nothing else does."""
ARITHMETIC = having(Trait.ARITHMETIC)
CLAMPS = having(Trait.CLAMPS)
POOLS = having(Trait.POOLS)
HOMOGENEOUS = having(Trait.HOMOGENEOUS)
STRUCTURAL = having(Trait.HOLDS_GRAPHS | Trait.DESCRIBES)
CONVERSIONS = having(Trait.CONVERTS)
PACKED = having(Trait.PACKED)
