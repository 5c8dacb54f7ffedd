"""Subgraphs of If, Loop and Scan on integers: right in both formats, one quantization a value, one copy a weight."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.graph import walk
from onnxq.graph.names import scopes
from onnxq.graph.views.inner import expose
from onnxq.recipe.recipe import FORMATS
from onnxq.report.results import QuantizeResult
from onnxq.stats.statistics import Statistics
from tests.graph.build import build, weights

Array = np.ndarray[Any, Any]
Feeds = list[dict[str, Array]]

BRANCHES = """g (float[N,16,8,8] x, bool c) => (float[N,16,8,8] y) { [pre] a = Conv (x, w0)
    [pick] y = If (c) <
        then_branch = t () => (float[N,16,8,8] p) { [c1] p0 = Conv (a, w1) [r1] p1 = Relu (p0) [c2] p = Conv (p1, w2) },
        else_branch = e () => (float[N,16,8,8] q) { [c3] q0 = Conv (a, w1) [th] q = Tanh (q0) }> }"""
NESTED = """g (float[N,16,8,8] x, bool c, bool d) => (float[N,16,8,8] y) { [pre] a = Conv (x, w0)
    [outer] y = If (c) <
        then_branch = t () => (float[N,16,8,8] p) { [c1] b = Conv (a, w1) [inner] p1 = If (d) <
            then_branch = t2 () => (float[N,16,8,8] p2) { [c2] k = Conv (b, w2) [add] p2 = Add (k, a) },
            else_branch = e2 () => (float[N,16,8,8] q2) {
                [pool] m = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (b)
                [pad] n = Pad <mode = "reflect"> (m, pads) [c3] q2 = Conv (n, w3) }>
            [c4] p = Conv (p1, w1) },
        else_branch = e () => (float[N,16,8,8] q) { q = Neg (a) }> }"""
LOOP = """g (float[4,64] x, int64 n) => (float[4,64] y, float[K,4,64] z) { [pre] h = MatMul (x, w0)
    go = Constant <value = bool {1}> ()
    [loop] y, z = Loop (n, go, h) <body = b (int64 i, bool on, float[4,64] s)
        => (bool off, float[4,64] next, float[4,64] o) { off = Identity (on) [m1] s1 = MatMul (s, w1)
        [add] s2 = Add (s1, h) [m2] s3 = MatMul (s2, w2) [th] next = Tanh (s3) [m3] o = MatMul (h, w1) }> }"""
SCAN = """g (float[4,64] x, float[T,4,64] xs) => (float[4,64] y, float[T,4,64] z) {
    [scan] y, z = Scan <num_scan_inputs = 1, body = b (float[4,64] s, float[4,64] e)
        => (float[4,64] next, float[4,64] o) { [m1] s1 = MatMul (s, w0)
        [add] s2 = Add (s1, e) [m2] s3 = MatMul (s2, w1) [th] next = Tanh (s3)
        [m3] t = MatMul (e, w2) [soft] o = Softmax (t) }> (x, xs) }"""


def convolutions(count: int) -> dict[str, Array]:
    return {f"w{i}": weights(16, 16, 1, 1, seed=i) / 4 for i in range(count)}


def matrices(count: int) -> dict[str, Array]:
    return {f"w{i}": weights(64, 64, seed=i) / 5 for i in range(count)}


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def branch_feeds(*names: str, count: int = 10) -> Feeds:
    flags = [{name: np.array(bool(i >> bit & 1)) for bit, name in enumerate(names)} for i in range(count)]
    return [{"x": drawn(i, 2, 16, 8, 8), **flags[i]} for i in range(count)]


def loop_feeds(n: int) -> Feeds:
    return [{"x": drawn(i, 4, 64), "n": np.array(n)} for i in range(10)]


CASES: dict[str, tuple[onnx.ModelProto, Feeds, str]] = {
    "branches": (build(BRANCHES, **convolutions(3)), branch_feeds("c"), "pre c1 c2 c3"),
    "nested": (
        build(NESTED, **convolutions(3), w3=weights(16, 16, 3, 3) / 8, pads=np.array([0, 0, 1, 1] * 2)),
        branch_feeds("c", "d"),
        "pre c1 c2 add pool pad c3 c4",
    ),
    "loop": (build(LOOP, **matrices(3)), loop_feeds(3), "pre m1 add m2 m3"),
    "scan": (
        build(SCAN, **matrices(3)),
        [{"x": drawn(i, 4, 64), "xs": drawn(100 + i, 5, 4, 64)} for i in range(10)],
        "m1 add m2 m3",
    ),
}  # fmt: skip
both_formats = pytest.mark.parametrize("form", FORMATS)
every_case = pytest.mark.parametrize("case", CASES)


def quantized(proto: onnx.ModelProto, feeds: Feeds, form: str, **options: object) -> QuantizeResult:
    given = {"preset": "w8a8", "benchmark": False, "threads": 1, "format": form, **options}
    if given["preset"] == "w8a8":
        given["range"] = "minmax"
    return onnxq.quantize(proto, calibration=feeds, **given)


def session(model: onnx.ModelProto, optimize: bool, save_to: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(model: onnx.ModelProto, feeds: Feeds, optimize: bool) -> list[list[Array]]:
    opened = session(model, optimize)
    return [opened.run(None, feed) for feed in feeds]


def check(proto: onnx.ModelProto, result: QuantizeResult, feeds: Feeds, decibels: float = 25.0) -> None:
    """With and without optimizations close to float, in the user's interface."""
    model = result.model
    assert model is not None
    assert [(v.name, v.type) for v in model.graph.output] == [(v.name, v.type) for v in proto.graph.output]
    for optimize in (False, True):
        for expected, got in zip(outputs(proto, feeds, False), outputs(model, feeds, optimize), strict=True):
            for left, right in zip(expected, got, strict=True):
                assert left.shape == right.shape
                assert left.size == 0 or sqnr_db(left, right) > decibels


