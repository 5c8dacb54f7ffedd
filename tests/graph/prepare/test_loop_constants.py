"""What a Loop or Scan carries and never changes is read from outside."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.build import build, prepared, weights

TRIPS = {"n": np.array(3), "go": np.array(True)}


def node_of(model: object, kind: str) -> object:
    return next(node for node in model.graph if node.op_type == kind)  # type: ignore[attr-defined]


def loop(body: str, after: str = "y = Identity (a)", outputs: str = "float[2,4] y") -> str:
    return f"""g (float[2,4] x) => ({outputs}) {{
        k, a, s = Loop (n, go, w, x) <body = b (int64 i, bool c, float[4,4] u, float[2,4] h)
            => (bool d, float[4,4] v, float[2,4] t, float[2,4] o) {{ {body} }}>
        {after}
    }}"""


STEP = "d = Identity (c) t = MatMul (h, u) o = Relu (t) "


@pytest.mark.parametrize("trips", [0, 3])
@pytest.mark.parametrize("hand_on", ["v = Identity (u)", "r = Identity (u) v = Identity (r)"])
def test_the_weight_of_a_loop(trips: int, hand_on: str) -> None:
    given = {"n": np.array(trips), "go": np.array(True), "w": weights(4, 4)}
    outputs = "float[2,4] y, float[4,4] z" + (", float[K,2,4] s" if trips else "")
    text = loop(STEP + hand_on, "y = Identity (a) z = Neg (k)", outputs)
    model, report = prepared(build(text, opset=13, ir=7, **given))
    assert report.changes["loop_constants"] == 1
    node = node_of(model, "Loop")
    assert [len(node.inputs), len(node.outputs)] == [3, 2]  # type: ignore[attr-defined]
    body = node.attributes["body"].as_graph()  # type: ignore[attr-defined]
    product = next(inner for inner in body if inner.op_type == "MatMul")
    assert product.inputs[1].name == "w"
    assert product.inputs[1].is_initializer()


def test_a_weight_that_other_nodes_share() -> None:
    text = loop(STEP + "v = Identity (u)", "b = MatMul (x, w) y = Add (a, b)")
    model, report = prepared(build(text, opset=13, ir=7, w=weights(4, 4), **TRIPS))
    assert report.changes["loop_constants"] == 1
    assert set(model.graph.initializers) == {"w", "n", "go"}


def test_the_state_of_a_scan() -> None:
    text = """g (float[2,4] x, float[5,2,4] q) => (float[2,4] y, float[5,2,4] z) {
        k, y, z = Scan <num_scan_inputs = 1, body = b (float[4,4] u, float[2,4] h, float[2,4] e)
            => (float[4,4] v, float[2,4] t, float[2,4] o)
            { v = Identity (u) m = MatMul (h, u) t = Add (m, e) o = Relu (t) }> (w, x, q) }"""
    model, report = prepared(build(text, opset=13, ir=7, w=weights(4, 4)))
    assert report.changes["loop_constants"] == 1
    assert [value.name for value in node_of(model, "Scan").inputs] == ["x", "q"]  # type: ignore[attr-defined]


def test_a_loop_in_a_branch_and_a_value_that_is_no_constant() -> None:
    text = f"""g (float[2,4] x, float[4,4] w, bool z) => (float[2,4] y) {{
        y = If (z) <
            then_branch = f () => (float[2,4] p) {{
                k, p, s = Loop (n, go, w, x) <body = b (int64 i, bool c, float[4,4] u, float[2,4] h)
                    => (bool d, float[4,4] v, float[2,4] t, float[2,4] o) {{ {STEP} v = Identity (u) }}>
            }},
            else_branch = e () => (float[2,4] q) {{ q = Neg (x) }}
        >
    }}"""
    _, report = prepared(build(text, opset=13, ir=7, **TRIPS))
    assert report.changes["loop_constants"] == 1


def test_a_loop_in_a_loop_hands_its_weight_through() -> None:
    inner = """d = Identity (c) v = Identity (u)
        kk, t, ss = Loop (n, go, u, h) <body = bb (int64 j, bool cc, float[4,4] uu, float[2,4] hh)
            => (bool dd, float[4,4] vv, float[2,4] tt, float[2,4] oo)
            { dd = Identity (cc) vv = Identity (uu) tt = MatMul (hh, uu) oo = Relu (tt) }>
        o = Relu (t)"""
    _, report = prepared(build(loop(inner), opset=13, ir=7, w=weights(4, 4, low=-0.5, high=0.5), **TRIPS))
    assert report.changes["loop_constants"] == 2


@pytest.mark.parametrize(
    "text",
    [
        loop(STEP + "v = Neg (u)"),
        loop(STEP + "v = Identity (u)", "y = Identity (a)", "float[2,4] y, float[4,4] k"),
        # Two weights that change places
        """g (float[2,4] x) => (float[2,4] y) {
            k, l, y = Loop (n, go, w, r, x) <body = b (int64 i, bool c, float[4,4] u, float[4,4] o, float[2,4] h)
                => (bool d, float[4,4] p, float[4,4] q, float[2,4] t)
                { d = Identity (c) p = Identity (o) q = Identity (u) t = MatMul (h, u) }>
        }""",
    ],
)
def test_what_changes_or_is_asked_for_stays(text: str) -> None:
    more = {"r": weights(4, 4, seed=1)} if "w, r" in text else {}
    _, report = prepared(build(text, opset=13, ir=7, w=weights(4, 4), **more, **TRIPS))
    assert not report.changes["loop_constants"]
