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
from onnxq.diagnosis import output_errors
from onnxq.diagnosis.examine import take_apart
from onnxq.errors import ModelError, OnnxqError, RecipeError
from onnxq.graph.files import io
from onnxq.graph.views.outputs import with_outputs
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.session import session_of
from onnxq.targets import target_named
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


def gated(seed: int) -> tuple[onnx.ModelProto, list[Feed]]:
    """A Conv that reads what a float node gives and writes to a grid, with weights of very different channels."""
    rng = np.random.default_rng(seed)
    widths = np.geomspace(0.001, 10, 16).astype(np.float32)[:, None, None, None]
    text = """g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,16,8,8] r) {
        [first] a = Conv <pads = [1, 1, 1, 1]> (x, w0) [gate] s = Sigmoid (a) [product] p = Mul (a, s)
        [middle] m = Conv <pads = [1, 1, 1, 1]> (p, w1, b1) [relu] r = Relu (m) [last] y = Conv (r, w2) }"""
    model = build(
        text, w0=weights(8, 3, 3, 3), b1=weights(16), w1=(weights(16, 8, 3, 3) * widths).astype(np.float32),
        w2=(weights(4, 16, 1, 1) / widths.reshape(1, 16, 1, 1)).astype(np.float32),
    )  # fmt: skip
    return model, [{"x": rng.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)} for _ in range(12)]


def test_what_a_layer_is_said_to_cost_is_not_the_rounding_of_the_runtime() -> None:
    """Between DQ and Q onnxruntime rounds float weights anew, with one scale: a layer alone keeps its integers.

    The layer has a small channel, which such a scale leaves no level, and one that reads the others with it.
    """
    model, feeds = gated(3)
    prepared = load_and_prepare(model, target_named("cpu"), Clock(None))
    made = quantized(model, feeds)
    reference, apart = take_apart(prepared.model, io.load(model), io.load(made), feeds[0], 1)
    (unit,) = (unit for unit in apart.units if unit.name == "middle")
    given = {
        name: value for name, value in apart.sources.items() if value in {v.name for v in apart.model.graph.inputs}
    }
    values = with_outputs(reference, given)
    found = dict(zip(values.outputs, session_of(values.model, threads=1).run(feeds[0], values.outputs), strict=True))
    found = {given[name]: array for name, array in {**feeds[0], **found}.items() if name in given}
    quick, plain = (
        dict(zip(session.output_names, session.run(found), strict=True))[unit.output]
        for session in (session_of(apart.model, threads=1, optimize=optimize) for optimize in (True, False))
    )
    assert sqnr_db(plain, quick) > 45


def test_what_a_node_does_to_the_outputs_is_measured_for_all() -> None:
    model = network(4)
    found = onnxq.diagnose(model, quantized(model, drawn(4)), data=drawn(4))
    assert all(finding.output_sqnr_db is not None for finding in found.findings)
    measured = [finding.output_sqnr_db for finding in found.findings if finding.output_sqnr_db is not None]
    assert measured == sorted(measured)
    assert len(measured) > 6 or len(found.findings) <= 6


def test_both_ways_to_measure_the_effect_on_the_outputs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model's nodes are looked at in sessions of their own, of what lies behind each."""
    model, feeds = network(5), drawn(5, 2)
    made = quantized(model, drawn(5))
    whole = {f.node: f.output_sqnr_db for f in onnxq.diagnose(model, made, data=feeds).findings}
    monkeypatch.setattr(output_errors, "_LARGE", -1)
    apart = {f.node: f.output_sqnr_db for f in onnxq.diagnose(model, made, data=feeds).findings}
    measured = {node: ratio for node, ratio in apart.items() if ratio is not None}
    assert 2 <= len(measured) <= 6
    for node, ratio in measured.items():
        assert ratio == pytest.approx(whole[node], abs=0.01), node
