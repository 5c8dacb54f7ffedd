"""Every operator of the table, in both formats, run in ONNX Runtime at both optimization levels."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
import onnxq.report.results
from onnxq.core.error_measures import sqnr_db
from onnxq.graph.reading.ops import OPS
from tests.graph.emit import networks

FORMATS = ("qdq", "qoperator")
MODELS = networks.every(17)
NEWER = networks.every(21)


def feeds(model: onnx.ModelProto, count: int = 12) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    # Batch 2 throughout: the networks with a fixed batch have that one.
    return [{"x": generator.normal(size=(2, *shape)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray], optimize: bool = True) -> list[np.ndarray]:
    return session(model, optimize).run(None, feed)


def session(model: onnx.ModelProto, optimize: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def result_of(name: str, form: str, opset: int = 17) -> onnxq.report.results.QuantizeResult:
    model = (MODELS if opset == 17 else NEWER)[name]
    return onnxq.quantize(
        model, calibration=feeds(model), preset="w8a8", format=form, range="minmax", include=["*"], benchmark=False
    )


def quantized(name: str, form: str, opset: int = 17) -> onnx.ModelProto:
    model = result_of(name, form, opset).model
    assert model is not None
    return model


def step(model: onnx.ModelProto) -> float:
    """The largest scale that a DequantizeLinear in front of an output or an integer layer behind it has."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in outputs:
            return float(constants[node.input[1]].max())
    return 0.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMATS)
def test_each_operator_runs_on_integers_and_stays_close_to_float(name: str, form: str) -> None:
    model = MODELS[name]
    result = quantized(name, form)
    onnx.checker.check_model(result)
    for feed in feeds(model, 3):
        expected = run(model, feed)[0]
        for optimize in (True, False):
            got = run(result, feed, optimize)[0]
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            if expected.dtype == np.int64:
                assert (got == expected).mean() > 0.95
            else:
                assert sqnr_db(expected, got) > 25


@pytest.mark.parametrize("name", MODELS)
def test_both_formats_of_one_plan_give_the_same_numbers(name: str) -> None:
    model = MODELS[name]
    qdq, qoperator = (quantized(name, form) for form in FORMATS)
    for feed in feeds(model, 3):
        for optimize in (True, False):
            a, b = run(qdq, feed, optimize)[0], run(qoperator, feed, optimize)[0]
            if a.dtype == np.int64:
                assert (a == b).mean() > 0.98
            else:
                # Half-way cases round either way where one format computes a layer in float.
                assert np.abs(a - b).max() <= max(step(qdq), step(qoperator), 0.02 * np.abs(a).max()) * 1.001


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_puts_the_operator_on_integers(name: str) -> None:
    result = result_of(name, "qdq")
    counts = Counter(node.action for node in result.plan.nodes.values())
    kept = [(n.name, n.reason) for n in result.plan.nodes.values() if n.action == "float"]
    assert not kept, (counts, kept)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("Conv 3-D", "Resize", "Softmax", "Where")])
def test_the_reference_evaluator_agrees_on_qdq(name: str) -> None:
    from onnx.reference import ReferenceEvaluator

    result = quantized(name, "qdq", 21)
    feed = feeds(NEWER[name], 1)[0]
    expected = run(result, feed, optimize=False)[0]
    got = np.asarray(ReferenceEvaluator(result).run(None, feed)[0])
    if expected.dtype == np.int64:
        assert (got == expected).mean() > 0.98
    else:
        assert np.abs(got - expected).max() <= max(step(result), 0.02 * np.abs(expected).max()) * 1.001


FUSED = {
    "Conv depthwise": "QLinearConv", "Conv grouped": "QLinearConv", "Add": "QLinearAdd", "Mul": "QLinearMul",
    "SiLU": "QLinearSigmoid", "LeakyRelu": "QLinearLeakyRelu", "Concat": "QLinearConcat", "Where": "QLinearWhere",
    "GlobalAveragePool": "QLinearGlobalAveragePool", "AveragePool": "QLinearAveragePool", "Gemm transB": "QGemm",
    "Gemm last": "QGemm", "MatMul": "QLinearMatMul", "MatMul two activations": "QLinearMatMul",
    "Softmax": "QLinearSoftmax", "Conv 1-D": "QLinearConv", "Conv 3-D": "QLinearConv",
}  # fmt: skip


