"""Keys of a recipe that say how Q and DQ are written."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.graph.emit.apply import dedicate, use_own_pair
from onnxq.graph.files import io
from onnxq.plan.make_plan import ModelFacts, make_plan
from onnxq.targets import target_named
from tests.graph.build import build

RNG = np.random.default_rng(0)
TEXT = """g (float[1, 8, 12, 12] x) => (float[1, 8, 12, 12] y, float[1, 8, 12, 12] z) {
    [a] h = Conv <pads = [1, 1, 1, 1]> (x, u, b)
    [b] i = Conv <pads = [1, 1, 1, 1]> (h, v, b)
    [c] j = Conv <pads = [1, 1, 1, 1]> (h, v, b)
    [d] y = Add (i, j)
    [e] z = Softplus (h) }"""


def model() -> onnx.ModelProto:
    u, v = RNG.standard_normal((2, 8, 8, 3, 3)).astype(np.float32)
    return build(TEXT, opset=17, u=u, v=v, b=RNG.standard_normal(8).astype(np.float32))


FEEDS = [{"x": RNG.standard_normal((1, 8, 12, 12)).astype(np.float32)} for _ in range(6)]


def quantized(proto: onnx.ModelProto, **keys: object) -> onnx.ModelProto:
    recipe = onnxq.Recipe.from_mapping({"preset": "w8a8", "include": ["*"], **keys})
    made = onnxq.quantize(proto, recipe=recipe, calibration=FEEDS, benchmark=False).model
    assert made is not None
    return made


def of(proto: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == op_type]


def run(proto: onnx.ModelProto, level: str) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, FEEDS[0])


def test_each_reader_has_a_pair_of_its_own() -> None:
    proto = model()
    shared, own = quantized(proto), quantized(proto, dedicated_pairs=True)
    activations = {node.output[0] for node in of(own, "QuantizeLinear")}
    pairs = [node for node in of(own, "DequantizeLinear") if node.input[0] in activations]
    readers = [[n for n in own.graph.node if pair.output[0] in n.input] for pair in pairs]
    assert max(len(found) for found in readers) == 1
    assert len(of(own, "QuantizeLinear")) > len(of(shared, "QuantizeLinear"))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        for one, other in zip(run(shared, level), run(own, level), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    once = io.load(own)
    assert dedicate(once) == 0


def test_pairs_of_the_runtime_have_its_domain() -> None:
    proto = model()
    plain, own = quantized(proto), quantized(proto, own_pairs=True)
    kinds = ("QuantizeLinear", "DequantizeLinear")
    assert {node.domain for kind in kinds for node in of(own, kind)} == {"com.microsoft"}
    assert "com.microsoft" in {entry.domain for entry in own.opset_import}
    for one, other in zip(run(plain, "ORT_DISABLE_ALL"), run(own, "ORT_DISABLE_ALL"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert use_own_pair(io.load(own), everywhere=True) == 0


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_grids_are_found_by_name(form: str) -> None:
    proto = model()
    plain, own = quantized(proto, format=form), quantized(proto, own_grids=True, format=form)
    kept, more = ({tensor.name for tensor in made.graph.initializer} for made in (plain, own))
    values = [name.removesuffix("_scale") for name in more if name.endswith("_scale")]
    assert {"x", "h", "u", "v"} <= set(values) and {f"{name}_zero_point" for name in values if name != "b"} <= more
    assert not {f"{name}_zero_point" for name in ("u", "v")} <= kept  # equal ones are shared otherwise
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        for one, other in zip(run(plain, level), run(own, level), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_what_only_moves_elements_has_the_grid_of_its_input(form: str) -> None:
    text = """g (float[1, 8, 12, 12] x) => (float[1, 8, 12, 12] y) {
        [one] h = Conv <pads = [1, 1, 1, 1]> (x, u) [turn] t = Transpose <perm = [0, 1, 3, 2]> (h)
        [pool] p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t)
        [two] y = Conv <pads = [1, 1, 1, 1]> (p, v) }"""
    u, v = RNG.standard_normal((2, 8, 8, 3, 3)).astype(np.float32)
    made = quantized(build(text, opset=17, u=u, v=v), own_grids=True, format=form)
    names = {tensor.name for tensor in made.graph.initializer}
    assert {"h_scale", "h_zero_point"} <= names
    assert not names & {"t_scale", "t_zero_point", "p_scale", "p_zero_point"}
    consumers = {name for node in made.graph.node for name in node.input if name.endswith("_scale")}
    assert consumers >= {"x_scale", "h_scale", "y_scale"}


def test_a_bias_may_stay_float() -> None:
    proto = model()
    floats = {tensor.name for tensor in quantized(proto, float_bias=True).graph.initializer if tensor.data_type == 1}
    assert "b" in floats
    made = quantized(proto, float_bias=True)
    assert {node.input[2] for node in of(made, "Conv")} == {"b"}
    assert "b" not in {name for node in of(quantized(proto), "Conv") for name in node.input}


def test_one_bias_may_stay_float() -> None:
    text = TEXT.replace("(h, v, b)", "(h, v, b2)", 1)
    u, v = RNG.standard_normal((2, 8, 8, 3, 3)).astype(np.float32)
    b, b2 = RNG.standard_normal((2, 8)).astype(np.float32)
    proto = build(text, opset=17, u=u, v=v, b=b, b2=b2)
    made = quantized(proto, values=[{"match": "b2", "quantize": False}])
    biases = {node.name: node.input[2] for node in of(made, "Conv")}
    assert biases["b"] == "b2" and "b" not in biases.values() and len(biases) == 3
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    np.testing.assert_array_equal(kept["b2"], b2)
    with pytest.raises(RecipeError, match="value rule 'b2': a bias stays float in models of Q and DQ alone"):
        quantized(proto, values=[{"match": "b2", "quantize": False}], format="qoperator")


@pytest.mark.parametrize("keys", [{"float_bias": True}, {"dedicated_pairs": True}, {"own_pairs": True}])
def test_integer_operators_have_no_pairs_to_write(keys: dict[str, bool]) -> None:
    with pytest.raises(RecipeError, match=f"--format qoperator: has no {next(iter(keys))}, which is for Q and DQ"):
        quantized(model(), format="qoperator", **keys)


def test_sixteen_bits_are_for_q_and_dq() -> None:
    with pytest.raises(RecipeError, match="--format qoperator: has no w8a16, which is for Q and DQ; use --format qdq"):
        onnxq.quantize(model(), preset="w8a16", format="qoperator", calibration=FEEDS, benchmark=False)


def test_a_product_that_stays_float_is_computed_on_integers() -> None:
    proto = build(
        "g (float[4, 64] x) => (float[4, 64] y) { [a] h = MatMul (x, w) [b] y = MatMul (h, w) }",
        opset=17,
        w=RNG.standard_normal((64, 64)).astype(np.float32),
    )
    recipe = onnxq.Recipe(preset="w8a8", include=("*",), values=(onnxq.ValueRule("h", quantize=False),))
    feeds = [{"x": RNG.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]
    result = onnxq.quantize(proto, recipe=recipe, calibration=feeds, benchmark=False)
    assert result.model is not None
    assert "h" not in {node.input[0] for node in of(result.model, "QuantizeLinear")}
    assert [name for name, _, _ in result.kept_float] == ["b"]


def test_a_convolution_without_spatial_axes_stays_float() -> None:
    # Some releases of the runtime compute it in float, and then cannot load what they made of it on integers.
    proto = build(
        "g (float[6, 8] x) => (float[6, 16] y) { [a] y = Conv (x, w) }",
        opset=17,
        w=RNG.standard_normal((16, 8)).astype(np.float32),
    )
    recipe, target = onnxq.Recipe(preset="w8a8", include=("a",)), target_named("cpu")
    plan = make_plan(io.load(proto), recipe, target, ModelFacts({}, {}, {"a": ("a",)}))
    assert [(name, reason.split(";")[0]) for name, _, reason in plan.kept_float()] == [("a", "it has no spatial axis")]


def test_a_least_range_stands_for_values_that_were_zero() -> None:
    proto, zeros = model(), [{"x": np.zeros((1, 8, 12, 12), np.float32)}] * 4
    recipe = onnxq.Recipe(preset="w8a8", include=("a",), values=(onnxq.ValueRule("x", min_range=0.5),))
    made = onnxq.quantize(proto, recipe=recipe, calibration=zeros, benchmark=False, force=True).model
    assert made is not None
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert scales[next(node.input[1] for node in of(made, "QuantizeLinear") if node.input[0] == "x")] == pytest.approx(
        0.5 / 255
    )
