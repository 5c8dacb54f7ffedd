"""Scales of channels go into what precedes a value, in every spelling, and the model computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model
from onnxq.passes.scales import scale_channels
from tests.graph.build import build, feeds_for, ops, run, same, session, weights

MICROSOFT = ', "com.microsoft": 1'
C = 6
SCALES = 2.0 ** np.linspace(-3, 3, C)


def gamma(seed: int = 1) -> np.ndarray:
    return weights(C, seed=seed, low=0.5, high=1.5)


def scaled(proto: onnx.ModelProto, value: str, layers: list[str], *, rtol: float = 1e-5):
    """Scale, and check that the outputs stay; returns where the scales went, and the model."""
    before = proto.SerializeToString()
    model = io.load(proto)
    found = scale_channels(model, value, layers, SCALES)
    content = io.to_bytes(model)
    if not ops(model)["SimplifiedLayerNormalization"]:  # the runtime has it in a domain where the checker misses it
        check_model(content)
    assert proto.SerializeToString() == before
    opened = session(before)
    for seed in (0, 1):
        feeds = feeds_for(opened, 3, seed)
        same(run(before, feeds), run(content, feeds), rtol)
    return found, model


TAIL = "[fc] z = MatMul (v, W) }"
IN = f"g (float[N,S,{C}] x) => (float[N,S,4] z) {{ "
W = weights(C, 4)
# name: (graph, initializers, nodes that take up the scales, operator set, ms)
FOLDS = {
    "LayerNormalization": ("[n] v = LayerNormalization <axis=-1> (x, g, b)", {"g": gamma(), "b": gamma(2)}, ["n"]),
    "LayerNormalization without shift": ("[n] v = LayerNormalization (x, g)", {"g": gamma()}, ["n"]),
    "LayerNormalization, shared scale": (
        "u = LayerNormalization (x, g, g) \n [n] v = LayerNormalization (u, g, g)",
        {"g": gamma()},
        ["n"],
    ),
    "SimplifiedLayerNormalization": ("[n] v = SimplifiedLayerNormalization (x, g)", {"g": gamma()}, ["n"]),
    "SkipLayerNormalization": (
        "[n] v, m, i, s = com.microsoft.SkipLayerNormalization (x, x, g, b, c)",
        {"g": gamma(), "b": gamma(2), "c": gamma(3)},
        ["n"],
    ),
    "SkipLayerNormalization without shift": (
        "[n] v = com.microsoft.SkipLayerNormalization (x, x, g)",
        {"g": gamma()},
        ["n"],
    ),
    "SkipSimplifiedLayerNormalization": (
        "[n] v = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g)",
        {"g": gamma()},
        ["n"],
    ),
    "LayerNormalization, taken apart": (
        "m = ReduceMean <axes=[-1]> (x) \n d = Sub (x, m) \n q = Mul (d, d) \n a = ReduceMean <axes=[-1]> (q) \n"
        "e = Add (a, eps) \n r = Sqrt (e) \n u = Div (d, r) \n [gn] h = Mul (g, u) \n [bn] v = Add (h, b)",
        {"g": gamma(), "b": gamma(2), "eps": np.float32([1e-5])},
        ["bn", "gn"],
    ),
    "RMSNorm, taken apart": (
        "q = Mul (x, x) \n a = ReduceMean <axes=[-1]> (q) \n e = Add (a, eps) \n r = Sqrt (e) \n"
        "u = Div (x, r) \n [gn] v = Mul (u, g)",
        {"g": gamma(), "eps": np.float32([1e-5])},
        ["gn"],
    ),
    "MatMul": ("[p] v = MatMul (x, P)", {"P": weights(C, C, seed=5)}, ["p"]),
    "MatMul and Add": (
        "[p] h = MatMul (x, P) \n [a] v = Add (b, h)",
        {"P": weights(C, C, seed=5), "b": gamma()},
        ["a", "p"],
    ),
    "MatMul, Sub and Relu": (
        "[p] h = MatMul (x, P) \n [a] k = Sub (h, b) \n v = Relu (k)",
        {"P": weights(C, C, seed=5), "b": gamma()},
        ["a", "p"],
    ),
    "a gate": (
        "[p] u = MatMul (x, P) \n [q] h = MatMul (x, Q) \n s = Sigmoid (h) \n [m] v = Mul (s, u)",
        {"P": weights(C, C, seed=5), "Q": weights(C, C, seed=6)},
        ["p"],
    ),
    "a constant factor": ("h = Sigmoid (x) \n [m] v = Mul (h, g)", {"g": gamma()}, ["m"]),
    "one number": ("h = Sigmoid (x) \n [m] v = Mul (h, k)", {"k": np.float32(0.3)}, ["m"]),
    "a quotient": ("h = Sigmoid (x) \n [m] v = Div (h, g)", {"g": gamma()}, ["m"]),
    "a reciprocal": ("h = Exp (x) \n [m] v = Div (g, h)", {"g": gamma()}, ["m"]),
    "a sum of layers": (
        "[p] h = MatMul (x, P) \n [q] k = MatMul (x, Q) \n v = Add (h, k)",
        {"P": weights(C, C, seed=5), "Q": weights(C, C, seed=6)},
        ["p", "q"],
    ),
    "a bias for each row": (
        "[p] h = MatMul (x, P) \n [a] v = Add (h, b)",
        {"P": weights(C, C, seed=5), "b": weights(3, C)},
        ["a", "p"],
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_what_precedes_the_value_takes_up_the_scales(name: str) -> None:
    text, constants, into = FOLDS[name]
    proto = build(IN + text + "\n" + TAIL, imports=MICROSOFT, W=W, **constants)
    if name == "one number":
        proto = onnx.shape_inference.infer_shapes(proto)
    found, model = scaled(proto, "v", ["fc"])
    assert sorted(found.into) == sorted(into)
    assert found.added is None
    assert ops(model) == ops(io.load(proto))
    assert "folded into" in found.how


def test_rms_normalization_of_the_standard() -> None:
    # the runtime under test may lack its kernel, so that only the constants are looked at
    proto = build(IN + "[n] v = RMSNormalization (x, g) \n" + TAIL, opset=23, ir=10, W=W, g=gamma())
    model = io.load(proto)
    assert scale_channels(model, "v", ["fc"], SCALES).into == ("n",)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(io.to_bytes(model)).graph.initializer}
    np.testing.assert_allclose(kept["g"], gamma() * SCALES, rtol=1e-6)
    np.testing.assert_allclose(kept["W"], W / SCALES[:, None], rtol=1e-6)


ROWS = f"g (float[N,{C}] x) => (float[N,4] z) {{ "


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b", ", one"])
def test_gemm_on_either_side(transposed: int, bias: str) -> None:
    text = ROWS + f"[p] v = Gemm <transB={transposed}> (x, P{bias}) \n [fc] z = Gemm <transB={transposed}> (v, W) }}"
    kernel = weights(4, C) if transposed else W
    proto = build(text, P=weights(C, C, seed=5), W=kernel, b=gamma(), one=np.float32([0.4]))
    found, _ = scaled(onnx.shape_inference.infer_shapes(proto), "v", ["fc"])
    assert found.into == ("p",)


def test_batch_normalization_of_rows() -> None:
    text = ROWS + "h = Sigmoid (x) \n [n] v = BatchNormalization (h, g, b, m, s) \n [fc] z = Gemm (v, W) }"
    proto = build(text, W=W, g=gamma(), b=gamma(2), m=gamma(3), s=gamma(4))
    assert scaled(onnx.shape_inference.infer_shapes(proto), "v", ["fc"])[0].into == ("n",)


def test_reshape_before_the_layer() -> None:
    text = f"g (float[2,3,{C}] x) => (float[6,4] z) {{ [n] h = LayerNormalization (x, g) \n v = Reshape (h, shape) \n"
    proto = build(text + " [fc] z = Gemm (v, W) }", W=W, g=gamma(), shape=np.array([-1, C]))
    assert scaled(onnx.shape_inference.infer_shapes(proto), "v", ["fc"])[0].into == ("n",)
    found, _ = scaled(proto, "v", ["fc"])  # nothing is known of the shapes
    assert found.added


HEADS = (
    f"g (float[N,4,{C}] x) => (float[N,4,4] z) {{ [q] a = MatMul (x, Q) \n [v] b = MatMul (x, V) \n"
    " [bias] c = Add (b, B) \n h = Reshape (c, heads) \n t = Transpose <perm=[0, 2, 1, 3]> (h) \n"
    " qh = Reshape (a, heads) \n qt = Transpose <perm=[0, 2, 1, 3]> (qh) \n kt = Transpose <perm=[0, 2, 3, 1]> (qh) \n"
    " s = MatMul (qt, kt) \n p = Softmax (s) \n m = MatMul (p, t) \n o = Transpose <perm=[0, 2, 1, 3]> (m) \n"
    " v = Reshape (o, flat) \n [fc] z = MatMul (v, W) EXTRA }"
)


def attention(extra: str = "", text: str = HEADS) -> onnx.ModelProto:
    constants = {"Q": weights(C, C, seed=5), "V": weights(C, C, seed=6), "B": gamma(), "W": W}
    shapes = {"heads": np.array([0, 4, 2, C // 2]), "flat": np.array([0, 4, C])}
    proto = build(text.replace("EXTRA", extra), **constants, **shapes)
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def test_attention_passes_scales_on_to_the_projection_of_values() -> None:
    found, _ = scaled(attention(), "v", ["fc"])
    assert sorted(found.into) == ["bias", "v"]


@pytest.mark.parametrize(
    "text",
    [
        HEADS.replace(
            "m = MatMul (p, t)",
            "i = Transpose <perm=[0, 1, 3, 2]> (t) \n j = MatMul (i, p) \n m = Transpose <perm=[0, 1, 3, 2]> (j)",
        ),  # the values are on the left
        HEADS.replace("EXTRA", "\n w = Neg (t)"),  # the values are read elsewhere
        HEADS.replace("m = MatMul (p, t)", "u = Neg (p) \n n = Add (t, t) \n m = MatMul (u, n)"),
    ],
)
def test_attention_that_does_not_pass_scales_on_gets_a_mul(text: str) -> None:
    assert scaled(attention(text=text), "v", ["fc"])[0].added


def test_values_that_heads_share_do_not_take_up_scales_of_each_head() -> None:
    text = HEADS.replace("h = Reshape (c, heads)", "h = Reshape (c, one)")
    constants = {"Q": weights(C, C, seed=5), "V": weights(C, C // 2, seed=6), "B": gamma()[: C // 2], "W": W}
    shapes = {"heads": np.array([0, 4, 2, C // 2]), "flat": np.array([0, 4, C]), "one": np.array([0, 4, 1, C // 2])}
    proto = build(text.replace("EXTRA", ""), **constants, **shapes)
    assert scaled(onnx.shape_inference.infer_shapes(proto, data_prop=True), "v", ["fc"])[0].added


def test_layers_that_share_an_input_share_the_scales() -> None:
    text = (
        f"g (float[N,S,{C}] x) => (float[N,S,4] y, float[N,S,4] z, float[N,S,4] w) {{ [n] v = LayerNormalization (x, g)"
        " \n [q] y = MatMul (v, W) \n [k] z = MatMul (v, V) \n [l] w = MatMul (v, W) }"
    )
    proto = build(text, W=W, V=weights(C, 4, seed=9), g=gamma())
    assert scaled(proto, "v", ["q", "k", "l"])[0].into == ("n",)
    found, model = scaled(proto, "v", ["q", "k"])  # another node reads it: its input must stay as it is
    assert found.added
    assert ops(model)["Mul"] == 1
    assert found.how == f"a Mul {found.added!r}"


MULS = {
    "a graph input": ("v = Identity (x)", {}),
    "a residual connection": ("v = LayerNormalization (x, g) \n r = Neg (v)", {"g": gamma()}),
    "a softmax": ("v = Softmax (x)", {}),
    "a scale that is no constant": (
        "h = ReduceMean <axes=[0, 1], keepdims=0> (x) \n v = LayerNormalization (x, h)",
        {},
    ),
    "a layer read twice": ("h = MatMul (x, P) \n r = Neg (h) \n v = Relu (h)", {"P": weights(C, C, seed=5)}),
    "a sum with a residual": ("h = MatMul (x, P) \n v = Add (h, x)", {"P": weights(C, C, seed=5)}),
    "a divisor": ("h = Exp (x) \n k = Exp (x) \n v = Div (h, k)", {}),
}


@pytest.mark.parametrize("name", MULS)
def test_otherwise_a_mul_is_added(name: str) -> None:
    text, constants = MULS[name]
    proto = build(IN + text + "\n" + TAIL, W=W, **constants)
    value = "x" if name == "a graph input" else "v"
    if value == "x":
        proto = build(IN + TAIL.replace("(v,", "(x,"), W=W)
    before = ops(io.load(proto))
    found, model = scaled(proto, value, ["fc"])
    assert found.into == ()
    assert found.added == f"{value}_scaled"
    assert ops(model)["Mul"] == before["Mul"] + 1


def test_a_value_that_is_a_graph_output_stays_as_it_is() -> None:
    text = f"g (float[N,S,{C}] x) => (float[N,S,4] z, float[N,S,{C}] v) {{ v = LayerNormalization (x, g) \n " + TAIL
    assert scaled(build(text, W=W, g=gamma()), "v", ["fc"])[0].added


def test_shared_weights_are_copied() -> None:
    text = f"g (float[N,S,{C}] x) => (float[N,S,{C}] z, float[N,S,{C}] w) {{ [p] v = MatMul (x, W) \n"
    proto = build(text + " [fc] z = MatMul (v, W) \n w = MatMul (x, W) }", W=weights(C, C))
    found, model = scaled(proto, "v", ["fc"])
    assert found.into == ("p",)
    assert len(model.graph.initializers) == 3


def test_layers_in_bodies_are_scaled_too() -> None:
    text = (
        f"g (float[N,S,{C}] x, bool c) => (float[N,S,4] z) {{ v = LayerNormalization (x, g) \n"
        " z = If (c) <then_branch = t () => (float[N,S,4] p) { [fc] p = MatMul (v, W) },"
        " else_branch = e () => (float[N,S,4] q) { [fd] q = MatMul (v, W) }> }"
    )
    proto = build(text, W=W, g=gamma())
    assert scaled(proto, "v", ["fc", "fd"])[0].added is None
    assert scaled(proto, "v", ["fc"])[0].added


def test_half_precision() -> None:
    text = f"g (float16[N,{C}] x) => (float16[N,4] z) {{ v = Mul (x, g) \n [fc] z = MatMul (v, W) }}"
    proto = build(text, W=W.astype(np.float16), g=gamma().astype(np.float16))
    _, model = scaled(proto, "v", ["fc"], rtol=5e-3)
    assert model.graph.initializers["g"].const_value.numpy().dtype == np.float16
    with pytest.raises(ModelError, match="'fc': scaled weights do not fit float16"):
        scale_channels(model, "v", ["fc"], np.full(C, 1e-7))


@pytest.mark.parametrize(
    ("value", "layers", "scales", "reason"),
    [
        ("v", ["nothing"], SCALES, "no node 'nothing'"),
        ("v", [], SCALES, "no node"),
        ("x", ["fc"], SCALES, "MatMul 'fc': does not multiply 6 channels of 'x'"),
        ("v", ["fc"], SCALES[:4], "does not multiply 4 channels of 'v'"),
        ("v", ["fc"], -SCALES, "scales have to be positive"),
        ("v", ["fc"], SCALES * np.nan, "scales have to be positive, finite"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(value, layers, scales, reason) -> None:
    model = io.load(build(IN + "[n] v = LayerNormalization (x, g) \n" + TAIL, W=W, g=gamma()))
    before = io.to_bytes(model)
    with pytest.raises(ModelError, match=reason):
        scale_channels(model, value, layers, scales)
    assert io.to_bytes(model) == before
