"""Float models from quantized ones, of our own and of onnxruntime.quantization: outputs, names, and nothing left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxq
from onnxq.errors import ModelError
from onnxq.graph.undo.operators import QUANTIZED
from tests.graph.build import build, weights
from tests.runtime_version import TWO_BITS, needs_runtime

Array = np.ndarray[Any, Any]

CNN = """g (float[N,3,16,16] x) => (float[N,10] y) {
    [stem] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [relu] b = Relu (a)
    [body] c = Conv <pads = [1,1,1,1], strides = [2,2]> (b, w2) [clip] d = Clip (c, zero, six)
    [pool] e = MaxPool <kernel_shape = [2,2]> (d)
    [left] f = Conv (e, w3) [right] h = Conv (e, w4) [gate] i = Sigmoid (h) [mul] j = Mul (f, i) [add] k = Add (j, e)
    [act] l = LeakyRelu (k) [cat] m = Concat <axis = 1> (l, e) [mean] n = GlobalAveragePool (m)
    [flat] o = Flatten (n) [fc] y = Gemm <transB = 1> (o, w5, b5) }"""
MLP = """g (float[N,7,64] x, int64[N,7] i) => (float[N,7,24] y) {
    t = Gather (table, i) s = Add (x, t) [one] a = MatMul (s, w1) [bias] b = Add (a, b1) [relu] c = Relu (b)
    [two] d = MatMul (c, w2) p = Transpose <perm = [0,2,1]> (d) [scores] q = MatMul (d, p)
    r = Softmax <axis = -1> (q) [mix] u = MatMul (r, d) [out] y = MatMul (u, w3) }"""


def cnn() -> onnx.ModelProto:
    return build(
        CNN, w1=weights(16, 3, 3, 3), b1=weights(16), w2=weights(24, 16, 3, 3, seed=1),
        w3=weights(24, 24, 1, 1, seed=2), w4=weights(24, 24, 1, 1, seed=3), w5=weights(10, 48, seed=4), b5=weights(10),
        zero=np.array(0, np.float32), six=np.array(6, np.float32),
    )  # fmt: skip


def mlp() -> onnx.ModelProto:
    return build(
        MLP, table=weights(200, 64, seed=1), w1=weights(64, 128, seed=2), b1=weights(128), w2=weights(128, 64, seed=3),
        w3=weights(64, 24, seed=4), opset=21, ir=10,
    )  # fmt: skip


CNN_FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 3, 16, 16)).astype(np.float32)} for i in range(8)]
MLP_FEEDS = [
    {
        "x": np.random.default_rng(i).normal(size=(2, 7, 64)).astype(np.float32),
        "i": np.random.default_rng(i).integers(0, 200, (2, 7)),
    }
    for i in range(8)
]
MODELS = {"cnn": (cnn, CNN_FEEDS), "mlp": (mlp, MLP_FEEDS)}


class Reader(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self._feeds, None)


def outputs(model: onnx.ModelProto | Path, feeds: list[dict[str, Array]]) -> list[Array]:
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


def db(reference: list[Array], other: list[Array]) -> float:
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(reference, other, strict=True))
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in reference)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def left(model: onnx.ModelProto) -> set[str]:
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    return {
        node.op_type
        for graph in graphs
        for node in graph.node
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear")
    }


def undone(model: onnx.ModelProto | Path) -> onnx.ModelProto:
    """The float form, checked: it is all float, has the signature it had, and a second run finds nothing to do."""
    given = onnx.load(model) if isinstance(model, Path) else model
    result = onnxq.dequantize(given)
    assert result.output is None and result.left == {}
    made = result.model
    assert isinstance(made, onnx.ModelProto)
    assert left(made) == set()
    for side in ("input", "output"):
        before, after = (
            [(v.name, v.type.tensor_type.elem_type) for v in getattr(m.graph, side)] for m in (given, made)
        )
        constants = {t.name for t in given.graph.initializer}
        assert [entry for entry in before if entry[0] not in constants] == after
    with pytest.raises(ModelError, match="nothing in it is quantized"):
        onnxq.dequantize(made)
    return made


def static(name: str, path: Path, **options: Any) -> onnx.ModelProto:
    make, feeds = MODELS[name]
    onnx.save(make(), path / "float.onnx")
    quantize_static(path / "float.onnx", path / "q.onnx", Reader(feeds), **options)
    return onnx.load(path / "q.onnx")


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("types", [(QuantType.QUInt8, QuantType.QInt8), (QuantType.QInt8, QuantType.QInt8)])
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_static_models_of_onnxruntime(
    name: str, form: QuantFormat, per_channel: bool, types: tuple[QuantType, QuantType], tmp_path: Path
) -> None:
    quantized = static(
        name, tmp_path, quant_format=form, per_channel=per_channel, activation_type=types[0], weight_type=types[1]
    )
    assert len(left(quantized)) > 1
    made, (make, feeds) = undone(quantized), MODELS[name]
    exact = outputs(make(), feeds)
    rounded, real = outputs(quantized, feeds), outputs(made, feeds)
    assert db(exact, real) > db(exact, rounded) - 1.0  # what is left is the error of the weights
    assert db(exact, real) > 25.0
    names = {node.name for node in make().graph.node if node.name not in ("", "relu", "clip", "flat")}
    assert names <= {node.name for node in made.graph.node}


CNN_OF_INT8 = pytest.param("cnn", marks=needs_runtime("1.28", "has no ConvInteger of int8 weights"))


@pytest.mark.parametrize("name", [CNN_OF_INT8, "mlp"])
def test_dynamic_models_of_onnxruntime(name: str, tmp_path: Path) -> None:
    make, feeds = MODELS[name]
    onnx.save(make(), tmp_path / "float.onnx")
    for weight in (QuantType.QInt8, QuantType.QUInt8):
        for per_channel in (False, True):
            quantize_dynamic(tmp_path / "float.onnx", tmp_path / "q.onnx", weight_type=weight, per_channel=per_channel)
            quantized = onnx.load(tmp_path / "q.onnx")
            made = undone(quantized)
            exact, real = outputs(make(), feeds), outputs(made, feeds)
            assert db(exact, real) > max(30.0, db(exact, outputs(quantized, feeds)) - 1.0)


@pytest.mark.parametrize("weight", [QuantType.QInt8, QuantType.QUInt8])
def test_rows_of_a_table_that_are_multiplied_as_integers(weight: QuantType, tmp_path: Path) -> None:
    made = build(
        "g (int64[N,7] i) => (float[N,7,24] y) { t = Gather (table, i) a = MatMul (t, w1) b = Tanh (a) "
        "y = MatMul (b, w2) }",
        table=weights(200, 64, seed=1), w1=weights(64, 128, seed=2), w2=weights(128, 24, seed=3),
    )  # fmt: skip
    onnx.save(made, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "q.onnx", weight_type=weight)
    quantized = onnx.load(tmp_path / "q.onnx")
    real = undone(quantized)
    (table,) = [numpy_helper.to_array(t) for t in real.graph.initializer if t.name == "table"]
    parts = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    integers = parts["table_quantized"].astype(np.float32) - parts["table_zero_point"]
    np.testing.assert_array_equal(table, (integers * parts["table_scale"]).astype(np.float32))
    feeds = [{"i": feed["i"]} for feed in MLP_FEEDS]
    assert db(outputs(made, feeds), outputs(real, feeds)) > 30.0


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("cnn", {"preset": "w8a8"}, 25),
        ("cnn", {"preset": "w8a8", "format": "qoperator"}, 25),
        ("cnn", {"preset": "w8a8", "target": "cpu-avx2"}, 22),
        ("cnn", {"preset": "w8a8-dynamic"}, 25),
        ("cnn", {"preset": "w8"}, 30),
        ("mlp", {"preset": "w8a8"}, 25),
        ("mlp", {"preset": "w8a8-dynamic"}, 25),
        ("mlp", {"preset": "w8a8-token"}, 25),
        ("mlp", {"preset": "w8a8-token", "block_size": 32}, 25),
        ("mlp", {"preset": "llm-int8", "outliers": 2.5}, 25),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()) if isinstance(value, dict) else None,
)
def test_models_of_our_own(name: str, options: dict[str, Any], least: float) -> None:
    make, feeds = MODELS[name]
    given = {"calibration": feeds, "benchmark": False, "threads": 1, **options}
    kinds = ["Conv", "Gemm", "Add", "MaxPool"] if name == "cnn" else ["MatMul", "Add", "Gather"]
    quantized = onnxq.quantize(make(), **given, op_types=kinds).model
    assert isinstance(quantized, onnx.ModelProto)
    made = undone(quantized)
    exact, real = outputs(make(), feeds), outputs(made, feeds)
    assert db(exact, real) > max(least, db(exact, outputs(quantized, feeds)) - 1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "w8"}, {"preset": "w8", "format": "qdq"}, {"preset": "w4"}, {"preset": "w4", "format": "qdq"},
        {"preset": "w4", "symmetric": False}, {"preset": "w4", "block_size": 0}, {"preset": "nf4"},
        pytest.param({"preset": "w2"}, marks=TWO_BITS),
        {"preset": "nf4", "format": "qdq"}, {"preset": "fp4"}, {"preset": "lut4"}, {"preset": "lut8"},
    ],
    ids=lambda options: "-".join(str(v) for v in options.values()),
)  # fmt: skip
def test_stored_weights_are_the_same_numbers(options: dict[str, Any]) -> None:
    level = {} if options["preset"] in ("nf4", "fp4", "lut4", "lut8") else {"accuracy_level": 0}
    if options == {"preset": "w8"} or options.get("format") == "qdq":
        level = {}
    made = onnxq.quantize(mlp(), benchmark=False, threads=1, **options, **level, force=True).model
    assert isinstance(made, onnx.ModelProto)
    reference, real = outputs(made, MLP_FEEDS), outputs(undone(made), MLP_FEEDS)
    for a, b in zip(reference, real, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


def test_recurrent_nets_and_attention() -> None:
    text = """g (float[5,N,16] x) => (float[5,1,N,24] y, float[1,N,24] h) {
        y, h, c = LSTM <hidden_size = 24> (x, w, r, b) }"""
    model = build(text, w=weights(1, 96, 16), r=weights(1, 96, 24, seed=1), b=weights(1, 192))
    feeds = [{"x": np.random.default_rng(3).normal(size=(5, 2, 16)).astype(np.float32)}]
    quantized = onnxq.quantize(model, preset="w8a8-dynamic", benchmark=False, threads=1).model
    assert isinstance(quantized, onnx.ModelProto)
    assert "DynamicQuantizeLSTM" in left(quantized)
    assert db(outputs(model, feeds), outputs(undone(quantized), feeds)) > 35
    text = """g (float[N,6,32] x) => (float[N,6,32] y) { y = com.microsoft.Attention <num_heads = 4> (x, w, b) }"""
    model = build(text, imports=', "com.microsoft": 1', w=weights(32, 96), b=weights(96))
    feeds = [{"x": np.random.default_rng(3).normal(size=(2, 6, 32)).astype(np.float32)}]
    quantized = onnxq.quantize(model, preset="w8a8-dynamic", benchmark=False, threads=1).model
    assert isinstance(quantized, onnx.ModelProto)
    assert "QAttention" in left(quantized)
    assert db(outputs(model, feeds), outputs(undone(quantized), feeds)) > 35


def test_embeddings_with_their_norm(tmp_path: Path) -> None:
    text = """g (int32[N,5] i, int32[N,5] t, int32[N,5] m) => (float[N,5,32] y) {
        y, k = com.microsoft.EmbedLayerNormalization (i, t, words, places, parts, gain, shift, m) }"""
    model = build(
        text, imports=', "com.microsoft": 1', words=weights(50, 32), places=weights(8, 32, seed=1),
        parts=weights(2, 32, seed=2), gain=weights(32, low=0.5), shift=weights(32, seed=3),
    )  # fmt: skip
    onnx.save(model, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "q.onnx", op_types_to_quantize=["EmbedLayerNormalization"])
    quantized = onnx.load(tmp_path / "q.onnx")
    assert left(quantized) == {"QEmbedLayerNormalization"}
    generator = np.random.default_rng(0)
    feeds = [
        {
            "i": generator.integers(0, 50, (2, 5)).astype(np.int32),
            "t": generator.integers(0, 2, (2, 5)).astype(np.int32),
            "m": np.ones((2, 5), np.int32),
        }
    ]
    assert db(outputs(quantized, feeds), outputs(undone(quantized), feeds)) > 60
    assert db(outputs(model, feeds), outputs(undone(quantized), feeds)) > 30


def test_nodes_in_subgraphs_and_shared_weights(tmp_path: Path) -> None:
    text = """g (float[N,64] x, bool c) => (float[N,64] y) {
        a = MatMul (x, w)
        y = If (c) <then_branch = t () => (float[N,64] z) { [inner] z = MatMul (a, w) },
                    else_branch = f () => (float[N,64] z) { [other] z = MatMul (a, v) }> }"""
    model = build(text, w=weights(64, 64, high=0.2), v=weights(64, 64, seed=1))
    feeds = [
        {"x": np.random.default_rng(i).normal(size=(2, 64)).astype(np.float32), "c": np.array(i % 2 == 0)}
        for i in (0, 1)
    ]
    for preset in ("w8a8-dynamic", "w8", "w4"):
        quantized = onnxq.quantize(model, preset=preset, benchmark=False, threads=1).model
        assert isinstance(quantized, onnx.ModelProto)
        made = undone(quantized)
        assert db(outputs(model, feeds), outputs(made, feeds)) > (15 if preset == "w4" else 35)
        large = [t for t in made.graph.initializer if np.prod(t.dims) == 64 * 64]
        assert len(large) == 2 or preset == "w4"


def test_a_relu_that_a_range_replaced_comes_back() -> None:
    quantized = onnxq.quantize(
        cnn(), calibration=CNN_FEEDS, preset="w8a8", benchmark=False, threads=1, op_types=["Conv"]
    )
    made = undone(quantized.model)  # type: ignore[arg-type]
    kinds = [node.op_type for node in made.graph.node]
    assert "Relu" in kinds and ("Clip" in kinds or kinds.count("Relu") == 2)


def test_what_is_float_between_integers_from_outside_stays_exact() -> None:
    text = """g (uint8[N,8] x) => (uint8[N,4] y) {
        a = DequantizeLinear (x, s, z) b = DequantizeLinear (w, t) c = MatMul (a, b) y = QuantizeLinear (c, u, z) }"""
    model = build(
        text, s=np.array(0.1, np.float32), z=np.array(3, np.uint8), t=np.array(0.01, np.float32),
        u=np.array(0.2, np.float32), w=np.random.default_rng(0).integers(-128, 127, (8, 4)).astype(np.int8),
    )  # fmt: skip
    result = onnxq.dequantize(model)
    assert result.left == {"QuantizeLinear": 1}  # an output of integers stays one
    feed = [{"x": np.random.default_rng(1).integers(0, 255, (5, 8)).astype(np.uint8)}]
    np.testing.assert_array_equal(outputs(result.model, feed)[0], outputs(model, feed)[0])  # type: ignore[arg-type]


def test_constants_between_q_and_dq_are_rounded_once() -> None:
    text = """g (float[N,8] x) => (float[N,4] y) {
        q = QuantizeLinear <axis = 1> (w, t, o) b = DequantizeLinear <axis = 1> (q, t, o) y = MatMul (x, b) }"""
    model = build(text, t=weights(4, low=0.01, high=0.02), o=np.zeros(4, np.int8), w=weights(8, 4))
    feed = [{"x": np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)}]
    np.testing.assert_allclose(outputs(undone(model), feed)[0], outputs(model, feed)[0], rtol=1e-6)


def test_a_bias_that_is_added_in_steps_of_the_product() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4,6,6] y) {
        q, s, z = DynamicQuantizeLinear (x) step = Mul (s, t) scaled = Div (b, step) whole = Floor (scaled)
        integers = Cast <to = 6> (whole) shaped = Reshape (integers, shape) [layer] c = ConvInteger (q, w, z, o)
        d = Add (c, shaped) e = Cast <to = 1> (d) factor = Mul (s, t) y = Mul (e, factor) }"""
    generator = np.random.default_rng(0)
    weight = generator.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    bias, feeds = weights(4, seed=8), [{"x": generator.normal(size=(2, 3, 8, 8)).astype(np.float32)}]
    model = build(
        text, t=np.array(0.01, np.float32), b=bias, shape=np.array([1, 4, 1, 1]), w=weight, o=np.array(0, np.int8)
    )
    plain = build(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv (x, w, b) }", b=bias,
        w=weight.astype(np.float32) * np.float32(0.01),
    )  # fmt: skip
    made = undone(model)
    np.testing.assert_allclose(outputs(made, feeds)[0], outputs(plain, feeds)[0], rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in made.graph.node] == ["Conv", "Add"]


def optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A model as the runtime writes it after all its optimizations, with operators that only it has."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def test_convolutions_and_pools_whose_channels_lie_last(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(1, 255, (6, 3, 3, 2)).astype(np.uint8)
    grid = {"s": np.array(0.01, np.float32), "z": np.array(128, np.uint8)}
    text = """g (float[2,9,8,3] x) => (float[2,1,1,6] y, float[2,4,4,6] v) {
        q = QuantizeLinear (x, s, z)
        c = com.microsoft.QLinearConv <channels_last = 1, pads = [1,0,1,0], strides = [2,2]> (q, s, z, w, t, z, r, z, b)
        p = com.microsoft.QLinearAveragePool <channels_last = 1, kernel_shape = [2,1], strides = [1,1]> (c, r, z, r, z)
        g = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (p, r, z, r, z)
        v = DequantizeLinear (p, r, z) y = DequantizeLinear (g, r, z) }"""
    rest = {"t": np.array(0.01, np.float32), "r": np.array(0.06, np.float32), "b": np.arange(6, dtype=np.int32) * 100}
    model = build(text, w=weight, **grid, **rest)
    feeds = [{"x": np.random.default_rng(1).uniform(-1.2, 1.2, (2, 9, 8, 3)).astype(np.float32)}]
    made = undone(model)
    assert {node.op_type for node in made.graph.node} == {"Transpose", "Conv", "AveragePool", "GlobalAveragePool"}
    assert db(outputs(model, feeds), outputs(made, feeds)) > 24
    inside = static("cnn", tmp_path, activation_type=QuantType.QUInt8)
    saved = optimized(inside, tmp_path / "optimized.onnx")
    last = [node for node in saved.graph.node if any(a.name == "channels_last" and a.i for a in node.attribute)]
    assert {node.op_type for node in last} >= {"QLinearConv"}
    made = undone(saved)
    assert not left(made) and db(outputs(cnn(), CNN_FEEDS), outputs(made, CNN_FEEDS)) > 25