def integer_nodes(result: QuantizeResult) -> list[str]:
    return [plan.name for plan in result.plan.nodes.values() if plan.action == "integer"]


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for graph in scopes(model.graph) for node in graph.node]


@both_formats
@every_case
def test_bodies_run_on_integers_and_stay_close_to_float(case: str, form: str) -> None:
    proto, feeds, names = CASES[case]
    result = quantized(proto, feeds, form)
    if case == "nested":
        result = quantized(proto, feeds, form, include=("*",))
    assert set(integer_nodes(result)) >= set(names.split())
    check(proto, result, feeds)


@both_formats
@every_case
def test_the_runtime_turns_bodies_into_integer_kernels(case: str, form: str, tmp_path: Path) -> None:
    proto, feeds, _ = CASES[case]
    model = quantized(proto, feeds, form).model
    assert model is not None
    session(model, True, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in nodes(optimized))
    assert not {"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm"} & set(kinds)
    inside = {node.op_type for graph in scopes(optimized.graph)[1:] for node in graph.node}
    assert {"QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat"} & inside


@both_formats
@every_case
def test_both_formats_of_one_plan_give_the_same_numbers(case: str, form: str) -> None:
    proto, feeds, _ = CASES[case]
    results = [quantized(proto, feeds, name).model for name in FORMATS]
    found = [outputs(model, feeds[:4], form == "qdq") for model in results if model is not None]
    for left, right in zip(*found, strict=True):
        for one, other in zip(left, right, strict=True):
            assert sqnr_db(one, other) > 35


@both_formats
def test_a_value_read_inside_and_outside_is_quantized_once(form: str) -> None:
    proto, feeds, _ = CASES["branches"]
    model = quantized(proto, feeds, form).model
    assert model is not None
    floats = [node.input[0] for node in nodes(model) if node.op_type == "QuantizeLinear"]
    assert max(Counter(floats).values()) == 1  # "a" is read by two subgraphs
    body = scopes(model.graph)[1]
    made = {name for node in body.node for name in node.output}
    captured = {name for node in body.node for name in node.input if name and name not in made}
    assert "a" not in captured  # what comes in is integers


@both_formats
def test_a_weight_shared_between_bodies_is_stored_once(form: str) -> None:
    for case, copies in (("branches", 3), ("loop", 3)):
        proto, feeds, _ = CASES[case]
        model = quantized(proto, feeds, form).model
        assert model is not None
        stored = [t for graph in scopes(model.graph) for t in graph.initializer if len(t.dims) > 1]
        assert [t.data_type for t in stored] == [onnx.TensorProto.INT8] * copies


@both_formats
def test_a_branch_that_no_sample_takes_stays_float_and_says_so(form: str) -> None:
    proto, feeds, _ = CASES["branches"]
    result = quantized(proto, [feed for feed in feeds if feed["c"]], form)
    assert integer_nodes(result) == ["pre", "c1", "c2"]
    reasons = {name: reason for name, _, reason in result.kept_float}
    assert "that calibration never ran" in reasons["c3"]
    check(proto, result, feeds)


@both_formats
def test_a_branch_of_products_that_nothing_was_seen_of_stays_float(form: str) -> None:
    # It reads what is known and writes floats: none of its own values would need statistics.
    text = """g (float[N,64] x, bool c) => (float[N,64] y) { [pre] a = MatMul (x, w0) [pick] y = If (c) <
        then_branch = t () => (float[N,64] p) { [m1] p = MatMul (a, w1) },
        else_branch = e () => (float[N,64] q) { [m2] q = MatMul (a, w2) }> }"""
    feeds: Feeds = [{"x": drawn(i, 4, 64), "c": np.array(False)} for i in range(5)]
    result = quantized(build(text, **matrices(3)), feeds, form)
    assert integer_nodes(result) == ["pre", "m2"]
    (reason,) = [reason for name, _, reason in result.kept_float if name == "m1"]
    assert reason.startswith("value 'p' lies in a subgraph that calibration never ran; its weight is stored")


@both_formats
def test_a_loop_without_iterations_stays_float(form: str) -> None:
    proto, _, _ = CASES["loop"]
    result = quantized(proto, loop_feeds(0), form)
    assert integer_nodes(result) == ["pre"]
    assert all("never ran" in reason for name, _, reason in result.kept_float if name in ("m1", "add", "m2", "m3"))
    check(proto, result, loop_feeds(2))


