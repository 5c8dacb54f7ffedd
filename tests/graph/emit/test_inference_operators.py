"""LSTM, Attention, tables, and layers in subgraphs, with dynamic scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.core.error_measures import sqnr_db
from onnxq.core.spec import PerAxis
from onnxq.recipe.recipe import Recipe
from tests.graph.build import build, run, weights
from tests.graph.emit.at_inference import Array, by_row, by_tensor, close, ops, outputs, quantized, weight
from tests.runtime_version import needs_runtime

HIDDEN, INPUTS, STEPS, BATCH = 24, 20, 6, 3
MS = ', "com.microsoft": 1'


def against_float(model: onnx.ModelProto, changed: onnx.ModelProto | None, feed: dict[str, Array], least: float) -> Any:
    """The optimized graph; every output has at least so many dB."""
    assert changed is not None
    got, graph = outputs(changed, feed)
    for value, want in zip(got, run(model.SerializeToString(), feed).values(), strict=True):
        assert value.shape == want.shape
        assert sqnr_db(want, value) > least
    return graph


def lstm(attributes: str, extra: str = "", outs: str = "y", directions: int = 1, **given: Array) -> onnx.ModelProto:
    shapes = {"y": f"float[S, {directions}, B, {HIDDEN}] y", "h": f"float[{directions}, B, {HIDDEN}] h",
              "c": f"float[{directions}, B, {HIDDEN}] c"}  # fmt: skip
    declared = ", ".join(shapes[name.strip()] for name in outs.split(",") if name.strip())
    return build(
        f"g (float[S, B, {INPUTS}] x{extra}) => ({declared}) {{ "
        f"[rnn] {outs} = LSTM <hidden_size = {HIDDEN}{attributes}> (x, w, r, {given.pop('inputs', 'b')}) }}",
        w=weights(directions, 4 * HIDDEN, INPUTS) * np.linspace(0.2, 1, 4 * HIDDEN, dtype=np.float32)[:, None],
        r=weights(directions, 4 * HIDDEN, HIDDEN, seed=1) * 0.4,
        **{"b": weights(directions, 8 * HIDDEN, seed=2), **given},
    )


STATE = f", float[1, B, {HIDDEN}] h0, float[1, B, {HIDDEN}] c0"
LSTMS: dict[str, tuple[onnx.ModelProto, dict[str, Array]]] = {
    "forward": (lstm(""), {}),
    "reverse": (lstm(', direction = "reverse"'), {}),
    "both directions": (lstm(', direction = "bidirectional"', outs="y, h, c", directions=2), {}),
    "last states only": (lstm("", outs=", h, c"), {}),
    "initial states": (
        lstm("", STATE, "y, h, c", inputs="b, , h0, c0"),  # type: ignore[arg-type]
        {"h0": weights(1, BATCH, HIDDEN), "c0": weights(1, BATCH, HIDDEN, seed=5)},
    ),
    "sequence lengths": (lstm("", ", int32[B] n", inputs="b, n"), {"n": np.array([6, 2, 4], np.int32)}),  # type: ignore[arg-type]
    "peepholes": (lstm("", inputs="b, , , , p", p=weights(1, 3 * HIDDEN)), {}),  # type: ignore[arg-type]
    "no bias": (lstm("", inputs=""), {}),  # type: ignore[arg-type]
    "activations": (lstm(', activations = ["HardSigmoid", "Tanh", "Relu"], clip = 2.0, input_forget = 1'), {}),
}


@pytest.mark.parametrize("name", LSTMS)
def test_lstm_in_every_form(name: str) -> None:
    model, more = LSTMS[name]
    x = np.random.default_rng(0).normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
    result = quantized(model)
    graph = against_float(model, result.model, {"x": x, **more}, 30.0)
    assert ops(graph)["DynamicQuantizeLSTM"] == 1
    assert [node.name for node in graph.node if node.op_type == "DynamicQuantizeLSTM"] == ["rnn"]
    assert result.size_after < 0.6 * result.size_before


def test_lstm_with_one_scale_a_matrix() -> None:
    model, _ = LSTMS["both directions"]
    result = quantized(model, per_channel=False)
    x = np.random.default_rng(0).normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
    against_float(model, result.model, {"x": x}, 25.0)


def test_ort_9796_gru_and_rnn_are_stored_with_the_reason() -> None:
    model = build(
        f"g (float[S, B, {INPUTS}] x) => (float[S, 1, B, {HIDDEN}] y, float[S, 1, B, 40] z) "
        f"{{ y = GRU <hidden_size = {HIDDEN}> (x, w, r) z = RNN <hidden_size = 40> (x, v, s) }}",
        w=weights(1, 3 * HIDDEN, INPUTS), r=weights(1, 3 * HIDDEN, HIDDEN),
        v=weights(1, 40, INPUTS) * 0.3, s=weights(1, 40, 40) * 0.3,
    )  # fmt: skip
    result = quantized(model)
    reasons = {op: reason for _, op, reason in result.kept_float}
    assert reasons["GRU"] == "onnxruntime has no GRU that quantizes its input at inference, only an LSTM"
    assert {plan.op_type: plan.action for plan in result.plan.nodes.values()} == {"GRU": "storage", "RNN": "storage"}
    x = np.random.default_rng(0).normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
    against_float(model, result.model, {"x": x}, 30.0)


H, HEADS = 32, 4
MASKS: dict[str, tuple[str, Array]] = {
    "none": ("", np.zeros(0, np.int32)),
    "lengths": ("int32[B] m", np.array([3, 5], np.int32)),
    "starts and ends": ("int32[C] m", np.array([3, 5, 0, 1], np.int32)),
    "keys": ("int32[B, S] m", np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)),
    "pairs": ("int32[B, S, S] m", np.tril(np.ones((2, 5, 5), np.int32))),
}


def attention(inputs: str, declared: str, attributes: str = "", outs: str = "", width: int = 3 * H) -> onnx.ModelProto:
    return build(
        f"g (float[B, S, {H}] x{declared}) => (float[B, S, {H}] y{outs}) {{ [att] y{', p' if outs else ''} = "
        f"com.microsoft.Attention <num_heads = {HEADS}{attributes}> (x, w, {inputs}) }}",
        imports=MS, w=weights(H, width), b=weights(width, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w8a8-token"])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_becomes_qattention(preset: str, mask: str) -> None:
    declared, array = MASKS[mask]
    model = attention("b, m" if declared else "b", f", {declared}" if declared else "")
    x = np.random.default_rng(0).normal(size=(2, 5, H)).astype(np.float32)
    result = quantized(model, preset)
    graph = against_float(model, result.model, {"x": x, "m": array}, 30.0)
    assert ops(graph)["QAttention"] == 1


def test_static_w8a8_has_qattention_too() -> None:
    model = attention("b", "")
    samples = [{"x": np.random.default_rng(i).normal(size=(2, 5, H)).astype(np.float32)} for i in range(4)]
    result = quantized(model, "w8a8", calibration=samples)
    assert ops(against_float(model, result.model, samples[0], 30.0))["QAttention"] == 1
    assert not result.kept_float


def test_attention_with_a_cache_a_scale_and_a_causal_mask() -> None:
    past = f", float[2, B, {HEADS}, T, {H // HEADS}] past"
    model = attention(
        "b, , past", past, ", unidirectional = 1, scale = 0.5", f", float[2, B, {HEADS}, U, {H // HEADS}] p"
    )
    x = np.random.default_rng(0).normal(size=(2, 5, H)).astype(np.float32)
    feed = {"x": x, "past": weights(2, 2, HEADS, 3, H // HEADS)}
    result = quantized(model)
    assert ops(against_float(model, result.model, feed, 30.0))["QAttention"] == 1


@needs_runtime("1.28", "ends the process, or fails, on an Attention without a bias")
def test_attention_without_a_bias() -> None:
    model = attention("", "")
    x = np.random.default_rng(0).normal(size=(2, 5, H)).astype(np.float32)
    assert ops(against_float(model, quantized(model).model, {"x": x}, 30.0))["QAttention"] == 1


def test_attention_that_qattention_cannot_be_is_stored() -> None:
    model = attention("b", "", f", qkv_hidden_sizes = [{H}, {H}, {H}]")
    result = quantized(model)
    plan = result.plan.nodes["att"]
    assert (plan.action, plan.reason) == ("storage", "com.microsoft.QAttention has no attribute qkv_hidden_sizes")
    x = np.random.default_rng(0).normal(size=(2, 5, H)).astype(np.float32)
    against_float(model, result.model, {"x": x}, 35.0)


def test_a_fused_encoder_27_is_quantized_and_not_a_crash() -> None:
    """onnxruntime.quantization.quantize_dynamic ends in "Unable to find data type for weight_name" (seen in 1.31.1)."""
    model = build(
        f"g (int32[B, S] ids, int32[B, S] segments, int32[B, S] mask) => (float[B, S, {H}] y) {{ "
        "e, i = com.microsoft.EmbedLayerNormalization (ids, segments, words, places, kinds, g, b, mask) "
        f"a = com.microsoft.Attention <num_heads = {HEADS}> (e, wqkv, bqkv, i) "
        "o = MatMul (a, wo) s = com.microsoft.SkipLayerNormalization (o, e, g, b, bo) "
        "u = MatMul (s, w1) v = com.microsoft.BiasGelu (u, b1) d = MatMul (v, w2) "
        "y = com.microsoft.SkipLayerNormalization (d, s, g, b, bo) }",
        imports=MS, words=weights(90, H), places=weights(40, H), kinds=weights(2, H), g=np.ones(H, np.float32),
        b=np.zeros(H, np.float32), wqkv=weights(H, 3 * H), bqkv=weights(3 * H), wo=weights(H, H), bo=weights(H),
        w1=weights(H, 4 * H), b1=weights(4 * H), w2=weights(4 * H, H),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    feed = {"ids": rng.integers(0, 90, (2, 7)), "segments": np.zeros((2, 7)), "mask": np.ones((2, 7))}
    result = quantized(model)
    graph = against_float(model, result.model, {k: np.asarray(v, np.int32) for k, v in feed.items()}, 25.0)
    count = ops(graph)
    assert (count["QAttention"], count["DynamicQuantizeMatMul"]) == (1, 3)
    actions = {plan.op_type: plan.action for plan in result.plan.nodes.values()}
    assert actions["com.microsoft.Attention"] == "dynamic"
    assert actions["com.microsoft.EmbedLayerNormalization"] == "storage"


TABLE = weights(60, 40) * np.linspace(0.01, 2, 60, dtype=np.float32)[:, None]


def test_a_table_gives_scaled_rows_and_is_never_unfolded() -> None:
    model = build("g (int64[B, S] i) => (float[B, S, 40] y) { [emb] y = Gather (t, i) }", t=TABLE)
    result = quantized(model)
    ids = np.array([[0, 59, -1], [7, -60, 3]])
    assert result.model is not None
    (y,), graph = outputs(result.model, {"i": ids})
    integers, scale = weight(TABLE, PerAxis(0))
    close(y, (integers * scale)[ids])
    assert all(len(tensor.raw_data) <= TABLE.size for tensor in graph.initializer), "a float table"
    assert not ops(graph)["DequantizeLinear"]
    assert {n.name for n in result.model.graph.node} >= {"emb"}


def test_ort_21277_a_tied_table_and_head_are_stored_once() -> None:
    model = build(
        "g (int64[B, S] i) => (float[B, S, 60] y) { "
        "e = Gather (t, i) h = Relu (e) w = Transpose (t) y = MatMul (h, w) }",
        t=TABLE,
    )
    result = quantized(model, include=["*"])
    assert result.model is not None
    stored = [t for t in result.model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert [list(t.dims) for t in stored] == [[60, 40]]
    ids = np.array([[0, 59, 1], [7, 30, 3]])
    (y,), graph = outputs(result.model, {"i": ids})
    integers, scale = weight(TABLE, PerAxis(0))
    close(y, by_tensor(np.maximum((integers * scale)[ids], 0).astype(np.float32), np.ascontiguousarray(TABLE.T)))
    assert ops(graph)["DynamicQuantizeMatMul"] == 1


def test_a_table_that_something_else_reads_in_float_stays() -> None:
    model = build(
        "g (int64[B] i, float[B, 40] x) => (float[B, 40] y, float[60, 40] z, float[B, 60] u) "
        "{ [emb] y = Gather (t, i) o = Cast <to = 1> (i) s = ReduceMax <keepdims = 0> (o) z = Mul (t, s) "
        "u = MatMul (x, w) }",
        t=TABLE, w=weights(40, 60),
    )  # fmt: skip
    result = quantized(model)
    assert (result.plan.nodes["emb"].action, result.plan.nodes["emb"].reason[:34]) == (
        "float", "its table is also read by Mul 'Mul"[:34],
    )  # fmt: skip
    feed = {"i": np.array([1, 5]), "x": weights(2, 40)}
    against_float(model, result.model, feed, 30.0)


W, V = weights(144, 160), weights(144, 160, seed=3)


def body(what: str) -> onnx.ModelProto:
    """A MatMul in a body that reads a weight from outside and a value that is also read outside."""
    info, make, constant = onnx.helper.make_tensor_value_info, onnx.helper, onnx.numpy_helper.from_array
    real, truth, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL, onnx.TensorProto.INT64
    nodes = [make.make_node("MatMul", ["x", "u"], ["y"], name="outer")]
    inits = [constant(W, "w"), constant(V, "u")]
    inputs = [info("x", real, [4, 144])]
    inside = [make.make_node("MatMul", ["x" if what != "scan" else "row", "w"], ["m"], name="inner")]
    if what == "if":
        inputs.append(info("c", truth, []))
        then = make.make_graph(inside, "then", [], [info("m", real, [4, 160])])
        other = [make.make_node("MatMul", ["x", "u"], ["e"], name="other")]
        otherwise = make.make_graph(other, "else", [], [info("e", real, [4, 160])])
        nodes.append(make.make_node("If", ["c"], ["z"], then_branch=then, else_branch=otherwise))
    elif what == "loop":
        inits += [constant(np.array(3), "n"), constant(np.zeros((4, 160), np.float32), "z0")]
        inside += [make.make_node("Add", ["s", "m"], ["t"]), make.make_node("Identity", ["p"], ["q"])]
        carried = [info("i", whole, []), info("p", truth, []), info("s", real, [4, 160])]
        graph = make.make_graph(inside, "body", carried, [info("q", truth, []), info("t", real, [4, 160])])
        nodes.append(make.make_node("Loop", ["n", "", "z0"], ["z"], body=graph))
    else:
        inputs.append(info("xs", real, [2, 4, 144]))
        graph = make.make_graph(inside, "body", [info("row", real, [4, 144])], [info("m", real, [4, 160])])
        nodes.append(make.make_node("Scan", ["xs"], ["z"], body=graph, num_scan_inputs=1))
    outs = [info("y", real, [4, 160]), info("z", real, [2, 4, 160] if what == "scan" else [4, 160])]
    graph = make.make_graph(nodes, "g", inputs, outs, inits)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w8a8-token"])
@pytest.mark.parametrize("what", ["if", "loop", "scan"])
def test_ort_8488_layers_in_bodies(preset: str, what: str) -> None:
    model = body(what)
    result = quantized(model, preset)
    assert {n: p.action for n, p in result.plan.nodes.items() if n in ("inner", "outer", "other")} == dict.fromkeys(
        ["outer", "inner", *(["other"] if what == "if" else [])], "dynamic"
    )
    assert not any("stay float" in line for line in result.warnings)
    x = np.random.default_rng(0).normal(size=(4, 144)).astype(np.float32)
    product = by_tensor if preset == "w8a8-dynamic" else by_row
    assert result.model is not None
    xs = np.stack([x, 2 * x])
    (y, z), graph = outputs(result.model, {"x": x, "c": np.array(True), "xs": xs})
    close(y, product(x, V))
    inner = product(x, W)
    close(z, {"if": inner, "loop": 3 * inner, "scan": np.stack([inner, 2 * inner])}[what])
    count = ops(graph)
    assert count["MatMulIntegerToFloat"] + count["DynamicQuantizeMatMul"] == (3 if what == "if" else 2)
    if what != "scan":
        assert ops(result.model.graph)["DynamicQuantizeLinear" if product is by_tensor else "QuantizeLinear"] == 1


def test_layers_in_bodies_are_excluded_by_name() -> None:
    result = quantized(body("if"), exclude=["inner"])
    assert {n: p.action for n, p in result.plan.nodes.items() if n in ("inner", "outer", "other")} == {
        "inner": "float",
        "outer": "dynamic",
        "other": "dynamic",
    }
    x = np.random.default_rng(0).normal(size=(4, 144)).astype(np.float32)
    against_float(body("if"), result.model, {"x": x, "c": np.array(False)}, 30.0)


def test_weights_in_bodies_are_stored_with_w8() -> None:
    result = quantized(body("if"), "w8")
    assert {p.action for n, p in result.plan.nodes.items() if n in ("inner", "outer", "other")} == {"storage"}
    x = np.random.default_rng(0).normal(size=(4, 144)).astype(np.float32)
    against_float(body("if"), result.model, {"x": x, "c": np.array(True)}, 35.0)


def test_what_a_dynamo_export_writes() -> None:
    """Weights lie as [out, in] behind a Transpose, biases in an Add."""
    model = build(
        "g (float[N, S, 144] x) => (float[N, S, 160] y) { "
        "t = Transpose <perm = [1, 0]> (w) m = MatMul (x, t) y = Add (m, b) }",
        w=np.ascontiguousarray(W.T), b=weights(160), opset=18,
    )  # fmt: skip
    result = quantized(model)
    x = np.random.default_rng(0).normal(size=(2, 4, 144)).astype(np.float32)
    assert result.model is not None
    (y,), graph = outputs(result.model, {"x": x})
    close(y, by_tensor(x, W) + weights(160))
    assert list(ops(graph)) == ["DynamicQuantizeMatMul"]


def test_recipe_excludes_a_dynamic_layer() -> None:
    model = build(
        "g (float[N, 144] x) => (float[N, 160] y, float[N, 160] z) { [a] y = MatMul (x, w) [b] z = MatMul (x, v) }",
        w=W, v=V,
    )  # fmt: skip
    for options in ({"exclude": ["b"]}, {"include": ["a"]}, {"recipe": Recipe(exclude=("b",))}):
        result = quantized(model, **options)
        assert {n: p.action for n, p in result.plan.nodes.items()} == {"a": "dynamic", "b": "float"}
