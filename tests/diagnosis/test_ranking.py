"""The node that hurts comes first, with the reason, whoever made the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import ModelError, OnnxqError, RecipeError
from onnxq.recipe.recipe import Recipe
from tests.graph.build import build, weights
from tests.runtime_version import needs_runtime

WIDTHS = (24, 48, 40, 32, 40, 24, 12)
Feed = dict[str, np.ndarray]


def network(seed: int) -> onnx.ModelProto:
    """Six Gemm layers with Relu between them."""
    rng = np.random.default_rng(seed)
    lines, constants, last = [], {}, "x"
    for i in range(len(WIDTHS) - 1):
        end = "y" if i == len(WIDTHS) - 2 else f"g{i}"
        lines.append(f"[layer{i}] {end} = Gemm ({last}, w{i}, b{i})")
        if end != "y":
            lines.append(f"[relu{i}] r{i} = Relu (g{i})")
        last = f"r{i}"
        constants[f"w{i}"] = rng.normal(0, WIDTHS[i] ** -0.5, WIDTHS[i : i + 2]).astype(np.float32)
        constants[f"b{i}"] = rng.normal(0, 0.1, WIDTHS[i + 1]).astype(np.float32)
    text = f"g (float[N,{WIDTHS[0]}] x) => (float[N,{WIDTHS[-1]}] y) {{ {' '.join(lines)} }}"
    return build(text, **constants)


def drawn(seed: int, count: int = 12) -> list[Feed]:
    rng = np.random.default_rng([seed, 1])
    return [{"x": rng.normal(0, 1, (4, WIDTHS[0])).astype(np.float32)} for _ in range(count)]


def quantized(model: onnx.ModelProto, feeds: list[Feed], **options: object) -> onnx.ModelProto:
    result = onnxq.quantize(
        model,
        calibration=feeds,
        preset="w8a8",
        threads=1,
        benchmark=False,
        **options,  # type: ignore[arg-type]
    )
    assert result.model is not None
    return result.model


def spoil_weight(model: onnx.ModelProto, layer: str) -> None:
    """Keep three bits of the weight of a layer."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    number = layer.removeprefix("layer")
    name = next(n for n in constants if n.startswith(f"w{number}") and n.endswith("_quantized"))
    array = onnx.numpy_helper.to_array(constants[name]).copy()
    constants[name].CopyFrom(onnx.numpy_helper.from_array((array // 32 * 32).astype(np.int8), name))


def spoil_range(model: onnx.ModelProto, value: str, factor: float) -> None:
    """Make the range of a value ``factor`` times as wide."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scale = f"{value}_scale"
    q = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value)
    old = onnx.numpy_helper.to_array(constants[q.input[1]])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(old * factor), f"{scale}_spoiled"))
    for node in model.graph.node:
        if node is q or (node.op_type == "DequantizeLinear" and node.input[0] == q.output[0]):
            node.input[1] = f"{scale}_spoiled"


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_bad_layer_comes_first(seed: int) -> None:
    model, feeds = network(seed), drawn(seed)
    bad = f"layer{seed % 6}"
    form = quantized(model, feeds, format="qoperator" if seed % 2 else "qdq")
    spoil_weight(form, bad)
    result = onnxq.diagnose(model, form, data=feeds, threads=1)
    assert result.findings[0].node == bad
    assert "rounding its weights" in result.findings[0].cause
    assert result.findings[0].weight_sqnr_db is not None and result.findings[0].weight_sqnr_db < 20
    assert [rule.match for rule in result.recipe.rules][:1] == [bad]
    assert {finding.node for finding in result.findings} == {f"layer{i}" for i in range(6)}


@pytest.mark.parametrize(("factor", "words"), [(0.2, "clips"), (20.0, "times wider")])
def test_a_wrong_range_is_found_at_the_node_that_writes_it(factor: float, words: str) -> None:
    model, feeds = network(3), drawn(3)
    form = quantized(model, feeds)
    spoil_range(form, "r2", factor)
    first = onnxq.diagnose(model, form, data=feeds, threads=1).findings[0]
    assert first.node == "layer2" and words in first.cause
    assert "range" in first.remedy
    assert first.seen_high is not None and first.high is not None
    assert (first.high < 0.5 * first.seen_high) == (factor < 1)
    assert (first.clipped > 0.01) == (factor < 1)


def test_figures_are_those_of_the_runtime() -> None:
    """Alone, a node's error is that of a model in which nothing else is quantized."""
    model, feeds = network(5), drawn(5)
    form = quantized(model, feeds)
    result = onnxq.diagnose(model, form, data=feeds, threads=1)
    outputs = [np.concatenate([run(m, feed)["y"] for feed in feeds]) for m in (model, form)]
    assert result.diagnosis.outputs["y"] == pytest.approx(sqnr_db(*outputs), abs=0.2)
    last = next(f for f in result.findings if f.value == "y")
    assert last.arriving_sqnr_db == pytest.approx(sqnr_db(*outputs), abs=0.2)
    assert last.own_sqnr_db == pytest.approx(last.output_sqnr_db, abs=1.5)


def run(model: onnx.ModelProto, feed: Feed) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def test_the_recipe_can_be_used_at_once(tmp_path: Path) -> None:
    model, feeds = network(2), drawn(2)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    bias, weight = (onnx.numpy_helper.to_array(constants[name]).copy() for name in ("b2", "w3"))
    bias[0], weight[0] = -1e3, 50.0  # a dead channel with large weights: with one scale for all, the others vanish
    constants["b2"].CopyFrom(onnx.numpy_helper.from_array(bias, "b2"))
    constants["w3"].CopyFrom(onnx.numpy_helper.from_array(weight, "w3"))
    path = tmp_path / "r.yaml"
    recipe = Recipe(preset="w8a8", per_channel=False)
    worse = onnxq.diagnose(model, data=feeds, recipe=recipe, recipe_out=path, threads=1)
    assert worse.findings[0].node == "layer3"
    before = quantized(model, feeds, per_channel=False)
    after = quantized(model, feeds, recipe=path)
    target = np.concatenate([run(model, feed)["y"] for feed in feeds])
    ratios = [sqnr_db(target, np.concatenate([run(m, feed)["y"] for feed in feeds])) for m in (before, after)]
    assert ratios[1] > ratios[0] + 6


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


DYNAMIC = pytest.param(None, marks=needs_runtime("1.28", "has no ConvInteger of int8 weights"), id="dynamic")


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator, DYNAMIC])
def test_models_of_another_tool(tmp_path: Path, form: QuantFormat | None) -> None:
    text = """g (float[N,3,12,12] x) => (float[N,5] y) {
        [c1] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r1] b = Relu (a) [c2] c = Conv (b, w2, b2) [r2] d = Relu (c)
        [p] e = GlobalAveragePool (d) [f] h = Flatten (e) [m] y = Gemm (h, w3, b3)
    }"""
    model = build(
        text, w1=weights(16, 3, 3, 3), b1=weights(16), w2=weights(32, 16, 3, 3), b2=weights(32),
        w3=weights(32, 5, seed=4), b3=weights(5),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(0, 1, (2, 3, 12, 12)).astype(np.float32)} for _ in range(6)]
    source, target = tmp_path / "f.onnx", tmp_path / "q.onnx"
    onnx.save(model, source)
    if form is None:
        quantize_dynamic(source, target)
    else:
        quantize_static(
            source, target, Reader(feeds), quant_format=form, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
    result = onnxq.diagnose(source, target, data=feeds, threads=1)
    found = {finding.node: finding for finding in result.findings}
    assert {"c1", "c2", "m"} <= set(found)
    assert all(20 < found[name].own_sqnr_db < 80 for name in ("c1", "c2", "m"))
    assert all(found[name].arriving_sqnr_db is not None for name in ("c1", "c2", "m"))
    if form is not None:
        assert found["c1"].value == "b" and found["c1"].clipped < 0.01


def test_constant_memory_and_any_shapes() -> None:
    model = network(1)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(0, 1, (n, WIDTHS[0])).astype(np.float32)} for n in (1, 7, 3, 2, 5)]
    result = onnxq.diagnose(model, data=feeds, threads=1)
    assert result.diagnosis.samples == 1  # those held out from the calibration that came before
    assert onnxq.diagnose(model, quantized(model, feeds), data=feeds, threads=1).diagnosis.samples == 5


def test_what_cannot_be_diagnosed(tmp_path: Path) -> None:
    model, feeds = network(0), drawn(0)
    with pytest.raises(ModelError, match="no quantized node has a counterpart in the float model"):
        onnxq.diagnose(model, model, data=feeds)
    with pytest.raises(RecipeError, match="no data was given"):
        onnxq.diagnose(model)
    with pytest.raises(OnnxqError, match="does not exist; create it"):
        onnxq.diagnose(model, data=feeds, recipe_out=tmp_path / "none" / "r.yaml")
