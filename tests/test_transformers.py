"""Transformers from end to end: quantized, run by ONNX Runtime, compared with float at the tokens that count."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.plan.decisions import Calibrated
from onnxq.report.results import QuantizeResult
from tests.graph.build import build, session
from tests.transformers import decoder, encoder, sentences

LOW32, LOW16 = float(np.finfo(np.float32).min), -65504.0


def quantized(proto: Any, feeds: Any, **options: Any) -> QuantizeResult:
    return onnxq.quantize(proto, calibration=feeds, preset="w8a8", threads=1, benchmark=False, **options)


def sqnr(proto: Any, result: QuantizeResult, feeds: Any) -> float:
    """dB over real tokens."""
    before, after = session(proto.SerializeToString()), session(result.model.SerializeToString())
    signal = noise = 0.0
    for feed in feeds:
        a, b = before.run(None, feed)[0].astype(np.float64), after.run(None, feed)[0]
        real = feed["attention_mask"] == 1 if "attention_mask" in feed else slice(None)
        signal, noise = signal + (a[real] ** 2).sum(), noise + ((a - b)[real] ** 2).sum()
    return 10 * np.log10(signal / noise)


def test_tables_of_embeddings_are_stored_as_integers_in_static_models_too() -> None:
    model, feeds = encoder(), sentences()
    result = quantized(model, feeds)
    assert result.plan.nodes["Gather_0"].action == "dynamic"
    assert result.model is not None
    tables = [t for t in result.model.graph.initializer if tuple(t.dims) == (50, 32)]
    assert [t.data_type for t in tables] == [onnx.TensorProto.INT8]
    left_out = quantized(model, feeds, exclude=["Gather_0"])
    assert left_out.model is not None and left_out.plan.nodes["Gather_0"].action == "float"
    assert "words" in {t.name for t in left_out.model.graph.initializer}


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("style", ["torch", "dynamo"])
def test_an_encoder_keeps_its_numbers(style: str, form: str) -> None:
    proto = encoder(style)
    result = quantized(proto, sentences(), format=form)
    assert sqnr(proto, result, sentences(4, seed=9)) > 28
    assert result.coverage["MatMul"]["quantized"] >= 6  # every one with a weight
    assert Counter(n.op_type for n in result.model.graph.node)["MatMulIntegerToFloat"] >= 6


@pytest.mark.parametrize("style", ["torch", "dynamo"])
def test_a_decoder_keeps_its_numbers(style: str) -> None:
    proto = decoder(style)
    feeds = [{"input_ids": f["input_ids"]} for f in sentences(length=12, padded=False)]
    result = quantized(proto, feeds)
    assert sqnr(proto, result, feeds[:4]) > 26
    reasons = {reason for _, _, reason in result.kept_float}
    assert {"part of an RMSNorm, which stays float", "part of a rotary embedding, which stays float"} <= reasons


def test_functions_are_never_half_on_integers() -> None:
    for proto in (encoder("torch"), encoder("dynamo"), decoder("torch"), decoder("dynamo")):
        feeds = sentences(length=12)
        if len(proto.graph.input) == 1:
            feeds = [{"input_ids": f["input_ids"]} for f in feeds]
        plan = quantized(proto, feeds).plan
        for node in plan.nodes.values():
            if node.op_type in ("Erf", "Pow", "ReduceMean", "Sqrt", "Neg"):
                assert node.action == "float" and node.reason.startswith("part of"), node
        sides = {node.action for node in plan.nodes.values() if node.op_type == "Sigmoid"}
        sides |= {plan.nodes[n.name].action for n in proto.graph.node if n.op_type == "Mul" and "Sigmoid" in n.input[1]}
        assert len(sides) <= 1


@pytest.mark.parametrize("way", ["add", "where"])
@pytest.mark.parametrize("mask", [-10000.0, -1e9, LOW16, LOW32, -np.inf])
def test_no_range_holds_a_mask(mask: float, way: str) -> None:
    if way == "add" and np.isinf(mask):
        pytest.skip("0 · ∞ is no number in float either")
    proto = encoder("torch", mask, way)
    result = quantized(proto, sentences(), include=("*",))
    assert sqnr(proto, result, sentences(4, seed=9)) > 15  # every node that can is on integers here
    low = min(float(-np.asarray(s).max() * 255) for s in scales(result))
    assert low > -2000


def scales(result: QuantizeResult) -> list[Any]:
    return [
        onnx.numpy_helper.to_array(value)
        for value in result.model.graph.initializer
        if value.name.endswith("_scale") and not value.dims
    ]


def test_masked_logits_stay_float_and_the_reason_names_the_mask() -> None:
    plan = quantized(encoder("torch", LOW32), sentences()).plan
    softmax = next(node for node in plan.nodes.values() if node.op_type == "Softmax")
    mask = "it carries an attention mask (−3.403e+38)"
    assert softmax.reason == f"{mask}, whose range leaves no 8-bit resolution for the rest"


def test_a_mask_that_comes_as_an_input_is_seen_in_the_statistics() -> None:
    proto = encoder("torch", 1.0)
    data = [
        {"input_ids": np.maximum(f["input_ids"], 1), "attention_mask": np.where(f["attention_mask"] == 1, 1, 10001)}
        for f in sentences()
    ]
    result = quantized(proto, data, include=("*",))
    plan = result.plan
    softmax = next(node for node in plan.nodes.values() if node.op_type == "Softmax")
    assert softmax.action == "float" and "8 bits are too few" in softmax.reason


def test_padding_does_not_widen_the_ranges() -> None:
    proto, padded = encoder("torch"), sentences()
    real = quantized(proto, padded, include=("*",))  # whatever the samples look like
    # The same sentences with the mask under another name: nothing says which tokens are padding.
    blind = onnx.ModelProto.FromString(proto.SerializeToString().replace(b"attention_mask", b"attention_look"))
    feeds = [{"input_ids": f["input_ids"], "attention_look": f["attention_mask"]} for f in padded]
    unaware = quantized(blind, feeds, include=("*",), force=True)
    renamed = [{**f, "attention_look": f["attention_mask"]} for f in sentences(4, seed=9)]
    before, after = session(blind.SerializeToString()), session(unaware.model.SerializeToString())
    signal = noise = 0.0
    for feed in renamed:
        given = {name: feed[name] for name in ("input_ids", "attention_look")}
        a, b = before.run(None, given)[0].astype(np.float64), after.run(None, given)[0]
        kept = feed["attention_look"] == 1
        signal, noise = signal + (a[kept] ** 2).sum(), noise + ((a - b)[kept] ** 2).sum()
    assert sqnr(proto, real, sentences(4, seed=9)) > 10 * np.log10(signal / noise) + 3


def test_probabilities_take_the_whole_grid() -> None:
    proto = encoder("dynamo", LOW32, width=64)
    plan = quantized(proto, sentences(), include=("MatMul*",)).plan
    decisions = [plan.values[name] for name in plan.values if name.startswith("Softmax")]
    assert decisions and all(
        isinstance(d, Calibrated) and d.range_method == "minmax" and d.within == (0.0, 1.0) for d in decisions
    )


def test_onnxruntime_10484_where_inference_fails_types_come_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Incomplete symbolic shape inference")

    proto = encoder("dynamo")
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fails)
    result = quantized(proto, sentences())
    assert any("types come from calibration: Incomplete symbolic" in line for line in result.warnings)
    assert result.coverage["MatMul"]["quantized"] >= 6
    assert sqnr(proto, result, sentences(4, seed=9)) > 28


FUSED = """
g (int64[N, S] ids, int32[N, S] mask, float[N, S, 32] x) => (float[N, S, 32] y)
{
    a = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, mask)
    p = MatMul (a, w1)
    s = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (p, x, gain, beta, bias)
    h = MatMul (s, w2)
    g = com.microsoft.BiasGelu (h, wide_bias)
    f = com.microsoft.FastGelu (g, wide_bias)
    o = MatMul (f, w3)
    m = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (o, w1)
    q = com.microsoft.QuickGelu <alpha = 1.0> (m)
    k = com.microsoft.MultiHeadAttention <num_heads = 2> (q, o, o)
    b = Add (k, o)
    y = LayerNormalization <axis = -1> (b, gain, beta)
}
"""


@pytest.mark.parametrize("preset", ["w8a8", "w8"])
def test_a_fused_model_as_input_is_quantized_around_its_operators(preset: str) -> None:
    """In onnxruntime 1.31.1 quantize_dynamic ends on such a model: Unable to find data type for weight_name."""
    generator = np.random.default_rng(0)
    shapes = {
        "qkv": (32, 96), "qkv_bias": (96,), "w1": (32, 32), "gain": (32,), "beta": (32,), "bias": (32,),
        "w2": (32, 128), "wide_bias": (128,), "w3": (128, 32),
    }  # fmt: skip
    arrays = {n: (generator.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
    proto = build(FUSED, imports=', "com.microsoft": 1', **arrays)
    feeds = []
    for i in range(6):
        mask = np.ones((2, 7), np.int32)
        mask[1, 4:] = 0
        x = generator.normal(size=(2, 7, 32)).astype(np.float32)
        feeds.append({"ids": np.full((2, 7), i), "mask": mask, "x": x})
    result = onnxq.quantize(proto, calibration=feeds, preset=preset, threads=1, benchmark=False)
    assert result.sqnr_db is not None and result.sqnr_db > 25
    reasons = {op_type: reason for _, op_type, reason in result.kept_float}
    quantized = {node["op_type"] for node in result.to_dict()["at_inference"]}
    assert ("com.microsoft.Attention" in quantized) == (preset == "w8a8")
    floats = ["SkipLayerNormalization", "BiasGelu", "FastGelu", "FusedMatMul", "MultiHeadAttention"]
    floats += [] if "com.microsoft.Attention" in quantized else ["Attention"]
    for op_type in floats:
        assert reasons[f"com.microsoft.{op_type}"]
    if preset == "w8a8":
        assert result.coverage["MatMul"] == {"quantized": 3, "total": 3}


@pytest.mark.zoo
def test_minilm_keeps_its_correlation(zoo: Any, tmp_path: Any) -> None:
    """Static quantization by others takes Spearman's ρ from 0.82 to 0.44 here."""
    task = zoo.task_named("minilm_stsb")
    if not task.present:
        pytest.skip("zoo: minilm_stsb is absent; python zoo.py build-minilm builds it")
    path = tmp_path / "int8.onnx"
    onnxq.quantize(task.model, path, calibration=zoo.calibration_feeds(task)[:80], preset="w8a8", benchmark=False)
    assert zoo.evaluate(task, path)[task.metric] > task.fp32 - 0.01
