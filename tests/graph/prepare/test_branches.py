"""If nodes whose condition is a constant give way to the branch that is taken."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.build import build, prepared, weights

BRANCHES = """<
    then_branch = t () => (float[N] p) { h = MatMul (x, w) p = Relu (h) },
    else_branch = e () => (float[N] q) { q = Neg (x) }>"""


def kinds(model: object) -> list[str]:
    return [node.op_type for node in model.graph]  # type: ignore[attr-defined]


@pytest.mark.parametrize("condition", [np.array(True), np.array([True])])
@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_that_is_taken(taken: bool, condition: np.ndarray) -> None:
    text = f"g (float[2,4] x) => (float[2,4] y) {{ v = If (c) {BRANCHES} y = Add (v, x) }}"
    model, report = prepared(build(text, c=condition & taken, w=weights(4, 4)))
    assert report.changes["branches"] == 1
    assert kinds(model) == (["MatMul", "Relu", "Add"] if taken else ["Neg", "Add"])


def test_the_output_of_the_model_keeps_its_name() -> None:
    text = f"g (float[2,4] x) => (float[2,4] y) {{ y = If (c) {BRANCHES} }}"
    model, report = prepared(build(text, c=np.array(True), w=weights(4, 4)))
    assert report.changes["branches"] == 1
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_condition_that_follows_from_shapes_and_branches_in_branches() -> None:
    text = f"""g (float[2,4] x) => (float[2,4] y) {{
        s = Shape (x) r = Size (s) c = Equal (r, two)
        y = If (c) <then_branch = o () => (float[2,4] z) {{ z = If (c) {BRANCHES} }},
                    else_branch = n () => (float[2,4] k) {{ k = Abs (x) }}> }}"""
    model, report = prepared(build(text, two=np.array(2), w=weights(4, 4)))
    assert report.changes["branches"] == 2
    assert kinds(model) == ["MatMul", "Relu"]


def test_two_outputs_one_of_them_from_outside() -> None:
    text = """g (float[2,4] x) => (float[2,4] y, float[2,4] z) {
        a = Abs (x)
        y, z = If (c) <then_branch = t () => (float[2,4] p, float[2,4] q) { p = Identity (a) q = Neg (a) },
                       else_branch = e () => (float[2,4] m, float[2,4] n) { m = Neg (x) n = Relu (x) }> }"""
    model, report = prepared(build(text, c=np.array(True)))
    assert report.changes["branches"] == 1
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_a_condition_that_is_computed_stays() -> None:
    text = f"""g (float[2,4] x) => (float[2,4] y) {{
        m = ReduceMax <keepdims = 0> (x) c = Greater (m, zero) y = If (c) {BRANCHES} }}"""
    model, report = prepared(build(text, zero=np.array(0, np.float32), w=weights(4, 4)))
    assert report.changes["branches"] == 0
    assert kinds(model)[-1] == "If"
