"""Small recurrent and streaming models, and what feeding them by hand gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
HIDDEN, WIDTH = 16, 8


def _float(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: Mapping[str, Array],
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    generator = np.random.default_rng(5)
    scale = {name: 1 / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    return {n: (generator.normal(0, 1, shape) * scale[n]).astype(np.float32) for n, shape in shapes.items()}


def gru(before: str = "h", after: str = "hn", batch: str | int | None = "batch") -> onnx.ModelProto:
    """x (batch, 8) → y (batch, 4): a linear layer, a GRU with a state (1, batch, 16), a linear layer."""
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["p"], name="in"),
        helper.make_node("Unsqueeze", ["p", "zero"], ["q"], name="time"),
        helper.make_node("GRU", ["q", "w", "r", "", "", before], ["", after], name="gru", hidden_size=HIDDEN),
        helper.make_node("Squeeze", [after, "zero"], ["s"], name="last"),
        helper.make_node("MatMul", ["s", "v"], ["y"], name="out"),
    ]
    weights = _weights(u=(WIDTH, WIDTH), w=(1, 3 * HIDDEN, WIDTH), r=(1, 3 * HIDDEN, HIDDEN), v=(HIDDEN, 4))
    weights["zero"] = np.array([0])
    state = [1, batch, HIDDEN]
    return _model(
        nodes,
        [_float("x", [batch, WIDTH]), _float(before, state)],
        [_float("y", [batch, 4]), _float(after, [1, batch, HIDDEN])],
        weights,
    )


def lstm(names: Sequence[str] = ("h0", "c0", "hn", "cn")) -> onnx.ModelProto:
    """x (n, 8) → y (n, 4) with two states of one shape."""
    h0, c0, hn, cn = names
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["q"], name="time"),
        helper.make_node("LSTM", ["q", "w", "r", "", "", h0, c0], ["", hn, cn], name="lstm", hidden_size=HIDDEN),
        helper.make_node("Squeeze", [hn, "zero"], ["s"], name="last"),
        helper.make_node("MatMul", ["s", "v"], ["y"], name="out"),
    ]
    weights = _weights(w=(1, 4 * HIDDEN, WIDTH), r=(1, 4 * HIDDEN, HIDDEN), v=(HIDDEN, 4))
    weights["zero"] = np.array([0])
    states = [_float(name, [1, "n", HIDDEN]) for name in names]
    return _model(nodes, [_float("x", ["n", WIDTH]), *states[:2]], [_float("y", ["n", 4]), *states[2:]], weights)


def fsmn(layers: int = 2, length: int | str = 3, before: str = "in_cache", after: str = "out_cache") -> onnx.ModelProto:
    """x (1, 8, T) → y (1, 8, T): convolutions over time that each keep the last 3 columns of what they read."""
    nodes, value = [], "x"
    for i in range(layers):
        nodes += [
            helper.make_node("Concat", [f"{before}{i}", value], [f"j{i}"], name=f"join{i}", axis=2),
            helper.make_node("Slice", [f"j{i}", "from", "to", "axis"], [f"{after}{i}"], name=f"keep{i}"),
            helper.make_node("Conv", [f"j{i}", f"k{i}"], [f"v{i}"], name=f"conv{i}"),
            helper.make_node("Relu", [f"v{i}"], [f"a{i}" if i < layers - 1 else "y"], name=f"relu{i}"),
        ]
        value = f"a{i}"
    weights = _weights(**{f"k{i}": (8, 8, 4) for i in range(layers)})
    weights |= {"from": np.array([-3]), "to": np.array([2**31]), "axis": np.array([2])}
    shape = [1, 8, length]
    inputs = [_float("x", [1, 8, "T"]), *(_float(f"{before}{i}", shape) for i in range(layers))]
    outputs = [_float("y", [1, 8, "S"]), *(_float(f"{after}{i}", [1, 8, f"K{i}"]) for i in range(layers))]
    return _model(nodes, inputs, outputs, weights)


def growing() -> onnx.ModelProto:
    """x (n, T, 8) → y: keys of all calls so far are kept, as a decoder does."""
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["p"], name="in"),
        helper.make_node("Concat", ["past_key_values.0.key", "p"], ["present.0.key"], name="join", axis=1),
        helper.make_node("ReduceMean", ["present.0.key"], ["m"], name="mean", axes=[1]),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="out"),
    ]
    past, present = _float("past_key_values.0.key", ["n", "past", 8]), _float("present.0.key", ["n", "all", 8])
    inputs = [_float("x", ["n", "T", 8]), past]
    return _model(nodes, inputs, [_float("y", ["n", 1, 4]), present], _weights(u=(8, 8), v=(8, 4)))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def fed_by_hand(model: onnx.ModelProto, samples: Sequence[Feed], pairs: Mapping[str, str], zeros: Feed) -> list[Feed]:
    """Complete feeds: the state of each sample is what the model gave for the one before, unless it says its own."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    states, feeds = zeros, []
    for sample in samples:
        feed = {**states, **sample}
        feeds.append(feed)
        found = dict(zip(names, session.run(None, feed), strict=True))
        states = {name: found[output] for output, name in pairs.items()}
    return feeds


def drawn(count: int, shape: Sequence[int] = (1, WIDTH)) -> list[Feed]:
    generator = np.random.default_rng(11)
    return [{"x": generator.normal(0, 1, shape).astype(np.float32)} for _ in range(count)]
