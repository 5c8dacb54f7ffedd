"""SmoothQuant as a pass: which layers share scales, where they go, and that the float model computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, TensorSpec
from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError, RecipeError
from onnxq.graph.emit.rewrite import TOKEN
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.reading.ops import KEEP_FLOAT
from onnxq.passes.heads import tied_channels
from onnxq.passes.smooth import smooth, smoothable
from onnxq.plan.decisions import DYNAMIC, FLOAT, INTEGER, NodePlan, Plan
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.sampled_rows import sample_rows
from onnxq.runtime.session import session_of
from tests.correlated_models import network, samples
from tests.graph.build import build, run, same, weights

ROOT = Path(__file__).resolve().parents[2]
SPEC = TensorSpec(QType.INT8, PerAxis(1), symmetric=True, narrow_range=True)
LAYERS = ("gate", "up", "down", "mix", "head")


def plan_of(*layers: str, action: str = DYNAMIC) -> Plan:
    form = TOKEN if action == DYNAMIC else ""
    return Plan({n: NodePlan(n, "MatMul", action, weights={1: SPEC}, form=form) for n in layers or LAYERS}, {})


def smoothed(model, plan, alpha, feeds=None, alphas=None):
    """Smooth a loaded model, with statistics of itself."""
    feeds = feeds or samples(20)
    groups = smoothable(model, plan, alphas or dict.fromkeys(plan.nodes, alpha))
    statistics = calibrate(model, [], feeds, Run(threads=1), peaks=list(groups))
    reader = open_reader(feeds, session_of(model, threads=1).input_specs)
    rows = sample_rows(model, list(groups), reader, rows=200, threads=1)
    return smooth(model, plan, groups, statistics, rows)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9, "auto"])
@pytest.mark.parametrize("action", [DYNAMIC, INTEGER])
def test_the_float_model_computes_the_same(alpha, action: str) -> None:
    model = io.load(network())
    found = smoothed(model, plan_of(action=action), alpha)
    assert found["n"].layers == ("gate", "up")  # they read one value and share its scales
    assert found["n"].scaled is not None
    assert found["n"].scaled.added is None
    assert found["h"].scaled is None or found["h"].scaled.into == ("up",)
    for feed in samples(3, seed=5):
        same(run(network().SerializeToString(), feed), run(io.to_bytes(model), feed), 1e-5)


def test_a_value_that_something_else_reads_gets_a_mul_that_stays_float() -> None:
    text = (
        "g (float[N,S,64] x) => (float[N,S,64] y) { n = LayerNormalization (x, g, b) \n [fc] m = MatMul (n, W) \n"
        " y = Add (m, n) }"
    )
    constants = {"g": np.linspace(0.1, 9, 64, dtype=np.float32), "b": weights(64), "W": weights(64, 64)}
    model = io.load(build(text, **constants))
    found = smoothed(model, plan_of("fc"), 0.5)["n"].scaled
    assert found is not None
    added = next(node for node in model.graph if node.name == found.added)
    assert added.op_type == "Mul"
    assert KEEP_FLOAT in added.meta
    data = [feed["x"] for feed in samples(8)]
    result = onnxq.quantize(
        build(text, **constants), calibration=[{"x": x} for x in data], preset="w8a8", smooth=0.5, benchmark=False
    )
    assert any("have a Mul of their own" in line for line in result.warnings)
    kept = {name: reason for name, op, reason in result.kept_float if op == "Mul"}
    assert all("smooths the input" in reason for reason in kept.values())
    assert kept


def test_only_layers_that_round_their_input_count() -> None:
    model = io.load(network())
    assert smoothable(model, plan_of(action=FLOAT), dict.fromkeys(LAYERS, 0.5)) == {}
    assert smoothable(model, plan_of(), {}) == {}
    groups = smoothable(model, plan_of("gate"), {"gate": 0.5, "up": 0.5})
    assert list(groups) == ["n"]
    assert groups["n"].layers == ("gate", "up")  # scaled along, so that no Mul is needed
    assert groups["n"].quantized == ("gate",)


def test_a_tied_weight_is_left_alone() -> None:
    text = (
        "g (float[N,S,64] x, int64[K] i) => (float[N,S,64] y, float[K,64] z)"
        " { n = LayerNormalization (x, g) \n [fc] y = MatMul (n, W) \n z = Gather (W, i) }"
    )
    model = io.load(build(text, W=weights(64, 64), g=np.ones(64, np.float32)))
    assert smoothable(model, plan_of("fc"), {"fc": 0.5}) == {}


def grouped_queries(heads: int = 2, repeats: int = 3, width: int = 8) -> onnx.ModelProto:
    """One attention with repeated heads of values, as PyTorch exports it, with dynamic axes by name."""
    full, kv = heads * repeats * width, heads * width
    text = f"""g (float[B,S,32] x, float[B,{heads * repeats},S,S] p) => (float[B,S,32] y) {{
 [v_proj] a = MatMul (x, V)
 r = Reshape (a, split)
 t = Transpose <perm = [0, 2, 1, 3]> (r)
 u = Unsqueeze (t, two)
 shape = Shape (u)
 sizes = Mul (shape, copies)
 e = Expand (u, sizes)
 s = Shape <start = 0, end = 1> (x)
 l = Shape <start = 1, end = 2> (x)
 join = Concat <axis = 0> (s, all, l, each)
 h = Reshape (e, join)
 m = MatMul (p, h)
 n = Transpose <perm = [0, 2, 1, 3]> (m)
 o = Reshape (n, flat)
 [o_proj] y = MatMul (o, O) }}"""
    proto = build(
        text,
        V=weights(32, kv) * np.geomspace(1, 60, kv, dtype=np.float32),
        O=weights(full, 32, seed=1),
        split=np.array([0, 0, heads, width]),
        two=np.array([2]),
        copies=np.array([1, 1, repeats, 1, 1]),
        all=np.array([heads * repeats]),
        each=np.array([width]),
        flat=np.array([0, 0, full]),
    )
    shapes = {"u": ("B", heads, 1, "S", width), "e": ("B", heads, repeats, "S", width)}
    shapes |= {"h": ("B", heads * repeats, "S", width), "m": ("B", heads * repeats, "S", width)}
    shapes |= {"r": ("B", "S", heads, width), "t": ("B", heads, "S", width), "a": ("B", "S", kv)}
    shapes |= {"n": ("B", "S", heads * repeats, width), "o": ("B", "S", full)}
    for name, shape in shapes.items():
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return proto


def test_scales_of_an_output_projection_go_into_the_values_of_grouped_queries() -> None:
    """As in TensorRT-LLM's recipe for LLaMA: heads that share values share their scales."""
    proto = grouped_queries()
    model = io.load(proto)
    rng = np.random.default_rng(0)
    feeds = [
        {
            "x": rng.normal(size=(2, s, 32)).astype(np.float32),
            "p": rng.dirichlet(np.ones(s), size=(2, 6, s)).astype(np.float32),
        }
        for s in (3, 5)
    ]
    node = next(node for node in model.graph if node.name == "o_proj")
    tied = tied_channels(node.inputs[0], 48)
    assert tied is not None
    np.testing.assert_array_equal(tied.reshape(2, 3, 8), np.broadcast_to(np.arange(16).reshape(2, 1, 8), (2, 3, 8)))
    found = smoothed(model, plan_of("o_proj"), 0.5, feeds)["o"].scaled
    assert found is not None
    assert found.into == ("v_proj",)
    for feed in feeds:
        same(run(proto.SerializeToString(), feed), run(io.to_bytes(model), feed), 1e-5)


