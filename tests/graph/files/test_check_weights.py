"""The checker speaks in one line; weights that are not finite are refused, masks and bounds are not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model, check_weights
from tests.graph.build import Array, build, weights


def bad(*shape: int, value: float = np.nan, count: int = 2) -> Array:
    array = weights(*shape)
    array.reshape(-1)[:count] = value
    return array


def test_good_models_pass() -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=weights(4, 4))
    check_model(proto)
    check_model(proto.SerializeToString())
    check_weights(io.load(proto))


def test_microsoft_and_custom_operators_pass() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = com.microsoft.Gelu (x) y = my.ops.Warp (a) }"
    check_model(build(text, imports=', "com.microsoft": 1, "my.ops": 1'))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N,4] x) => (float[N,4] y) { y = NoSuchThing (x) }", "No Op registered for NoSuchThing"),
        ("g (float[N,4] x) => (float[N,4] y) { y = Relu (missing) }", "missing"),
        ("g (float[N,4] x) => (float[N,4] y) { y = Relu <k = 1> (x) }", "Unrecognized attribute: k"),
    ],
)
def test_invalid_models_are_one_line(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        check_model(build(text))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(ModelError, match="not valid ONNX"):
        check_model(b"\x89PNG and so on")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("g (float[N,4] x) => (float[N,4] y) { [fc] y = MatMul (x, w) }", "w"),
        ("g (float[N,4] x) => (float[N,4] y) { [fc] y = Gemm (x, v, w) }", "w"),
        ("g (float[N,4] x) => (float[N,4] y) { t = Transpose (w) r = Identity (t) [fc] y = MatMul (x, r) }", "w"),
        (
            "g (float[N,4] x, bool c) => (float[N,4] y) { y = If (c) <then_branch = t () => (float[N,4] p) "
            "{ [fc] p = MatMul (x, w) }, else_branch = e () => (float[N,4] q) { q = Relu (x) }> }",
            "w",
        ),
    ],
)
def test_weights_that_are_not_finite_are_named(text: str, name: str, value: float) -> None:
    used = {"v": weights(4, 4)} if " v," in text else {}
    model = io.load(build(text, w=bad(4, 4, value=value), **used))
    with pytest.raises(ModelError, match=rf"initializer '{name}' of \w+ 'fc': 2 of 16 elements are not finite"):
        check_weights(model)


def test_constant_nodes_count_too() -> None:
    constant = "w = Constant <value = float[2,2] {1.0, 2.0, 3.0, 4.0}> ()"
    text = f"g (float[N,2] x) => (float[N,2] y) {{ {constant} y = MatMul (x, w) }}"
    proto = build(text)
    proto.graph.node[0].attribute[0].t.float_data[1] = np.nan
    with pytest.raises(ModelError, match="'w' of MatMul 'MatMul_0': 1 of 4"):
        check_weights(io.load(proto))


def test_float16_weights() -> None:
    text = "g (float16[N,4] x) => (float16[N,4] y) { y = MatMul (x, w) }"
    with pytest.raises(ModelError, match="1 of 16"):
        check_weights(io.load(build(text, w=bad(4, 4, value=np.inf, count=1).astype(np.float16))))


@pytest.mark.parametrize(
    "nodes",
    [
        "m = Add (x, w) y = Softmax (m)",
        "y = Clip (x, low, high)",
        "y = Where (c, x, w)",
        "y = Max (x, w)",
        "m = Gather (w, i) y = Add (x, m)",
        "z = Pad (x, p, low) y = Relu (x)",
    ],
)
def test_infinite_masks_and_bounds_are_legitimate(nodes: str) -> None:
    constants = {
        "w": bad(4, 4, value=-np.inf), "low": np.float32(-np.inf), "high": np.float32(np.inf),
        "c": np.ones((4, 4), bool), "i": np.arange(4), "p": np.array([0, 1, 0, 1]),
    }  # fmt: skip
    used = {name: np.asarray(array) for name, array in constants.items() if f"({name}" in nodes or f", {name}" in nodes}
    check_weights(io.load(build(f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", **used)))


@pytest.mark.parametrize("nodes", ["y = Add (x, w)", "m = Gather (w, i) y = Add (x, m)", "y = Mul (w, x)"])
def test_nan_in_arithmetic_and_tables_is_damage(nodes: str) -> None:
    constants = {"w": bad(4, 4), "i": np.arange(4)} if "(w, i)" in nodes else {"w": bad(4, 4)}
    with pytest.raises(ModelError, match="'w' of .*: 2 of 16 elements are NaN"):
        check_weights(io.load(build(f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", **constants)))
