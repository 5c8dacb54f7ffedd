"""Plans of small models: what runs on integers, what stays float and why, and what the user's wishes change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerTensor
from onnxq.errors import RecipeError
from onnxq.graph.files import io
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.plan.decisions import Calibrated, SharedWith
from onnxq.plan.make_plan import MIN_STORED, ModelFacts, make_plan, wanted_by, wanted_by_any
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.targets import target_named
from tests.graph.build import build, weights
from tests.graph.emit.networks import BODIES, between
from tests.plan.planning import plan_of

CHAIN = """g (float[N,32,12,12] x) => (float[N,M,H,W] y) {{
    [first] a = Conv <pads = [1,1,1,1]> (x, w1, b) {middle} [last] y = Conv (m, w2, b) }}"""


def chain(middle: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A convolution, what is put in, and another convolution, both worth their while on integers."""
    w2 = weights(32, constants.pop("channels", np.int64(32)).item(), 1, 1)
    return build(CHAIN.format(middle=middle), w1=weights(32, 32, 3, 3), w2=w2, b=weights(32), **constants)


def stem(weight: np.ndarray) -> onnx.ModelProto:
    text = """g (float[N,3,64,64] x) => (float[N,M,H,W] y) {
        [stem] a = Conv <strides = [2,2]> (x, ws) [relu] r = Relu (a) [body] c = Conv (r, w)
        [top] d = GlobalAveragePool (c) f = Flatten (d) [fc] y = Gemm (f, wf) }"""
    channels = weight.shape[0]
    return build(text, ws=weight, w=weights(64, channels, 3, 3), wf=weights(64, 10))


def test_a_stem_of_three_channels_stays_float_with_its_reason() -> None:
    planned = plan_of(stem(weights(32, 3, 3, 3)))
    assert planned["stem"].action == "float"
    assert "slower on integers here: about " in planned["stem"].reason and "µs against" in planned["stem"].reason
    assert planned["stem"].int_us > planned["stem"].float_us
    assert planned["relu"].action == "float"
    assert planned["body"].action == planned["fc"].action == "integer"
    assert planned["fc"].float_output
    assert dict(planned.plan.coverage())["Conv"] == {"quantized": 1, "total": 2}
    assert ("stem", "Conv", planned["stem"].reason) in planned.plan.kept_float()


def test_the_weight_of_a_layer_that_stays_float_is_stored_as_integers_if_that_saves_something() -> None:
    planned = plan_of(stem(weights(16, 3, 7, 7)))
    assert planned["stem"].action == "storage"
    assert planned["stem"].reason.startswith("slower on integers") and "stored as int8" in planned["stem"].reason
    spec = planned["stem"].weights[1]
    assert (spec.dtype, spec.granularity, spec.symmetric, spec.grid_bits) == (QType.INT8, PerAxis(0), True, None)
    assert plan_of(stem(weights(32, 3, 3, 3)), per_channel=False)["stem"].weights == {}  # 864 elements
    assert weights(32, 3, 3, 3).size < MIN_STORED


def test_w8_stores_what_is_large_and_calibrates_nothing() -> None:
    planned = plan_of(stem(weights(16, 3, 7, 7)), preset="w8")
    assert planned.actions == {
        "stem": "storage", "relu": "float", "body": "storage", "top": "float", "Flatten_0": "float", "fc": "float",
    }  # fmt: skip
    assert planned.plan.values == {}
    assert planned["relu"].reason == planned["top"].reason == "activations stay float32 with this preset"
    assert planned["fc"].reason.startswith("its weight has fewer than 1024 elements")


def test_a_lone_average_pool_between_float_nodes_stays_float() -> None:
    planned = plan_of(chain("[t] t = Tanh (a) [pool] m = AveragePool <kernel_shape = [2,2]> (t)"))
    assert planned["first"].action == planned["last"].action == "integer"
    assert planned["pool"].action == "float"
    assert planned["pool"].reason.startswith("not faster in int8, conversions included: about ")
    assert planned["t"].reason == "cpu has no integer kernel for Tanh"
    insisted = plan_of(
        chain("[t] t = Tanh (a) [pool] m = AveragePool <kernel_shape = [2,2]> (t)"), include=("pool", "last")
    )
    assert insisted.actions == {"first": "float", "t": "float", "pool": "integer", "last": "integer"}