def test_statistics_that_do_not_fit_name_the_layer() -> None:
    model = io.load(network())
    plan = plan_of()
    groups = smoothable(model, plan, dict.fromkeys(LAYERS, 0.5))
    statistics = calibrate(model, [], samples(2), Run(threads=1), peaks=["h"])
    statistics.peaks["n"] = statistics.peaks["h"]
    with pytest.raises(CalibrationError, match="MatMul 'gate': smooth: magnitudes of shape"):
        smooth(model, plan, groups, statistics, {})


def test_smoothing_where_no_activations_are_rounded_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--smooth 0\.5: does nothing with preset w4"):
        onnxq.quantize(network(), preset="w4", smooth=0.5, calibration=samples(8), benchmark=False, force=True)


def test_smoothing_needs_samples() -> None:
    with pytest.raises(RecipeError, match="--smooth: needs samples"):
        onnxq.quantize(network(), preset="w8a8-token", smooth=0.5, benchmark=False)


def test_rules_choose_alpha_by_node() -> None:
    recipe = Recipe(preset="w8a8-token", rules=(Rule("down", smooth="auto"), Rule("g*", smooth=0.7)))
    assert recipe.smooth_for(["down"]) == "auto"
    assert recipe.smooth_for(["gate"]) == 0.7
    assert recipe.smooth_for(["head"]) is None
    assert Recipe(preset="w8a8-smooth").smooth_for(["any"]) == "auto"
    assert Recipe(preset="w8a8-smooth", smooth=0.4).smooth_for(["any"]) == 0.4


