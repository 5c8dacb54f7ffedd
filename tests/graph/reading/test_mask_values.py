import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.reading.mask_values import masked_values
from tests.graph.build import build

F = np.float32
LOW32, LOW16 = float(np.finfo(F).min), -65504.0
HEAD = "g (float[1, 2, 4, 4] x, bool[1, 1, 1, 4] m, float[1, 1, 1, 4] ones) => (float y)"

SPELLINGS = {
    "Where(m, x, −∞)": ("l = Where (m, x, low) y = Softmax (l)", -np.inf, {"l"}),
    "Where(m, x, −3.4e38)": ("l = Where (m, x, low) y = Softmax (l)", LOW32, {"l"}),
    "Where of a mask, added": ("a = Where (m, zero, low) l = Add (x, a) y = Softmax (l)", LOW32, {"a", "l"}),
    "(1 − m) · −10000": ("n = Sub (one, ones) a = Mul (n, low) l = Add (x, a) y = Softmax (l)", -10000.0, {"a", "l"}),
    "(1 − m) · −65504": ("n = Sub (one, ones) a = Mul (n, low) l = Add (a, x) y = Softmax (l)", LOW16, {"a", "l"}),
    "(m − 1) · 1e9": ("n = Sub (ones, one) a = Mul (n, high) l = Add (x, a) y = Softmax (l)", -1e9, {"a", "l"}),
    "x − 10000 · (1 − m)": (
        "n = Sub (one, ones) a = Mul (n, high) l = Sub (x, a) y = Softmax (l)", -1e9, {"l"},
    ),
    "moved on the way": (
        "a = Where (m, zero, low) b = Unsqueeze (a, at) c = Expand (b, to) d = Squeeze (c, at) l = Add (x, d) "
        "y = Softmax (l)",
        -1e9, {"a", "b", "c", "d", "l"},
    ),
    "a constant mask of a decoder": ("l = Add (x, causal) y = Softmax (l)", LOW32, {"l"}),
    "no lower than the lowest": ("a = Where (m, zero, low) l = Add (x, a) k = Max (l, low) y = Softmax (k)", LOW32,
                                 {"a", "l", "k"}),
}  # fmt: skip


def constants(body: str, low: float) -> dict[str, np.ndarray]:
    causal = np.where(np.tri(4, dtype=bool), 0, np.clip(low, LOW32, 0)).astype(F)
    known = {
        "low": F(low), "high": F(1e9), "zero": F(0), "one": F(1), "causal": causal, "at": np.array([0]),
        "to": np.array([1, 1, 1, 4, 4]),
    }  # fmt: skip
    return {name: np.asarray(array) for name, array in known.items() if f" {name}" in body or f"({name}" in body}


@pytest.mark.parametrize(("body", "low", "names"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_way_to_mask_is_found(body: str, low: float, names: set[str]) -> None:
    found = masked_values(io.load(build(f"{HEAD} {{ {body} }}", **constants(body, low))).graph)
    assert set(found) == names
    assert set(found.values()) == {low}


OTHERS = {
    "a bias": "l = Add (x, low) y = Softmax (l)",
    "a scale": "l = Mul (x, high) y = Softmax (l)",
    "a fill": "l = Where (m, x, zero) y = Softmax (l)",
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_ordinary_numbers_are_no_masks(body: str) -> None:
    assert masked_values(io.load(build(f"{HEAD} {{ {body} }}", **constants(body, -200.0))).graph) == {}


def test_behind_a_softmax_there_is_no_mask() -> None:
    text = f"{HEAD} {{ l = Where (m, x, low) p = Softmax (l) y = Add (p, p) }}"
    assert set(masked_values(io.load(build(text, low=np.asarray(F(-1e9)))).graph)) == {"l"}
