"""HardSigmoid and HardSwish written out with Add and Clip."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared

NUMBERS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, "slope": 0.2, "half": 0.5, "one": 1.0}


def of(body: str, shape: str = "float[N, 4, 5]", opset: int = 13) -> object:
    used = {k: np.array(v, np.float32) for k, v in NUMBERS.items() if f"{k})" in body or f"{k}," in body}
    return build(f"g ({shape} x) => ({shape} y) {{ {body} }}", opset=opset, ir=7, **used)


GATE = "a = Add (x, three) c = Clip (a, zero, six)"


@pytest.mark.parametrize(
    "body",
    [
        f"{GATE} m = Mul (x, c) y = Div (m, six)",
        f"{GATE} m = Mul (c, x) y = Mul (sixth, m)",
        f"{GATE} d = Div (c, six) y = Mul (x, d)",
        f"{GATE} d = Mul (c, sixth) y = Mul (d, x)",
    ],
)
def test_hard_swish(body: str) -> None:
    model, report = prepared(of(body))
    assert ops(model) == Counter({"HardSigmoid": 1, "Mul": 1})
    assert report.changes["hard_swish"] == 1
    assert not model.graph.initializers


@pytest.mark.parametrize(
    "body",
    [
        f"{GATE} y = Div (c, six)",
        "m = Mul (x, slope) a = Add (half, m) y = Clip (a, zero, one)",
        "m = Div (x, six) a = Sub (m, half) y = Clip (a, zero, one)",
    ],
)
def test_hard_sigmoid(body: str) -> None:
    model, _ = prepared(of(body))
    assert ops(model) == Counter({"HardSigmoid": 1})


@pytest.mark.parametrize(
    "body",
    [
        f"{GATE} m = Mul (x, c) y = Div (m, three)",
        f"{GATE} m = Mul (a, c) y = Div (m, six)",
        f"{GATE} y = Mul (x, c)",
        "a = Add (x, three) c = Clip (a, half, six) y = Div (c, six)",
        "a = Sub (three, x) c = Clip (a, zero, six) y = Div (c, six)",
        "a = Add (x, three) c = Clip (a, zero) y = Div (c, six)",
        "y = Clip (x, zero, one)",
    ],
)
def test_what_is_something_else_stays(body: str) -> None:
    _, report = prepared(of(body))
    assert not report.changes["hard_swish"]


def test_values_that_something_else_reads_stay() -> None:
    text = f"g (float[N, 4] x) => (float[N, 4] y, float[N, 4] c) {{ {GATE} y = Div (c, six) }}"
    constants = {k: np.array(NUMBERS[k], np.float32) for k in ("three", "zero", "six")}
    _, report = prepared(build(text, opset=13, ir=7, **constants))
    assert not report.changes["hard_swish"]


def test_constants_that_others_share_and_bodies() -> None:
    text = f"""g (float[2, 4] x, bool k) => (float[2, 4] y) {{
        u = Add (x, six)
        y = If (k) <
            then_branch = t () => (float[2, 4] p) {{ {GATE} m = Mul (x, c) p = Div (m, six) }},
            else_branch = e () => (float[2, 4] q) {{ q = Mul (u, six) }}
        >
    }}"""
    constants = {k: np.array(NUMBERS[k], np.float32) for k in ("three", "zero", "six")}
    model, report = prepared(build(text, opset=13, ir=7, **constants))
    assert report.changes["hard_swish"] == 1
    assert ops(model)["HardSigmoid"] == 1
    assert "six" in model.graph.initializers


def test_half_precision_stays() -> None:
    text = "g (float16[N, 4] x) => (float16[N, 4] y) { a = Add (x, three) c = Clip (a, zero, six) y = Div (c, six) }"
    constants = {k: np.array(NUMBERS[k], np.float16) for k in ("three", "zero", "six")}
    _, report = prepared(build(text, opset=13, ir=7, **constants), rtol=1e-2)
    assert not report.changes["hard_swish"]