def test_ranges_of_a_state_are_those_of_all_iterations(tmp_path: Path) -> None:
    text = """g (float[2,64] x, int64 n) => (float[2,64] y) {
        y = Loop (n, , x) <body = b (int64 i, bool on, float[2,64] s) => (bool off, float[2,64] next) {
        off = Identity (on) d = Add (s, s) [m] p = MatMul (d, w0) next = Identity (d) }> }"""
    proto = build(text, **matrices(1))
    feeds: Feeds = [{"x": np.ones((2, 64), np.float32), "n": np.array(4)}]
    proto.graph.node[0].attribute[0].g.output.append(onnx.helper.make_tensor_value_info("p", 1, [2, 64]))
    proto.graph.node[0].output.append("all")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("all", 1, ["K", 2, 64]))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    onnxq.calibrate(path, tmp_path / "stats.npz", calibration=feeds, threads=1)
    statistics = Statistics.load(tmp_path / "stats.npz")
    state = statistics["next"]  # which is "d" once the Identity is gone
    assert (state.low, state.high, state.count) == (2.0, 16.0, 4 * 2 * 64)
    result = quantized(proto, feeds, "qdq")
    assert integer_nodes(result) == ["m"]
    check(proto, result, feeds)


@both_formats
def test_weights_of_float_layers_in_bodies_are_stored_and_folded_when_the_model_is_loaded(
    form: str, tmp_path: Path
) -> None:
    proto, feeds, _ = CASES["loop"]
    result = quantized(proto, feeds, form, preset="w8")
    assert result.model is not None and result.plan.counts("storage") == 4
    assert result.size_after < 0.4 * result.size_before
    check(proto, result, feeds)
    session(result.model, True, tmp_path / "optimized.onnx")
    assert not {"Cast", "Mul"} & {node.op_type for node in nodes(onnx.load(tmp_path / "optimized.onnx"))}


def test_a_weight_that_lies_in_a_body_is_unfolded_there() -> None:
    proto, feeds, _ = CASES["scan"]
    moved = onnx.ModelProto.FromString(proto.SerializeToString())
    body = next(a.g for a in moved.graph.node[0].attribute if a.HasField("g"))
    body.initializer.extend(moved.graph.initializer)
    del moved.graph.initializer[:]
    result = quantized(moved, feeds, "qdq", preset="w8")
    assert result.model is not None
    places = [[node.op_type for node in graph.node].count("Cast") for graph in scopes(result.model.graph)]
    assert places == [0, 3]
    check(moved, result, feeds)


def test_names_in_bodies_can_be_chosen() -> None:
    proto, feeds, _ = CASES["branches"]
    assert integer_nodes(quantized(proto, feeds, "qdq", exclude=("c1",))) == ["pre", "c2", "c3"]
    only = quantized(proto, feeds, "qdq", include=("c3",))
    assert integer_nodes(only) == ["c3"]
    assert only.coverage["Conv"] == {"quantized": 1, "total": 4}
    check(proto, only, feeds)


def test_inspect_sees_bodies_as_the_plan_has_them(tmp_path: Path) -> None:
    proto, feeds, _ = CASES["branches"]
    path = tmp_path / "out.onnx"
    quantized(proto, feeds, "qdq", output=path)
    looked = onnxq.inspect(path)
    assert looked.coverage["Conv"] == {"quantized": 4, "total": 4}
    states = {node["name"]: node["state"] for node in looked.nodes}
    assert states["pick.then_branch/c1"] == states["pick.else_branch/c3"] == "integer"


def test_saved_statistics_know_bodies_too(tmp_path: Path) -> None:
    proto, feeds, _ = CASES["loop"]
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    onnxq.calibrate(path, tmp_path / "stats.npz", calibration=feeds, threads=1)
    assert {"s", "s1", "s2", "o"} <= set(Statistics.load(tmp_path / "stats.npz"))
    result = onnxq.quantize(path, statistics=tmp_path / "stats.npz", preset="w8a8", benchmark=False, threads=1)
    assert set(integer_nodes(result)) == {"pre", "m1", "add", "m2", "m3"}


def test_a_body_that_the_runtime_hands_nothing_out_of_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxq.graph.views.outputs as room

    def refused(model: ir.Model, names: object, *, shapes: bool = False) -> dict[str, str]:
        added = expose(model, names, shapes=shapes)  # type: ignore[arg-type]
        for node in walk.all_nodes(model.graph):
            if added and node.op_type in ("Identity", "Shape"):
                node.op_type = "NoSuchOperator"
        return added

    monkeypatch.setattr(room.inner, "expose", refused)
    proto, feeds, _ = CASES["branches"]
    result = quantized(proto, feeds, "qdq")
    assert integer_nodes(result) == ["pre"]
    reasons = {name: reason for name, _, reason in result.kept_float}
    assert reasons["c1"].startswith("value ") and "has no statistics" in reasons["c1"]
    assert any("the runtime does not hand them out: prepared model: onnxruntime" in line for line in result.warnings)
    check(proto, result, feeds)
