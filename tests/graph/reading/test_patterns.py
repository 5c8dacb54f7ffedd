import re

import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.reading import patterns
from onnxq.graph.reading.patterns import Match, find
from tests.graph.build import build

F = np.float32
CONSTANTS = {
    "one": F(1), "two": F(2), "three": F(3), "half": F(0.5), "eps": F(1e-5), "minus_half": F(-0.5),
    "root2": F(np.sqrt(2)), "inverse_root2": F(np.sqrt(0.5)), "c": F(0.044715), "k": F(np.sqrt(2 / np.pi)),
    "w": np.ones(8, F), "b": np.ones(8, F), "quick": F(1.702), "axes": np.array([-1]), "four": np.array([4]),
    "zero": np.array([0]), "eight": np.array([8]), "two_axis": np.array([2]), "rep": np.array([1, 1, 2, 1, 1]),
    "flat": np.array([1, 4, 3, 8]),
}  # fmt: skip


def matches(body: str, opset: int = 18, x: str = "float[1, 2, 3, 8] x", more: str = "") -> list[Match]:
    words = set(re.findall(r"\w+", body))
    used = {
        name: np.asarray(array)
        for name, array in CONSTANTS.items()
        if name in words - set(re.findall(r"(\w+) =", body))
    }
    graph = f"g ({x}{more}) => (float y) {{ {body} }}"
    return find(io.load(build(graph, opset=opset, **used)).graph)