def test_padding_has_no_part_in_magnitudes_and_rows() -> None:
    text = (
        "g (float[N,S,64] x, int64[N,S] attention_mask) => (float[N,S,64] y, float[N,S] m)"
        " { n = LayerNormalization (x, g) \n [fc] y = MatMul (n, W) \n m = Cast <to = 1> (attention_mask) }"
    )
    model = io.load(build(text, W=weights(64, 64), g=np.ones(64, np.float32)))
    clean, padded = [], []
    for feed in samples(6):
        x = feed["x"].copy()
        x[:, 5:] = 0
        x[:, 5:, 3] = 1.0  # normalized, one large channel
        mask = np.ones((1, 8), np.int64)
        mask[:, 5:] = 0
        padded.append({"x": x, "attention_mask": mask})
        clean.append({"x": x[:, :5], "attention_mask": mask[:, :5]})
    found = []
    for feeds in (clean, padded):
        peaks = calibrate(model, [], feeds, Run(threads=1), peaks=["n"]).peaks["n"].highest
        reader = open_reader(feeds, session_of(model, threads=1).input_specs)
        found.append((peaks, sample_rows(model, ["n"], reader, rows=60, threads=1)["n"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(np.abs(found[0][1]).max(0), np.abs(found[1][1]).max(0), rtol=1e-5)


@pytest.mark.parametrize("name", ["text_encoder", "tiny_lm"])
def test_trained_models_compute_the_same(name: str) -> None:
    """An encoder whose normalizations feed residual sums, and a decoder as LLaMA with grouped queries."""
    path = ROOT / "models" / f"{name}.onnx"
    model = io.load(path)
    prepare(model, min_opset=13)
    layers = [node.name or "" for node in model.graph if layer_input(node) is not None]
    with np.load(ROOT / "calibration_data" / f"{name}.npz") as archive:
        inputs = [value.name for value in model.graph.inputs]
        feeds = [{key: archive[key][i : i + 2] for key in inputs} for i in range(0, 8, 2)]
    before = io.to_bytes(model)
    found = smoothed(model, plan_of(*layers), 0.5, feeds)
    assert len(found) >= 12
    added = [value for value, each in found.items() if each.scaled is not None and each.scaled.added is not None]
    if name == "tiny_lm":  # q, k, v; o_proj through grouped queries; gate, up; down_proj: everything is folded
        assert added == []
        into = {node for each in found.values() if each.scaled is not None for node in each.scaled.into}
        assert {"/layers.0/attention/v_proj/MatMul", "/layers.0/mlp/up_proj/MatMul", "/norm/Mul_1"} <= into
    for feed in feeds[:2]:
        same(run(before, feed), run(io.to_bytes(model), feed), 1e-5)