def test_an_operator_between_integer_layers_joins_them() -> None:
    planned = plan_of(chain("[pool] m = MaxPool <kernel_shape = [2,2]> (a)"))
    assert set(planned.actions.values()) == {"integer"}
    assert planned.plan.values["m"] == SharedWith("a")


def test_rounding_at_the_tail_would_only_cost_accuracy() -> None:
    text = """g (float[N,32,12,12] x) => (float[N,32,12,12] y) {
        [first] a = Conv (x, w) [last] c = Conv (a, w) [add] s = Add (c, a) [act] y = LeakyRelu (s) }"""
    planned = plan_of(build(text, w=weights(32, 32, 1, 1)))
    assert planned["add"].action == planned["act"].action == "float"
    assert planned["add"].reason.startswith("no integer layer comes after it")
    assert plan_of(build(text, w=weights(32, 32, 1, 1)), include=("*",))["act"].action == "integer"


def test_nothing_is_rounded_for_an_argmax() -> None:
    text = """g (float[N,32,12,12] x) => (int64[N,1,H,W] y) {
        [conv] a = Conv <pads = [1,1,1,1]> (x, w) [p] p = Softmax <axis = -1> (a) [y] y = ArgMax <axis = 1> (p) }"""
    planned = plan_of(build(text, w=weights(32, 32, 3, 3)))
    assert planned.actions == {"conv": "integer", "p": "float", "y": "float"}
    assert planned["p"].reason.startswith("no integer layer comes after it")


def test_where_nothing_is_expected_to_gain_the_layers_are_quantized_all_the_same() -> None:
    tiny = between(BODIES["Relu"])
    planned = plan_of(build("g (float[N,4] x) => (float[N,3] y) { [fc] y = Gemm (x, w) }", w=weights(4, 3)))
    assert planned["fc"].action == "integer" and planned["fc"].int_us > planned["fc"].float_us
    assert set(plan_of(tiny).actions.values()) == {"integer", "folded"}


def test_shapes_that_nobody_knows_stop_nothing() -> None:
    text = "g (float[A,B,C,D] x) => (float[E,F,G,H] y) { [c] y = Conv (x, w) }"
    planned = plan_of(
        build(text, w=weights(16, 32, 1, 1)), feeds=[{"x": np.ones((1, 32, 4, 4), np.float32)}], shapes={}
    )
    assert planned["c"].action == "integer"


def actions(**options: object) -> dict[str, str]:
    return plan_of(chain("[relu] r = Relu (a) [mid] m = Conv (r, w3)", w3=weights(32, 32, 1, 1)), **options).actions


def test_wishes_of_the_user() -> None:
    everything = {"first": "integer", "relu": "folded", "mid": "integer", "last": "integer"}
    assert actions() == everything
    assert actions(exclude=("first",)) == everything | {"first": "float", "relu": "float"}
    assert actions(exclude=("relu",)) == everything | {"relu": "float"}
    assert actions(include=("mid",)) == dict.fromkeys(everything, "float") | {"mid": "integer"}
    assert actions(op_types=("Conv",)) == everything, "a Relu belongs to the layer before it"
    assert actions(include=("first",))["relu"] == "folded"
    assert actions(rules=(Rule("*", quantize=False), Rule("last", quantize=True))) == dict.fromkeys(
        everything, "float"
    ) | {"last": "integer"}
    assert actions(include=("first",), rules=(Rule("last", quantize=True),))["last"] == "integer"


def test_what_the_user_excludes_keeps_its_float_weight_too() -> None:
    text = chain("[mid] m = Conv (a, w3)", w3=weights(32, 32, 3, 3))
    planned = plan_of(text, exclude=("mid",))
    assert planned["mid"].action == "float" and planned["mid"].reason == "excluded by --exclude"
    assert plan_of(text, include=("first",))["mid"].action == "float"


def test_names_of_the_users_model_select_what_they_became() -> None:
    bn = {name: np.ones(32, np.float32) for name in ("s", "o", "mu", "var")}
    proto = chain("[bn] m = BatchNormalization (a, s, o, mu, var)", **bn)
    assert plan_of(proto, exclude=("bn",)).actions == {"first": "float", "last": "integer"}
    matmul = build(
        "g (float[N,32] x) => (float[N,16] y) { [mm] a = MatMul (x, w) [plus] y = Add (a, c) }",
        w=weights(32, 16), c=weights(16),
    )  # fmt: skip
    for options in ({"op_types": ("MatMul",)}, {"op_types": ("Gemm",)}, {"include": ("plus",)}):
        assert plan_of(matmul, **options).actions == {"mm": "integer"}