SPELLINGS = {
    "RMSNorm, torch": (
        "p = Pow (x, two) m = ReduceMean (p, axes) a = Add (m, eps) s = Sqrt (a) d = Div (one, s) n = Mul (x, d) "
        "y = Mul (w, n)",
        "RMSNorm", 7,
    ),
    "RMSNorm, dynamo": (
        "p = Pow (x, two) m = ReduceMean (p, axes) a = Add (m, eps) s = Sqrt (a) d = Reciprocal (s) n = Mul (x, "
        "d) y = Mul (n, w)",
        "RMSNorm", 7,
    ),
    "RMSNorm, tf2onnx": (
        "p = Mul (x, x) m = ReduceMean (p, axes) a = Add (eps, m) s = Sqrt (a) n = Div (x, s) y = Mul (w, n)",
        "RMSNorm", 6,
    ),
    "RMSNorm in half precision": (
        "h = Cast <to = 1> (x) p = Pow (h, two) m = ReduceMean (p, axes) a = Add (m, eps) d = Pow (a, minus_half) "
        "n = Mul (h, d) q = Cast <to = 1> (n) y = Mul (w, q)",
        "RMSNorm", 7,
    ),
    "LayerNormalization, torch": (
        "m = ReduceMean (x, axes) d = Sub (x, m) p = Pow (d, two) v = ReduceMean (p, axes) a = Add (v, eps) s = "
        "Sqrt (a) "
        "n = Div (d, s) g = Mul (n, w) y = Add (g, b)",
        "LayerNormalization", 9,
    ),
    "LayerNormalization, tf2onnx": (
        "m = ReduceMean (x, axes) d = Sub (x, m) p = Mul (d, d) v = ReduceMean (p, axes) a = Add (v, eps) s = "
        "Sqrt (a) "
        "r = Reciprocal (s) g = Mul (r, w) n = Mul (x, g) o = Mul (m, g) t = Sub (b, o) y = Add (n, t)",
        "LayerNormalization", 12,
    ),
    "Gelu, torch": (
        "d = Div (x, root2) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)", "Gelu", 5,
    ),
    "Gelu, dynamo": (
        "d = Div (x, root2) e = Erf (d) a = Add (e, one) m = Mul (half, a) y = Mul (x, m)", "Gelu", 5,
    ),
    "Gelu, tf2onnx": (
        "d = Mul (x, inverse_root2) e = Erf (d) a = Add (one, e) h = Mul (half, x) y = Mul (h, a)", "Gelu", 5,
    ),
    "Gelu by tanh, torch": (
        "h = Mul (half, x) q = Pow (x, three) r = Mul (q, c) s = Add (x, r) i = Mul (s, k) t = Tanh (i) a = Add "
        "(t, one) "
        "y = Mul (h, a)",
        "Gelu", 8,
    ),
    "SiLU": ("s = Sigmoid (x) y = Mul (x, s)", "SiLU", 2),
    "SiLU, the other way round": ("s = Sigmoid (x) y = Mul (s, x)", "SiLU", 2),
    "QuickGelu": ("q = Mul (x, quick) s = Sigmoid (q) y = Mul (x, s)", "QuickGelu", 3),
    "rotary embedding, torch": (
        "l = Slice (x, zero, four, axes) h = Slice (x, four, eight, axes) n = Neg (h) t = Concat <axis = -1> (n, l) "
        "p = Mul (x, cos) q = Mul (t, sin) y = Add (p, q)",
        "rotary embedding", 7,
    ),
    "rotary embedding, dynamo": (
        "l, h = Split <axis = -1, num_outputs = 2> (x) n = Neg (h) t = Concat <axis = -1> (n, l) q = Mul (t, sin) "
        "p = Mul (x, cos) y = Add (p, q)",
        "rotary embedding", 6,
    ),
    "rotary embedding by halves": (
        "l, h = Split <axis = -1, num_outputs = 2> (x) a = Mul (l, cos) d = Mul (h, sin) e = Sub (a, d) f = Mul "
        "(h, cos) "
        "i = Mul (l, sin) j = Add (f, i) y = Concat <axis = -1> (e, j)",
        "rotary embedding", 8,
    ),
    "repeated heads": (
        "u = Unsqueeze (x, two_axis) e = Expand (u, rep) y = Reshape (e, flat)", "repetition of key or value heads", 3,
    ),
    "repeated heads, tf2onnx": (
        "u = Unsqueeze (x, two_axis) e = Tile (u, rep) y = Reshape (e, flat)", "repetition of key or value heads", 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "name", "size"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_found_whole(body: str, name: str, size: int) -> None:
    more = ", float[3, 8] cos, float[3, 8] sin" if "cos" in body else ""
    found = matches(body, more=more)
    assert [match.pattern.name for match in found] == [name]
    assert len(found[0].nodes) == size
    assert found[0].values["x"].name == "x" and not found[0].shared


OTHERS = {
    "another exponent": (
        "p = Pow (x, three) m = ReduceMean (p, axes) a = Add (m, eps) s = Sqrt (a) n = Div (x, s) y = Mul (w, n)"
    ),
    "another value is normalized": (
        "z = Neg (x) p = Pow (x, two) m = ReduceMean (p, axes) a = Add (m, eps) s = Sqrt (a) n = Div (z, s) y = "
        "Mul (w, n)"
    ),
    "a maximum, no mean": "p = Pow (x, two) m = ReduceMax (p, axes) a = Add (m, eps) s = Sqrt (a) y = Div (x, s)",
    "another number in the Erf": "d = Div (x, two) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    "the gate of another value": "z = Neg (x) s = Sigmoid (z) y = Mul (x, s)",
    "a sum with a gate": "s = Sigmoid (x) y = Add (x, s)",
    "a Concat that turns nothing": (
        "l = Slice (x, zero, four, axes) h = Slice (x, four, eight, axes) t = Concat <axis = -1> (h, l) p = Mul "
        "(x, cos) "
        "q = Mul (t, sin) y = Add (p, q)"
    ),
    "a Reshape alone": "y = Reshape (x, flat)",
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_computes_something_else_is_not(body: str) -> None:
    assert matches(body, more=", float[3, 8] cos, float[3, 8] sin" if "cos" in body else "") == []


def test_a_value_that_is_read_outside_is_said_to_be_shared() -> None:
    body = "s = Sigmoid (x) m = Mul (x, s) y = Add (m, s)"
    (found,) = matches(body)
    assert found.pattern is patterns.SILU and found.shared
    (alone,) = matches("s = Sigmoid (x) m = Mul (x, s) y = Add (m, m)")
    assert not alone.shared


def test_the_larger_of_two_matches_counts() -> None:
    body = (
        "m = ReduceMean (x, axes) d = Sub (x, m) p = Pow (d, two) v = ReduceMean (p, axes) a = Add (v, eps) s = "
        "Sqrt (a) "
        "n = Div (d, s) y = Mul (n, w)"
    )
    assert [len(match.nodes) for match in matches(body) if match.pattern is patterns.LAYER_NORM] == [8]


def test_matching_changes_nothing_and_prepared_models_match_as_well() -> None:
    body, _, _ = SPELLINGS["Gelu, dynamo"]
    model = io.load(build(f"g (float[1, 2, 3, 8] x) => (float y) {{ {body} }}",
                          **{n: np.asarray(CONSTANTS[n]) for n in ("root2", "one", "half")}))  # fmt: skip
    before = io.to_bytes(model)
    find(model.graph)
    assert io.to_bytes(model) == before
    prepare(model)
    assert [match.pattern for match in find(model.graph)] == [patterns.GELU]
