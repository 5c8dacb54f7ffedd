"""What an ONNX model that PyTorch has just exported says of the module behind it: its norms and its dropouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.types import Model

_MARK = "Bernoulli"
"""The operator that is put where a dropout is, since it has one output and a ``seed``, which says what is dropped."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


@dataclass(frozen=True)
class BatchNorm:
    """A BatchNormalization.

    Attributes:
        module: where it stands in the PyTorch module, by dots.
        weight: name of the weight of the layer before it; empty where there is none that it could be folded into.
        bias: name of that layer's bias; may be empty.
        axis: of the weight's output channels.
        epsilon: what is added to the variance.
    """

    module: str
    weight: str = ""
    bias: str = ""
    axis: int = 0
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Dropout:
    """A place where values are dropped in training.

    Attributes:
        value: name of the value that is dropped.
        readers: nodes that read it dropped; empty where all do.
        rate: share that is dropped.
        module: whose ``training`` counts, by dots; empty for the whole.
        channels: whole channels are dropped.
    """

    value: str
    readers: tuple[str, ...]
    rate: float
    module: str
    channels: bool = False


@dataclass(frozen=True)
class ExportedGraph:
    """A float model and what is known of the module that it was made of.

    Attributes:
        model: the model's bytes.
        inputs: names of its inputs.
        outputs: names of its outputs.
        constants: parameters and buffers of the module by name.
        norms: its BatchNormalizations.
        dropouts: its dropouts.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Array]
    norms: tuple[BatchNorm, ...]
    dropouts: tuple[Dropout, ...]


def read_export(model: Model, names: set[str]) -> ExportedGraph:
    """Take the marks out of a model, in place, and say what it holds.

    Args:
        model: as the exporter made it, not optimized.
        names: of the module's parameters and buffers.
    """
    dropouts = [_unmark(node) for node in list(model.graph) if node.op_type == _MARK and "seed" in node.attributes]
    for node in model.graph:
        _settle_type(node)
    norms = [norm for node in model.graph if (norm := _norm(node, names)) is not None]
    constants = {}
    for name, value in model.graph.initializers.items():
        array = walk.const_array(value)
        if name in names and array is not None:
            constants[name] = np.array(array)
    inputs = tuple(value.name or "" for value in model.graph.inputs)
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    return ExportedGraph(io.to_bytes(model), inputs, outputs, constants, tuple(norms), tuple(dropouts))


def _settle_type(node: ir.Node) -> None:
    """CastLike as a Cast where the type is known, so that it can be folded."""
    like = walk.input_at(node, 1)
    if node.op_type == "CastLike" and node.domain == "" and like is not None and like.dtype is not None:
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))


def mark_of(rate: float, channels: bool) -> float:
    """The ``seed`` that says what a dropout drops."""
    return rate + 2.0 * channels


def with_constants(model: bytes, constants: Mapping[str, Array]) -> bytes:
    """A model with other contents of some initializers."""
    loaded = io.load(model)
    for name, array in constants.items():
        value = loaded.graph.initializers.get(name)
        if value is not None:
            value.const_value = ir.tensor(array, name=name)
    return io.to_bytes(loaded)


def _unmark(node: ir.Node) -> Dropout:
    """What a mark says; it is an Identity afterwards."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    every = all(reader is node for reader in value.consumers())
    while (maker := value.producer()) is not None and maker.op_type == "Identity" and maker.inputs[0] is not None:
        value, every = maker.inputs[0], False
    readers = () if every and not value.is_graph_output() else tuple(r.name or "" for r in output.consumers())
    channels, rate = divmod(node.attributes["seed"].as_float(), 2.0)
    scopes = node.metadata_props.get(_SCOPES, "")
    node.op_type = "Identity"
    node.attributes.clear()
    return Dropout(value.name or "", readers, rate, _owner(scopes), bool(channels))


def _owner(scopes: str) -> str:
    """The module that an operator was called in, of what the exporter notes: a list whose last entry is the call."""
    parts = [part.strip().strip("'\"") for part in scopes.strip().strip("[]").split(",")]
    return parts[-2] if len(parts) > 1 else ""


def _norm(node: ir.Node, names: set[str]) -> BatchNorm | None:
    mean = walk.input_at(node, 3)
    if node.op_type != "BatchNormalization" or mean is None or not (mean.name or "").endswith("running_mean"):
        return None
    module = (mean.name or "")[: -len("running_mean")].rstrip(".")
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    x = node.inputs[0]
    layer = None if x is None else x.producer()
    if x is None or layer is None or layer.op_type not in _AXIS or walk.only_use(x) is not node:
        return BatchNorm(module, epsilon=epsilon)
    weight, bias = walk.input_at(layer, 1), walk.input_at(layer, 2)
    if weight is None or weight.name not in names:
        return BatchNorm(module, epsilon=epsilon)
    group = layer.attributes["group"].as_int() if "group" in layer.attributes else 1
    turned = layer.attributes["transB"].as_int() if "transB" in layer.attributes else 0
    if (layer.op_type == "ConvTranspose" and group != 1) or (layer.op_type == "Gemm" and not turned):
        return BatchNorm(module, epsilon=epsilon)
    named = bias.name if bias is not None and bias.name in names else ""
    return BatchNorm(module, weight.name or "", named or "", _AXIS[layer.op_type], epsilon)


def randomized(exported: ExportedGraph, seed: int = 0) -> dict[str, Array]:
    """Other contents for every float parameter and buffer, no two alike: so they are known again wherever they go."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, array in exported.constants.items():
        if array.dtype == np.float32:
            drawn = rng.standard_normal(array.shape) * 0.1 + (1.0 if name.endswith("running_var") else 0.0)
            found[name] = np.asarray(np.abs(drawn) + 0.1 if name.endswith("running_var") else drawn, np.float32)
    return found
