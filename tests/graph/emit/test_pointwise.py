"""Convolutions over single positions whose result stays float: products with the channels last, Transposes beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.graph import walk
from onnxq.graph.emit.channels.channels_last import settle
from onnxq.graph.files import io
from onnxq.graph.reading.ops import is_pointwise
from onnxq.graph.types import Model
from onnxq.graph.views.plain_graph import PlainGraph
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned import reconstructing
from onnxq.pipeline.learned.whole_models import Measured
from onnxq.qat.network_blocks import Block, Facts
from onnxq.recipe.recipe import FORMATS
from tests.graph.build import Array, build, run, weights

# Between depthwise layers, which stay float: two pointwise ones, each with a HardSwish before and behind it.
MOBILE = """g (float[N,32,12,10] x) => (float[N,48,12,10] y) {
    [d0] a = Conv <group = 32, pads = [1, 1, 1, 1]> (x, w0) [g0] b = HardSigmoid (a) [m0] c = Mul (a, b)
    [p0] d = Conv (c, w1, b1) [g1] e = HardSigmoid (d) [m1] f = Mul (d, e)
    [d1] h = Conv <group = 32, pads = [1, 1, 1, 1]> (f, w2) [g2] i = HardSigmoid (h) [m2] j = Mul (h, i)
    [p1] k = Conv (j, w3) [g3] l = HardSigmoid (k) [m3] m = Mul (k, l)
    [last] y = Conv <group = 48, pads = [1, 1, 1, 1]> (m, w4) }"""
WEIGHTS = {
    "w0": weights(32, 1, 3, 3), "w1": weights(32, 32, 1, 1, seed=1), "b1": weights(32), "w2": weights(32, 1, 3, 3),
    "w3": weights(48, 32, 1, 1, seed=2), "w4": weights(48, 1, 3, 3),
}  # fmt: skip
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def feeds(count: int, channels: int = 32) -> list[dict[str, Array]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.normal(size=(1, channels, 12, 10)).astype(np.float32)} for _ in range(count)]


def quantize(given: onnx.ModelProto, *layers: str, **options: object) -> onnx.ModelProto:
    result = onnxq.quantize(
        given, calibration=feeds(6), preset="w8a8", include=layers, benchmark=False, force=True, **options
    )  # type: ignore[arg-type]
    assert result.model is not None
    return result.model


def outputs(model: onnx.ModelProto, feed: dict[str, Array], level: ort.GraphOptimizationLevel) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = level, 1
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(None, feed)[0])


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_float_node_reads_is_rounded_once(form: str) -> None:
    given = build(MOBILE, **WEIGHTS)
    quantized = quantize(given, "p0", "p1", format=form)
    found = kinds(quantized)
    assert (found["MatMulIntegerToFloat"], found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 2, 0)
    assert found["Transpose"] == 4  # behind and before a depthwise layer: once around each product
    assert not [t for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    named = {node.name: node.op_type for node in quantized.graph.node}
    assert (named["p0"], named["g1"], named["m3"]) == ("MatMulIntegerToFloat", "HardSigmoid", "Mul")
    for feed in feeds(8)[6:]:
        expected = outputs(given, feed, LEVELS[0])
        for level in LEVELS:
            assert sqnr_db(expected, outputs(quantized, feed, level)) > 33


@pytest.mark.torch
def test_blocks_that_learn_meet_at_values_of_the_float_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.qat import reconstruction

    seen, original = [], reconstruction.find_blocks

    def find_blocks(graph: PlainGraph, facts: Facts, least: int) -> list[Block]:
        seen.append(facts.teachers)
        return original(graph, facts, least)

    monkeypatch.setattr(reconstruction, "find_blocks", find_blocks)
    given = build(MOBILE, **WEIGHTS)
    judged, measured = [], reconstructing.measured

    def recorded(job: Job, models: Sequence[Model], until: float) -> list[Measured]:
        judged.append(models[-1].clone())
        return measured(job, models, until)

    monkeypatch.setattr(reconstructing, "measured", recorded)
    monkeypatch.setattr(reconstructing, "taken", lambda figures, starts: (len(figures) - 1, ""))  # what has learned
    plain, learned = (quantize(given, "p0", "p1", reconstruct=way) for way in (False, True))
    assert set("dfkm") <= set(seen[0])  # products and what comes behind, with the channels where float has them
    assert kinds(learned) == kinds(plain)
    constants = [{t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (plain, learned)]
    assert not np.array_equal(*(each["b1_1"] for each in constants))  # a bias that a product adds has learned
    for feed in feeds(8)[6:]:
        written = outputs(learned, feed, LEVELS[0])
        # the bias is written in whole steps, so that a value in the middle of two may be rounded otherwise
        assert sqnr_db(outputs(io.to_proto(judged[0]), feed, LEVELS[0]), written) > 45
        assert sqnr_db(outputs(given, feed, LEVELS[0]), written) > 33


def test_diagnosis_finds_the_layer_and_its_weight() -> None:
    given = build(MOBILE, **WEIGHTS)
    found = onnxq.diagnose(given, quantize(given, "p0", "p1"), calibration=feeds(3))
    layers = {finding.node: finding for finding in found.findings}
    assert layers["p0"].op_type == "Conv"
    for name in ("p0", "p1"):
        assert (layers[name].weight_sqnr_db or 0) > 35 and layers[name].own_sqnr_db > 30


def test_between_integer_layers_and_at_outputs_it_stays_a_convolution() -> None:
    text = "g (float[N,32,12,10] x) => (float[N,32,12,10] y) { [a] m = Conv (x, w1, b1) [b] y = Conv (m, w1) }"
    found = kinds(quantize(build(text, w1=WEIGHTS["w1"], b1=WEIGHTS["b1"]), "a", "b"))
    assert found["MatMulIntegerToFloat"] == 0 and found["Conv"] == 2


def test_a_body_keeps_its_convolution() -> None:
    text = """g (float[N,32,12,10] x, bool k) => (float[N,32,12,10] y) { y = If (k) <
        then_branch = t () => (float[N,32,12,10] p) { [in] c = Conv (x, w1) [gate] p = HardSigmoid (c) },
        else_branch = e () => (float[N,32,12,10] q) { q = Neg (x) }> }"""
    given = build(text, w1=WEIGHTS["w1"])
    data = [{**feed, "k": np.array(True)} for feed in feeds(4)]
    result = onnxq.quantize(given, calibration=data, preset="w8a8", benchmark=False, force=True)
    assert result.model is not None and "MatMulIntegerToFloat" not in str(result.model)


@pytest.mark.parametrize(
    ("attributes", "shape", "expected"),
    [
        ("", (8, 4, 1, 1), True),
        ("", (8, 4, 1), True),
        ("", (8, 4, 3, 3), False),
        ("<strides = [2, 2]>", (8, 4, 1, 1), False),
        ("<pads = [1, 1, 1, 1]>", (8, 4, 1, 1), False),
        ("<group = 2>", (8, 2, 1, 1), False),
    ],
)
def test_which_convolutions_are_meant(attributes: str, shape: tuple[int, ...], expected: bool) -> None:
    spatial = ", 6" * (len(shape) - 2)
    made = io.load(
        build(f"g (float[1, 4{spatial}] x) => (float y) {{ y = Conv {attributes} (x, w) }}", w=weights(*shape))
    )
    assert is_pointwise(made.graph[0]) is expected


TURN, BACK = "<perm = [0, 2, 3, 1]>", "<perm = [0, 3, 1, 2]>"
PRODUCT = "p = com.microsoft.MatMulIntegerToFloat (q, b, s, s, z)"
NUMBERS = {
    "b": np.random.default_rng(0).integers(-9, 9, (4, 4)).astype(np.int8), "s": np.array(0.1, np.float32),
    "z": np.array(8, np.uint8), "two": np.array(2, np.float32), "w": weights(4, 1, 3, 3),
}  # fmt: skip


def settled(body: str, gives: str = "float[N, 4, 5, 6] y") -> Counter[str]:
    """What is there after Transposes were moved; the numbers stay, and a second run finds nothing to do."""
    used = {name: array for name, array in NUMBERS.items() if f"{name})" in body or f"{name}," in body}
    proto = build(f"g (float[N, 4, 5, 6] x) => ({gives}) {{ {body} }}", imports=', "com.microsoft": 1', **used)
    proto = onnx.shape_inference.infer_shapes(proto)
    model = io.load(proto)
    settle(model.graph, walk.Names(model))
    once = io.to_bytes(model)
    settle(model.graph, walk.Names(model))
    assert io.to_bytes(model) == once
    feed = {"x": feeds(1, 4)[0]["x"][:, :, :5, :6]}
    before, after = run(proto.SerializeToString(), feed), run(once, feed)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-6, atol=1e-6)
    return Counter(node.op_type for node in model.graph)


READ = f"u = QuantizeLinear (x, s, z) q = Transpose {TURN} (u) {PRODUCT} a = Transpose {BACK} (p)"


def test_transposes_that_undo_each_other_go() -> None:
    second = PRODUCT.replace("p =", "o =").replace("(q,", "(r,")
    body = f"""{READ} h = HardSigmoid (a) m = Mul (h, a) v = QuantizeLinear (m, s, z)
        r = Transpose {TURN} (v) {second} e = Transpose {BACK} (o) y = Relu (e)"""
    assert settled(body)["Transpose"] == 2


def test_single_numbers_are_joined_and_other_constants_are_not() -> None:
    assert settled(f"{READ} m = Mul (a, two) y = Conv <group = 4, pads = [1, 1, 1, 1]> (m, w)")["Transpose"] == 2


def test_a_value_that_others_read_as_it_lies_keeps_its_place() -> None:
    body = (
        f"{READ} h = HardSigmoid (a) c = Concat <axis = 1> (a, h) y = Conv <group = 4, kernel_shape = [1, 1]> (a, w1)"
    )
    body = f"{READ} h = HardSigmoid (a) c = Softmax <axis = 1> (a) y = Add (c, h)"
    assert settled(body)["Transpose"] == 2


def test_behind_a_float_convolution_the_transpose_comes_first() -> None:
    body = f"""c = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w) g = Sigmoid (c) k = Mul (c, g)
        u = QuantizeLinear (k, s, z) q = Transpose {TURN} (u) {PRODUCT} y = Transpose {BACK} (p)"""
    assert settled(body)["Transpose"] == 2


@pytest.mark.parametrize(
    ("activation", "order"),
    [
        ("g = HardSigmoid <alpha = 0.16666667> (c) k = Mul (c, g)", ["Mul", "Transpose"]),
        ("g = HardSigmoid <alpha = 0.16666667> (c) k = Mul (g, c)", ["Mul", "Transpose"]),
        ("k = Relu (c)", ["Relu", "Transpose"]),
        ("g = HardSigmoid (c) k = Mul (c, g)", ["Transpose", "Mul"]),  # of another slope
        ("g = HardSigmoid <alpha = 0.16666667> (x) k = Mul (c, g)", ["Mul", "Transpose"]),  # not of this value
        ("g = HardSigmoid <alpha = 0.16666667> (c) e = Mul (c, g) k = Add (e, g)", ["Transpose", "Add"]),
    ],
)
def test_what_the_runtime_joins_with_a_convolution_stays_behind_it(activation: str, order: list[str]) -> None:
    body = f"""c = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w) {activation}
        u = QuantizeLinear (k, s, z) q = Transpose {TURN} (u) {PRODUCT} y = Transpose {BACK} (p)"""
    assert [op for op in settled(body) if op in order] == order


def test_an_output_inside_keeps_its_name_and_numbers() -> None:
    gives = "float[N, 4, 5, 6] h, float[N, 4, 5, 6] y"
    assert settled(f"{READ} h = HardSigmoid (a) y = Mul (a, h)", gives)["Transpose"] >= 2


# What is an output, or is read with the channels last, beside such a product; P is an order that puts them there.
READERS = {
    "output in between": ("y, r", "[p] a = Conv (x, w1) [r] r = Relu (a) [q] b = Conv (r, w2) y = Sigmoid (b)"),
    "output turned": ("y", "[p] a = Conv (x, w1) s = Sigmoid (a) m = Mul (a, s) y = Transpose <perm = P> (m)"),
    "output beside a turned value": (
        "y, z",
        "[p] a = Conv (x, w1) s = Sigmoid (a) z = Mul (a, s) t = Transpose <perm = P> (z) u = Tanh (t) y = Mul (u, u)",
    ),
    "output behind": ("y", "[p] a = Conv (x, w1) y = Relu (a)"),
}


@pytest.mark.parametrize("options", [{}, {"include": ["*"], "symmetric": True}, {"format": "qoperator"}], ids=str)
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("given", READERS)
def test_whatever_reads_a_product_gets_it_as_it_was(given: str, rank: int, options: dict[str, object]) -> None:
    """Over one axis, putting the channels first and putting them last are one order."""
    names, body = READERS[given]
    sizes, last = {1: ("40", "0, 2, 1"), 2: ("6, 7", "0, 2, 3, 1")}[rank]
    used = {name: weights(48, deep, *[1] * rank, seed=deep) for name, deep in (("w1", 32), ("w2", 48)) if name in body}
    shape = {"y": f"N, {sizes}, 48" if given == "output turned" or "perm" in body else f"N, 48, {sizes}"}
    gives = ", ".join(f"float[{shape.get(name, f'N, 48, {sizes}')}] {name}" for name in names.split(", "))
    proto = build(f"g (float[N, 32, {sizes}] x) => ({gives}) {{ {body.replace('= P>', f'= [{last}]>')} }}", **used)
    draw = np.random.default_rng(0)
    samples = [{"x": draw.normal(size=(1, 32, *map(int, sizes.split(",")))).astype(np.float32)} for _ in range(6)]
    result = onnxq.quantize(proto, calibration=samples, preset="w8a8", benchmark=False, threads=1, **options)  # type: ignore[arg-type]
    assert result.model is not None and [o.name for o in result.model.graph.output] == names.split(", ")
    for level in LEVELS:
        options_of = ort.SessionOptions()
        options_of.graph_optimization_level, options_of.intra_op_num_threads = level, 1
        opened = ort.InferenceSession(result.model.SerializeToString(), options_of)
        for name, array in run(proto.SerializeToString(), samples[0]).items():
            (got,) = opened.run([name], samples[0])
            assert sqnr_db(array, got) > 20
