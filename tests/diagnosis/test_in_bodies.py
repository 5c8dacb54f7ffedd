"""Error by layer in subgraphs: each node alone, over the runs of its body, and why others cannot be looked into."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.diagnosis.finding import Finding
from onnxq.runtime.session import open_session
from tests.graph.build import build, weights

RNG = np.random.default_rng(7)
FEEDS = [{"x": RNG.standard_normal((16, 64)).astype(np.float32), "c": np.array(RNG.random() < 0.5)} for _ in range(32)]

BRANCHES = """g (float[16, 64] x, bool c) => (float[16, 64] y) {
    [first] h = MatMul (x, w)
    [either] k = If (c) <
        then_branch = t () => (float[16, 64] a) { [left] p = MatMul (h, u) [relu] a = Relu (p) },
        else_branch = e () => (float[16, 64] b) { [right] b = MatMul (x, v) }>
    [last] y = MatMul (k, w) }"""

LOOP = """g (float[16, 64] x, bool c) => (float[16, 64] y) {
    [many] h = Loop (three, c, x) <body = b (int64 i, bool go, float[16, 64] s) => (bool on, float[16, 64] t) {
        [on] on = Identity (go) [inner] p = MatMul (s, u) [tanh] t = Tanh (p) }>
    [last] y = MatMul (h, w) }"""

COUNTING = """g (float[16, 64] x, bool c) => (float[16, 64] y) {
    [many] n, h = Loop (three, c, zero, x) <body = b (int64 i, bool go, int64 k, float[16, 64] s)
        => (bool on, int64 m, float[16, 64] t) {
        [on] on = Identity (go) [add] m = Add (k, i) [inner] p = MatMul (s, u) [tanh] t = Tanh (p) }>
    [last] y = MatMul (h, w) }"""


FROM_OUTSIDE = """g (float[16, 64] x, bool c) => (float[16, 64] y) {
    [enter] e = MatMul (x, v) [flip] f = Transpose (e) [back] h = Transpose (f)
    [many] r = Loop (three, c, x) <body = b (int64 i, bool go, float[16, 64] s) => (bool on, float[16, 64] t) {
        [on] on = Identity (go) [inner] p = MatMul (h, u) [sum] q = Add (p, s) [tanh] t = Tanh (q) }>
    [last] y = MatMul (r, w) }"""


def diagnosed(
    text: str, feeds: list[dict[str, np.ndarray]], format: str = "qdq", preset: str = "w8a8"
) -> tuple[dict[str, Finding], list[str], onnx.ModelProto]:
    model = build(
        text, w=weights(64, 64), u=weights(64, 64, seed=1), v=weights(64, 64, seed=2), three=np.array(3),
        zero=np.array(0),
    )  # fmt: skip
    found = onnxq.diagnose(model, data=feeds, recipe=onnxq.Recipe(preset=preset, include=("*",), format=format))
    return {finding.node: finding for finding in found.findings}, found.warnings, model


def test_layers_of_both_branches_have_their_own_error() -> None:
    found, warnings, _ = diagnosed(BRANCHES, FEEDS)
    assert found["left"].inside == "then_branch of If 'either'"
    assert found["right"].inside == "else_branch of If 'either'"
    assert found["first"].inside == found["last"].inside == ""
    for name in ("left", "right"):
        assert 25 < found[name].own_sqnr_db < 60
        assert found[name].arriving_sqnr_db is None
        assert found[name].output_sqnr_db is None
    assert not any("looked into" in line for line in warnings)


@pytest.mark.parametrize(("format", "preset"), [("qdq", "w8a8"), ("qoperator", "w8a8"), ("qdq", "w8a16")])
def test_a_value_that_only_bodies_read_rounded_is_looked_at_too(format: str, preset: str) -> None:
    """It becomes integers in the main graph; what dequantizes them, or computes with them, is in the body."""
    found, _, _ = diagnosed(FROM_OUTSIDE, FEEDS, format, preset)
    assert format == "qoperator" or found["inner"].inside == "body of Loop 'many'"
    assert 25 < found["enter"].own_sqnr_db < 60 and found["enter"].value in ("e", "f", "h")


def test_the_error_is_that_of_the_outputs_where_one_branch_is_the_whole_model() -> None:
    text = BRANCHES.replace("[first] h = MatMul (x, w)", "[first] h = Identity (x)")
    text = text.replace("[either] k = If", "[either] y = If").replace("[last] y = MatMul (k, w)", "")
    model = build(text, u=weights(64, 64, seed=1), v=weights(64, 64, seed=2))
    recipe = onnxq.Recipe(preset="w8", include=("right",))
    result = onnxq.quantize(model, recipe=recipe, calibration=FEEDS, benchmark=False)
    assert result.model is not None
    feeds = [feed for feed in FEEDS if not feed["c"]]
    (finding,) = onnxq.diagnose(model, result.model, data=feeds).findings
    assert (finding.node, finding.inside) == ("right", "else_branch of If 'either'")
    sessions = [open_session(each.SerializeToString()) for each in (model, result.model)]
    before, after = (np.concatenate([session.run(feed)[0] for feed in feeds]) for session in sessions)
    assert finding.own_sqnr_db == pytest.approx(float(sqnr_db(before, after)), abs=0.1)


def test_a_loop_is_looked_at_over_its_iterations() -> None:
    found, _, _ = diagnosed(LOOP, [{**feed, "c": np.array(True)} for feed in FEEDS])
    assert found["inner"].inside == "body of Loop 'many'"
    assert 20 < found["inner"].own_sqnr_db < 60


def test_a_branch_that_no_sample_ran_and_a_loop_that_is_given_integers_are_named() -> None:
    _, warnings, _ = diagnosed(BRANCHES, [{**feed, "c": np.array(True)} for feed in FEEDS])
    assert warnings == []  # what never ran is not quantized
    _, warnings, _ = diagnosed(COUNTING, [{**feed, "c": np.array(True)} for feed in FEEDS])
    assert any("not looked into: body of Loop 'many': its input 'k' holds no real numbers" in line for line in warnings)


def test_what_a_body_reads_may_be_an_input_with_a_default() -> None:
    text = LOOP.replace("bool c)", "bool c, float[64, 64] u)")
    found, warnings, _ = diagnosed(text, FEEDS)
    assert found["inner"].inside == "body of Loop 'many'"
    assert not any("not looked into" in line for line in warnings)
