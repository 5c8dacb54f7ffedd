"""Small decoders with attention as exporters write it: in plain operators, with and without caches, and grouped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH = 24, 32
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


@dataclass(frozen=True)
class Style:
    """How a decoder is written.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        size: of a head.
        caches: it takes and gives its keys and values.
        mask: it takes an attention mask.
        scale: "div" on scores, "mul" on scores, or "both": its root on queries and on keys.
        guard: rows of nothing but masked scores are set to zero behind the Softmax.
        causal: later tokens are hidden.
        blocks: layers.
        norm: "rms", "decomposed" (the same in plain operators) or "layer".
        tied: the head is the embedding's table.
        gain: largest number that norms multiply a channel with.
    """

    heads: int = 4
    kv_heads: int = 2
    size: int = 8
    caches: bool = True
    mask: bool = True
    scale: str = "div"
    guard: bool = False
    causal: bool = True
    blocks: int = 2
    norm: str = "decomposed"
    tied: bool = False
    gain: float = 2.0


class _Graph:
    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(seed)

    def node(self, op_type: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def weight(self, name: str, *shape: int) -> str:
        self.weights[name] = (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    def ints(self, *numbers: int) -> str:
        name = f"ints_{'_'.join(map(str, numbers))}"
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def number(self, value: float) -> str:
        name = f"number_{value:g}"
        self.weights[name] = np.array(value, np.float32)
        return name


def decoder(style: Style = Style(), seed: int = 0) -> bytes:
    """A decoder of ids; positions are rotary."""
    g = _Graph(seed)
    table = g.weight("embedding", VOCABULARY, WIDTH)
    g.weights[table] *= 5
    x = g.node("Gather", [table, "input_ids"], "x0")
    _positions(g, style)
    for block in range(style.blocks):
        x = _block(g, style, x, f"b{block}.")
    x = _norm(g, style, x, "final.")
    if style.tied:
        g.node("Transpose", [table], "head_t", perm=[1, 0])
        g.node("MatMul", [x, "head_t"], "logits")
    else:
        g.node("MatMul", [x, g.weight("head", WIDTH, VOCABULARY)], "logits")
    return _model(g, style)


def _positions(g: _Graph, style: Style) -> None:
    g.node("Shape", ["input_ids"], "shape")
    g.node("Gather", ["shape", g.ints(1)], "length1")
    g.node("Squeeze", ["length1"], "length")
    total = "length"
    g.weights["zero"], g.weights["one"] = np.array(0, np.int64), np.array(1, np.int64)
    start = "zero"
    if style.caches:
        g.node("Shape", ["past_key_values.0.key"], "past_shape")
        g.node("Gather", ["past_shape", g.ints(2)], "past1")
        start = g.node("Squeeze", ["past1"], "past")
        total = g.node("Add", ["length", "past"], "total")
    g.node("Range", [start, total, "one"], "positions")
    g.node("Range", ["zero", total, "one"], "columns")
    g.node("Cast", ["positions"], "positions_f", to=FLOAT)
    g.node("Unsqueeze", ["positions_f", g.ints(1)], "positions_2d")
    g.weights["frequencies"] = (1.0 / 100.0 ** (np.arange(style.size // 2) / (style.size // 2))).astype(np.float32)[
        None
    ]
    g.node("Mul", ["positions_2d", "frequencies"], "angles_half")
    g.node("Concat", ["angles_half", "angles_half"], "angles", axis=-1)
    g.node("Cos", ["angles"], "cos")
    g.node("Sin", ["angles"], "sin")
    g.node("Unsqueeze", ["positions", g.ints(1)], "rows")
    g.node("Unsqueeze", ["columns", g.ints(0)], "across")
    g.node("Greater" if style.causal else "Less", ["across", "rows"], "hidden_2d")
    g.weights["least"] = np.array(-3.4e38, np.float32)
    if not style.causal:
        g.weights["least"] = np.array(0.0, np.float32)
    g.node("Where", ["hidden_2d", "least", g.number(0.0)], "bias_2d")
    if style.mask:
        g.node("Unsqueeze", ["bias_2d", g.ints(0, 1)], "bias_4d")
        g.node("Unsqueeze", ["attention_mask", g.ints(1, 2)], "mask_4d")
        g.node("Equal", ["mask_4d", "zero"], "padding")
        g.node("Where", ["padding", "least", "bias_4d"], "bias")


def _block(g: _Graph, style: Style, x: str, p: str) -> str:
    n = _norm(g, style, x, f"{p}in.")
    parts = {}
    for part, heads in (("q", style.heads), ("k", style.kv_heads), ("v", style.kv_heads)):
        flat = g.node("MatMul", [n, g.weight(f"{p}{part}_proj", WIDTH, heads * style.size)], f"{p}{part}")
        apart = g.node("Reshape", [flat, g.ints(0, 0, heads, style.size)], f"{p}{part}_apart")
        parts[part] = g.node("Transpose", [apart], f"{p}{part}_heads", perm=[0, 2, 1, 3])
    q, k = (_rotated(g, style, parts[part], f"{p}{part}_") for part in ("q", "k"))
    v = parts["v"]
    if style.caches:
        layer = p[1:-1]
        k = g.node("Concat", [f"past_key_values.{layer}.key", k], f"present.{layer}.key", axis=2)
        v = g.node("Concat", [f"past_key_values.{layer}.value", v], f"present.{layer}.value", axis=2)
    k, v = (_repeated(g, style, value, f"{p}{part}_") for value, part in ((k, "k"), (v, "v")))
    k = g.node("Transpose", [k], f"{p}k_t", perm=[0, 1, 3, 2])
    if style.scale == "both":
        root = g.number(style.size**-0.25)
        q, k = g.node("Mul", [q, root], f"{p}q_scaled"), g.node("Mul", [root, k], f"{p}k_scaled")
    s = g.node("MatMul", [q, k], f"{p}scores")
    if style.scale == "div":
        s = g.node("Div", [s, g.number(style.size**0.5)], f"{p}scaled")
    elif style.scale == "mul":
        s = g.node("Mul", [s, g.number(style.size**-0.5)], f"{p}scaled")
    s = g.node("Add", [s, "bias" if style.mask else "bias_2d"], f"{p}masked")
    s = g.node("Softmax", [s], f"{p}softmax", axis=-1)
    if style.guard:
        g.node("IsNaN", [s], f"{p}nan")
        s = g.node("Where", [f"{p}nan", g.number(0.0), s], f"{p}guarded")
    o = g.node("MatMul", [s, v], f"{p}mixture")
    o = g.node("Transpose", [o], f"{p}mixture_t", perm=[0, 2, 1, 3])
    o = g.node("Reshape", [o, g.ints(0, 0, style.heads * style.size)], f"{p}joined")
    o = g.node("MatMul", [o, g.weight(f"{p}o_proj", style.heads * style.size, WIDTH)], f"{p}o")
    x = g.node("Add", [x, o], f"{p}attended")
    n = _norm(g, style, x, f"{p}mid.")
    gate = g.node("MatMul", [n, g.weight(f"{p}gate_proj", WIDTH, 48)], f"{p}gate")
    up = g.node("MatMul", [n, g.weight(f"{p}up_proj", WIDTH, 48)], f"{p}up")
    gate = g.node("Mul", [gate, g.node("Sigmoid", [gate], f"{p}sigmoid")], f"{p}silu")
    h = g.node("Mul", [gate, up], f"{p}gated")
    return g.node("Add", [x, g.node("MatMul", [h, g.weight(f"{p}down_proj", 48, WIDTH)], f"{p}down")], f"{p}out")


def _rotated(g: _Graph, style: Style, x: str, p: str) -> str:
    g.nodes.append(helper.make_node("Split", [x], [f"{p}a", f"{p}b"], name=f"{p}split", axis=-1, num_outputs=2))
    turned = g.node("Concat", [g.node("Neg", [f"{p}b"], f"{p}neg"), f"{p}a"], f"{p}turned", axis=-1)
    still = g.node("Mul", [x, "cos"], f"{p}still")
    return g.node("Add", [still, g.node("Mul", [turned, "sin"], f"{p}moved")], f"{p}rotated")


def _repeated(g: _Graph, style: Style, x: str, p: str) -> str:
    repeats = style.heads // style.kv_heads
    if repeats == 1:
        return x
    wide = g.node("Unsqueeze", [x, g.ints(2)], f"{p}wide")
    g.node("Shape", [wide], f"{p}wide_shape")
    times = g.ints(1, 1, repeats, 1, 1)
    g.node("Mul", [f"{p}wide_shape", times], f"{p}spread_shape")
    spread = g.node("Expand", [wide, f"{p}spread_shape"], f"{p}spread")
    return g.node("Reshape", [spread, g.ints(0, style.heads, -1, style.size)], f"{p}repeated")


def _norm(g: _Graph, style: Style, x: str, p: str) -> str:
    gain = f"{p}gain"
    g.weights[gain] = g.rng.uniform(0.3, style.gain, WIDTH).astype(np.float32)
    if style.norm == "layer":
        g.weights[f"{p}shift"] = g.rng.standard_normal(WIDTH).astype(np.float32)
        return g.node("LayerNormalization", [x, gain, f"{p}shift"], f"{p}norm", axis=-1, epsilon=1e-5)
    if style.norm == "rms":
        return g.node("SimplifiedLayerNormalization", [x, gain], f"{p}norm", axis=-1, epsilon=1e-5)
    squares = g.node("Pow", [x, g.number(2.0)], f"{p}squares")
    mean = g.node("ReduceMean", [squares, g.ints(-1)], f"{p}mean", keepdims=1)
    root = g.node("Sqrt", [g.node("Add", [mean, g.number(1e-5)], f"{p}eps")], f"{p}root")
    unit = g.node("Mul", [x, g.node("Reciprocal", [root], f"{p}inverse")], f"{p}unit")
    return g.node("Mul", [gain, unit], f"{p}norm")


def _model(g: _Graph, style: Style) -> bytes:
    inputs = [helper.make_tensor_value_info("input_ids", INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, ["batch", "length", VOCABULARY])]
    if style.mask:
        inputs.append(
            helper.make_tensor_value_info("attention_mask", INT64, ["batch", "all" if style.caches else "length"])
        )
    if style.caches:
        for layer in range(style.blocks):
            for part in ("key", "value"):
                shape = ["batch", style.kv_heads, "past", style.size]
                inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{part}", FLOAT, shape))
                shape = ["batch", style.kv_heads, "total", style.size]
                outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", FLOAT, shape))
    weights = [numpy_helper.from_array(array, name) for name, array in g.weights.items()]
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def prompts(style: Style, count: int = 12, length: int = 16, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Samples without caches; the last ones padded on the left where there is a mask."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        feed = {"input_ids": rng.integers(0, VOCABULARY, (1, length))}
        if style.mask:
            feed["attention_mask"] = np.ones((1, length), np.int64)
            if index >= count - 2:
                feed["attention_mask"][:, :3] = 0
        found.append(feed)
    return found


def with_past(style: Style, feed: dict[str, np.ndarray], past: int, seed: int = 2) -> dict[str, np.ndarray]:
    """A sample that goes on from drawn caches of so many tokens."""
    rng = np.random.default_rng(seed)
    batch = feed["input_ids"].shape[0]
    more = dict(feed)
    if style.mask:
        more["attention_mask"] = np.concatenate([np.ones((batch, past), np.int64), feed["attention_mask"]], axis=1)
    for layer in range(style.blocks):
        for part in ("key", "value"):
            shape = (batch, style.kv_heads, past, style.size)
            more[f"past_key_values.{layer}.{part}"] = rng.standard_normal(shape).astype(np.float32)
    return more