def optimized(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the model after the runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(folder / "optimized.onnx", load_external_data=False)
    return Counter(node.op_type for node in loaded.graph.node)


@pytest.mark.parametrize(("name", "op_type"), FUSED.items())
def test_the_runtime_turns_qdq_into_integer_kernels(name: str, op_type: str, tmp_path: Path) -> None:
    kinds = optimized(quantized(name, "qdq"), tmp_path)
    assert kinds[op_type], kinds
    assert not kinds["Conv"]
    assert not kinds["Gemm"]


def test_every_row_of_the_table_has_a_network() -> None:
    covered = {node.op_type for model in MODELS.values() for node in model.graph.node}
    assert set(OPS) <= covered


@pytest.mark.parametrize("batch", ["batch", 2])
@pytest.mark.parametrize("activation", [None, "Relu", "Tanh"])
def test_matmul_with_a_bias_stays_on_integers_in_front_of_float(
    batch: str | int, activation: str | None, tmp_path: Path
) -> None:
    net = networks.Net()
    y = net.op("MatMul", ["x", net.const((net.generator.normal(size=(24, 32)) / 5).astype(np.float32))], name="target")
    y = net.op("Add", [y, net.const(net.generator.normal(size=32).astype(np.float32))])
    y = y if activation is None else net.op(activation, [y])
    model = net.model([batch, 6, 24], [y])
    result = onnxq.quantize(model, calibration=feeds(model), preset="w8a8", benchmark=False)
    assert result.model is not None
    kinds = optimized(result.model, tmp_path)
    assert kinds["MatMulIntegerToFloat"], kinds
    assert sqnr_db(run(model, feeds(model)[0])[0], run(result.model, feeds(model)[0])[0]) > 25


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "LeakyRelu"])
def test_gemm_in_front_of_a_float_activation_stays_on_integers(activation: str, tmp_path: Path) -> None:
    net = networks.Net()
    a = net.const((net.generator.normal(size=(24, 32)) / 5).astype(np.float32))
    y = net.op("Gemm", ["x", a, net.const(np.zeros(32, np.float32))], name="target")
    model = net.model(["batch", 24], [net.op(activation, [y])])
    result = onnxq.quantize(model, calibration=feeds(model), preset="w8a8", benchmark=False)
    assert result.model is not None
    assert optimized(result.model, tmp_path)["QGemm"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_layer_that_the_user_excludes_is_not_rounded_by_the_runtime_either(form: str, tmp_path: Path) -> None:
    net = networks.Net()
    y = net.op("Relu", [net.conv("x", 16, 16, 3, name="first")])
    y = net.op("Relu", [net.conv(y, 16, 16, 3, name="middle")])
    model = net.model(["batch", 16, 10, 10], [net.conv(y, 16, 16, 3, name="last")])
    result = onnxq.quantize(
        model, calibration=feeds(model), preset="w8a8", format=form, exclude=["middle"], benchmark=False
    )
    assert result.model is not None
    kinds = optimized(result.model, tmp_path)
    assert kinds["QLinearConv"] == 2, kinds
    assert kinds["Conv"] + kinds["FusedConv"] == 1, kinds


@pytest.mark.parametrize("name", MODELS)
def test_every_value_may_be_an_output(name: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(onnx.shape_inference.infer_shapes(MODELS[name]))
    known = {info.name for info in model.graph.output}
    inner = [v for v in model.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    model.graph.output.extend(value for value in inner if value.name not in known)
    result = onnxq.quantize(model, calibration=feeds(model), preset="w8a8", include=["*"], benchmark=False).model
    assert result is not None
    assert [(v.name, v.type) for v in result.graph.output] == [(v.name, v.type) for v in model.graph.output]
