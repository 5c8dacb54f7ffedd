"""What a graph says of its outputs: the activation they end in, the axis of classes, states, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.data.state_pairs import Tensor, state_pairs
from onnxq.graph import traits, walk
from onnxq.graph.reading.embeddings import embedding_outputs

SOFTMAX, SIGMOID, TANH, RELU, LINEAR, MIXED, UNKNOWN = "softmax", "sigmoid", "tanh", "relu", "linear", "mixed", ""

_ACTIVATIONS = {
    "Softmax": SOFTMAX, "LogSoftmax": SOFTMAX, "Sigmoid": SIGMOID, "HardSigmoid": SIGMOID, "Tanh": TANH, "Relu": RELU,
    "LeakyRelu": RELU, "PRelu": RELU, "Clip": RELU,
}  # fmt: skip
_MATRICES = frozenset("Gemm MatMul FusedMatMul MatMulNBits LSTM GRU RNN Einsum".split())
_CONVOLUTIONS = frozenset("Conv ConvTranspose BatchNormalization InstanceNormalization".split())
_SAME_AXES = frozenset(
    "Identity Cast Add Sub Mul Div Neg Dropout Pad Resize Upsample Slice QuantizeLinear DequantizeLinear".split()
)
_OTHER_AXES = traits.RESHAPING | {"Expand", "Gather", "GlobalAveragePool", "ReduceMean", "ReduceSum"}
_MOVING = _SAME_AXES | _OTHER_AXES | {"Transpose", "Concat", "Split"}
_STEPS = 60


@dataclass(frozen=True)
class OutputFact:
    """What the graph says of one output.

    Attributes:
        activation: the operator it ends in, behind which elements are only moved: `SOFTMAX`, `SIGMOID`, `TANH`, `RELU`;
            `LINEAR` for a product or a convolution; `MIXED` where parts with different ones were joined; `UNKNOWN`.
        class_axis: where a linear layer's channels are in the output; None where that cannot be followed.
        embedding: a normalized vector, or what a pooler makes of one.
        state_of: name of the input that the output goes back into at the next call; empty for other outputs.
        like_input: it has the declared shape of a float input, as the output of an autoencoder or a denoiser.
    """

    activation: str = UNKNOWN
    class_axis: int | None = None
    embedding: bool = False
    state_of: str = ""
    like_input: bool = False


def output_facts(model: ir.Model, states: Mapping[str, str] | None = None) -> dict[str, OutputFact]:
    """What the graph says of each of its outputs, by name.

    Args:
        model: unchanged.
        states: the input that each state output goes back into; None goes by names.
    """
    graph = model.graph
    vectors = embedding_outputs(model)
    states = _states(graph) if states is None else states
    inputs = [_dims(value) for value in _inputs(graph) if value.dtype in walk.FLOATS]
    found = {}
    for value in graph.outputs:
        name = value.name or ""
        activation, axis = _ending(value)
        dims = _dims(value)
        alike = len(dims) > 1 and any(dims[1:] == other[1:] and any(map(_known, dims[1:])) for other in inputs)
        found[name] = OutputFact(activation, axis, name in vectors, states.get(name, ""), alike)
    return found


def facts_of_file(model: bytes | Path, states: Mapping[str, str] | None = None) -> dict[str, OutputFact]:
    """The same of the contents of a model file, or of one at a path; nothing where they cannot be read.

    Args:
        model: its weights are not looked at.
        states: as for `output_facts`.
    """
    try:
        if isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
        else:
            proto = onnx.load_model(model, load_external_data=False)
        return output_facts(ir.from_proto(proto), states)
    except Exception:  # damaged in whatever way: whoever runs the model says what is wrong with it
        return {}


def _ending(value: ir.Value | None) -> tuple[str, int | None]:
    """The activation a value ends in, and the axis of its channels; follows one branch of each joining node."""
    permutations: list[tuple[int, ...]] = []
    followed = True
    for _ in range(_STEPS):
        node = value.producer() if value is not None else None
        if node is None or node.domain not in ("", "com.microsoft"):
            return UNKNOWN, None
        kind = node.op_type
        if kind in _ACTIVATIONS:
            return _ACTIVATIONS[kind], None
        if kind in _MATRICES or kind in _CONVOLUTIONS:
            return LINEAR, _axis(kind in _CONVOLUTIONS, permutations) if followed else None
        moving = [read for read in node.inputs if read is not None and not walk.is_constant(read)]
        if kind == "Concat" and len(moving) > 1:
            return _joined(moving)
        if not moving or kind not in _MOVING:
            return UNKNOWN, None
        if kind in traits.ARITHMETIC and len(moving) > 1:
            # two values computed together: a residual stream, or coordinates in proportion to an anchor
            return LINEAR if kind in ("Add", "Sub") else UNKNOWN, None
        if kind == "Transpose":
            permutation = node.attributes.get("perm")
            followed = followed and permutation is not None
            permutations.append(tuple(permutation.as_ints()) if permutation is not None else ())
        followed = followed and kind not in _OTHER_AXES and kind not in ("Concat", "Split")
        value = moving[0]
    return UNKNOWN, None


def _joined(values: Sequence[ir.Value]) -> tuple[str, int | None]:
    """What parts that are joined end in: what they have in common, else `MIXED`."""
    found = {_ending(value)[0] for value in values}
    return (found.pop() if len(found) == 1 else MIXED), None


def _axis(convolution: bool, permutations: Sequence[tuple[int, ...]]) -> int | None:
    """Where the channels of a layer are behind transpositions, which are given from the output to the layer."""
    axis = 1 if convolution else -1
    for permutation in reversed(permutations):
        if axis < 0:
            axis += len(permutation)
        if axis not in permutation:
            return None
        axis = permutation.index(axis)
    return axis


def _states(graph: ir.Graph) -> dict[str, str]:
    """The input that each state output goes back into, by name of the output; by their names."""
    return state_pairs([_described(value) for value in _inputs(graph)], [_described(value) for value in graph.outputs])


def _described(value: ir.Value) -> Tensor:
    return Tensor(value.name or "", None if value.dtype is None else value.dtype.numpy(), _dims(value))


def _inputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.inputs if not value.is_initializer()]


def _dims(value: ir.Value) -> tuple[int | None, ...]:
    shape = value.shape
    return () if shape is None else tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in shape)


def _known(dim: int | None) -> bool:
    return dim is not None
