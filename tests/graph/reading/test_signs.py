"""What the graph says of the sign of a value."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.reading.signs import Sign, floors, sign_of
from tests.graph.build import build

GELU = "a = Div (x, r2) e = Erf (a) p = Add (e, one) "
TANH = "c = Pow (x, three) d = Mul (c, k) s = Add (x, d) u = Mul (s, k) e = Tanh (u) p = Add (one, e) "
HARDLY = {
    "x times half times 1 + erf": GELU + "h = Mul (x, half) y = Mul (h, p)",
    "half last": GELU + "h = Mul (x, p) y = Mul (h, half)",
    "half in the gate": GELU + "g = Mul (p, half) y = Mul (x, g)",
    "the tanh approximation": TANH + "h = Mul (half, x) y = Mul (h, p)",
    "SiLU": "s = Sigmoid (x) y = Mul (x, s)",
    "SiLU, the other way round": "s = Sigmoid (x) y = Mul (s, x)",
    "a sigmoid of 1.7 x": "a = Mul (x, k) s = Sigmoid (a) y = Mul (x, s)",
    "behind a Reshape": "s = Sigmoid (x) m = Mul (x, s) y = Reshape (m, shape)",
    "HardSwish": "y = HardSwish (x)",
}
NEVER = {
    "Relu": "y = Relu (x)",
    "Clip from zero": "y = Clip (x, zero)",
    "Softmax, turned": "s = Softmax (x) y = Transpose (s)",
}
ANY = {
    "a gate of something else": "s = Sigmoid (z) y = Mul (x, s)",
    "a gated product (SwiGLU)": "s = Sigmoid (x) g = Mul (x, s) y = Mul (g, z)",
    "a gate of a sum with something else": "a = Add (x, z) s = Sigmoid (a) y = Mul (x, s)",
    "a negative factor": GELU + "h = Mul (x, minus) y = Mul (h, p)",
    "another constant than 1": "e = Erf (x) p = Add (e, half) y = Mul (x, p)",
    "Clip from below zero": "y = Clip (x, minus)",
    "Clip without a bound": "y = Clip (x)",
    "Tanh": "y = Tanh (x)",
    "an input": "y = Identity (x)",
    "a square": "y = Mul (x, x)",
}


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        pytest.param(text, sign, id=name)
        for cases, sign in ((HARDLY, Sign.HARDLY_NEGATIVE), (NEVER, Sign.NEVER_NEGATIVE), (ANY, Sign.ANY))
        for name, text in cases.items()
    ],
)
def test_sign(text: str, sign: Sign) -> None:
    numbers = {"r2": 1.414, "half": 0.5, "one": 1.0, "three": 3.0, "k": 0.8, "zero": 0.0, "minus": -0.5}
    model = build(
        f"g (float[4, 4] x, float[4, 4] z) => (float[4, 4] y) {{ {text} }}",
        **{name: np.asarray(number, np.float32) for name, number in numbers.items()},
        shape=np.array([4, 4]),
    )
    loaded = io.load(model)
    assert sign_of(loaded.graph.outputs[0]) is sign


def test_floors() -> None:
    model = build(
        """g (float[4] x, float m) => (float[4] y) { [a] r = Relu (x) [b] c = Clip (x, low) [c] d = Clip (x, m)
        [d] e = Clip (x) [e] f = Clip (x, none) [f] y = Neg (x) }""",
        low=np.float32(-1.5),
        none=np.float32(-np.inf),
    )
    assert floors(io.load(model)) == {"r": 0.0, "c": -1.5}