def test_rules_choose_range_and_granularity_by_node() -> None:
    rules = (Rule("first", per_channel=False), Rule("mid", range="entropy"))
    planned = plan_of(
        chain("[mid] m = Conv (a, w3)", w3=weights(32, 32, 1, 1)), rules=rules, range="mse", per_channel=True
    )
    assert planned["first"].weights[1].granularity == PerTensor()
    assert planned["mid"].weights[1].granularity == PerAxis(0)
    methods = {name: d.range_method for name, d in planned.plan.values.items() if isinstance(d, Calibrated)}
    assert methods == {"x": "mse", "a": "mse", "m": "entropy", "y": "mse"}


def test_the_target_and_the_recipe_decide_the_grids() -> None:
    proto = chain("[mid] m = Softmax <axis = -1> (a)")
    planned = plan_of(proto, target="cpu-avx2")
    spec = planned["first"].weights[1]
    assert (spec.dtype, spec.bits, spec.qmin, spec.qmax) == (QType.INT8, 7, -63, 63)
    affine = planned.plan.values["x"]
    assert isinstance(affine, Calibrated) and affine.spec.dtype is QType.UINT8 and not affine.spec.symmetric
    symmetric = plan_of(proto, symmetric=True).plan.values["x"]
    assert isinstance(symmetric, Calibrated) and symmetric.spec.symmetric
    bounded = plan_of(proto, include=("*",)).plan.values["m"]
    assert isinstance(bounded, Calibrated) and (bounded.range_method, bounded.within) == ("minmax", (0.0, 1.0))


def test_the_plan_knows_every_value_that_needs_statistics_beforehand() -> None:
    planned = plan_of(chain("[relu] r = Relu (a) [pool] m = MaxPool <kernel_shape = [2,2]> (r)"))
    assert planned.plan.calibrated == ["x", "r", "y"]  # not a, which the folded Relu hides, nor m, which r decides
    wanted = wanted_by(planned.model, planned.plan, means=True)
    assert wanted.values == ("x", "r", "y")
    assert wanted.image_means == ("x", "m") and wanted.row_means == ()
    assert wanted_by(planned.model, planned.plan, means=False).image_means == ()
    any_plan = wanted_by_any(planned.model, target_named("cpu"), {}, planned.prepared.sources)
    assert set(wanted.values) <= set(any_plan.values)
    assert set(wanted.image_means) <= set(any_plan.image_means)


def test_a_value_without_a_finite_number_leaves_its_nodes_float() -> None:
    proto = chain("[mid] m = Conv (a, w3)", w3=weights(32, 32, 1, 1))
    planned = plan_of(proto, unusable={"m": "had no finite number in calibration"})
    assert planned.actions == {"first": "integer", "mid": "storage", "last": "storage"}
    assert planned["mid"].reason.startswith("value 'm' had no finite number in calibration")
    assert "m" not in planned.plan.values


def test_planning_changes_nothing() -> None:
    target = target_named("cpu")
    prepared = load_and_prepare(chain("[relu] m = Relu (a)"), target, Clock(None))
    before = io.to_bytes(prepared.model)
    for preset in ("w8a8", "w8"):
        make_plan(prepared.model, Recipe(preset=preset), target, ModelFacts({}, {}, prepared.sources))
    assert io.to_bytes(prepared.model) == before


FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 32, 12, 12)).astype(np.float32)} for i in range(5)]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("g (float[N,32,12,12] x) => (float[N,32,12,12] y) { y = Relu (x) }", {}, "Relu: no layer right before it"),
        ("g (float[N,32,12,12] x) => (float[N,32,12,12] y) { y = Exp (x) }", {}, "no integer kernel for Exp"),
        ("g (float[N,32,12,12] x) => (float[N,32,12,12] y) { y = Exp (x) }", {"preset": "w8"}, "use --preset w8a8"),
    ],
)
def test_a_plan_that_quantizes_nothing_is_an_error(text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=f"nothing in this model would be quantized .*{message}"):
        onnxq.quantize(build(text), calibration=FEEDS, benchmark=False, **{"preset": "w8a8", **options})


def test_excluding_everything_is_an_error() -> None:
    with pytest.raises(RecipeError, match="nothing in this model would be quantized .Conv: excluded by --exclude"):
        onnxq.quantize(
            chain("[relu] m = Relu (a)"), calibration=FEEDS, benchmark=False, preset="w8a8", exclude=["first", "last"]
        )