def test_the_result_can_be_quantized_anew(tmp_path: Path) -> None:
    feeds = CNN_FEEDS
    quantized = static("cnn", tmp_path, quant_format=QuantFormat.QOperator)
    onnx.save(quantized, tmp_path / "q.onnx")
    result = onnxq.dequantize(tmp_path / "q.onnx")
    assert result.output == tmp_path / "q.float.onnx" and "q.float.onnx" in result.summary()
    again = onnxq.quantize(result.output, preset="w8a8", calibration=feeds, benchmark=False, threads=1)
    assert again.coverage["Conv"]["quantized"] >= 2


def test_what_cannot_be_undone_is_said(tmp_path: Path) -> None:
    onnx.save(cnn(), tmp_path / "float.onnx")
    with pytest.raises(ModelError, match=r"float.onnx: nothing in it is quantized, it is a float model"):
        onnxq.dequantize(tmp_path / "float.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(onnxq.OnnxqError, match="is an input of this run"):
        onnxq.dequantize(tmp_path / "float.onnx", tmp_path / "float.onnx")


@pytest.mark.parametrize("format", ["qdq", "qoperator"])
def test_the_made_up_sample_stays_inside_what_the_model_takes(format: str) -> None:
    """Beyond its range the quantized model clips, and the two are far apart however well its floats were found."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.uniform(0.0, 0.02, (2, 3, 16, 16)).astype(np.float32)} for _ in range(6)]
    options: dict[str, Any] = {"preset": "w8a8", "format": format, "op_types": ["Conv", "Gemm"], "force": True}
    small = onnxq.quantize(cnn(), calibration=feeds, benchmark=False, threads=1, **options)
    assert small.model is not None
    back = onnxq.dequantize(small.model)
    assert back.sqnr_db is not None and back.sqnr_db > 20
    assert not any("synthetic" in warning for warning in back.warnings)
