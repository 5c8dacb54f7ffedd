"""Equalization keeps the float outputs and evens out the channels, through everything that is homogeneous."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.graph.files import io
from onnxq.passes.equalize import Equalized, absorb_biases, equalize
from onnxq.passes.pairs import find_pairs
from tests.graph.build import build, feeds_for, prepared, run, same, session, weights

Array = np.ndarray

SPREAD = 2.0 ** np.random.default_rng(7).integers(-5, 6, 64)
"""What the channels of the spread networks were multiplied with."""


def conv(out: int, inner: int, kernel: int, seed: int = 0) -> Array:
    return weights(out, inner, kernel, kernel, seed=seed) * np.float32((inner * kernel * kernel) ** -0.5)


def done(model: onnx.ModelProto, *, pairs: int, dims: int = 2, rtol: float = 1e-5) -> Equalized:
    """Equalize a prepared copy; checks what holds for every network."""
    copy, _ = prepared(model, dims=dims)
    result = equalize(copy)
    content = io.to_bytes(copy)
    before = model.SerializeToString()
    for seed in (0, 1):
        feeds = feeds_for(session(before), dims, seed)
        same(run(before, feeds), run(content, feeds), rtol)
    assert result.pairs == pairs
    assert (result.spread_after <= result.spread_before * 1.001) if pairs else result.spread_after == 1.0
    again = equalize(copy)
    feeds = feeds_for(session(before), dims)
    same(run(content, feeds), run(io.to_bytes(copy), feeds), 1e-6)  # nothing is left to do
    assert again.pairs == result.pairs
    return result


def two(between: str, *, first: str = "Conv <pads = [1,1,1,1]> (x, w1, b1)", out: str = "c", **more: Array) -> str:
    del more
    return (
        f"g (float[N,3,8,8] x) => (float[N,D,H,W] y) {{ [a] a = {first} {between} "
        f"[b] y = Conv <pads = [1,1,1,1]> ({out}, w2, b2) }}"
    )


def spread_convs(seed: int = 0) -> dict[str, Array]:
    s = SPREAD[:8].astype(np.float32)
    w1, w2 = conv(8, 3, 3, seed), conv(4, 8, 3, seed + 1)
    return {
        "w1": w1 * s[:, None, None, None],
        "b1": weights(8) * s,
        "w2": w2 / s[None, :, None, None],
        "b2": weights(4),
    }


@pytest.mark.parametrize(
    "between",
    [
        "[r] c = Relu (a)",
        "[r] c = LeakyRelu <alpha = 0.1> (a)",
        "[r] c = PRelu (a, slope)",
        "[r] r = Relu (a) [p] c = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)",
        "[r] r = Relu (a) [p] c = AveragePool <kernel_shape = [3,3]> (r)",
        "[r] r = Relu (a) [p] c = Pad (r, pads)",
        "[n] n = BatchNormalization (a, scale, shift, mean, var) [r] c = Relu (n)",
        "[i] c = Identity (a)",
    ],
    ids=["relu", "leaky", "prelu", "maxpool", "averagepool", "pad", "batchnorm", "identity"],
)
def test_outputs_stay_and_channels_even_out(between: str) -> None:
    arrays = spread_convs()
    if "slope" in between:
        arrays["slope"] = weights(8, 1, 1, low=0.05, high=0.4)
    if "pads" in between:
        arrays["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    if "scale" in between:
        arrays |= {"scale": weights(8, low=0.5, high=2.0), "shift": weights(8), "mean": weights(8)}
        arrays["var"] = weights(8, low=0.5, high=2.0)
    result = done(build(two(between), **arrays), pairs=1)
    assert result.spread_before > 50
    assert result.spread_after < 20


@pytest.mark.parametrize(
    "between",
    ["[s] c = Sigmoid (a)", "[k] c = Clip (a, low, high)", "[t] t = Relu (a) [u] c = Add (t, one)", "[v] c = Tanh (a)"],
)
def test_what_is_not_homogeneous_is_left(between: str) -> None:
    arrays = spread_convs()
    extra = {"low": np.float32(0).reshape(()), "high": np.float32(6).reshape(()), "one": np.ones(1, np.float32)}
    arrays |= {name: array for name, array in extra.items() if name in between.replace("(", " ").replace(",", " ")}
    done(build(two(between), **arrays), pairs=0)


def test_a_value_that_others_read_is_left() -> None:
    text = """g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,8,8,8] c) {
        [a] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r] c = Relu (a) [b] y = Conv <pads = [1,1,1,1]> (c, w2, b2) }"""
    done(build(text, **spread_convs()), pairs=0)


def test_a_shared_weight_is_left() -> None:
    text = """g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
        [a] a = Conv <pads = [1,1,1,1]> (x, w) [r] c = Relu (a) [b] y = Conv <pads = [1,1,1,1]> (c, w) }"""
    done(build(text, w=conv(8, 8, 3)), pairs=0)


def test_several_layers_that_read_one_value_share_its_scales() -> None:
    text = """g (float[N,16] x) => (float[N,6] y, float[N,5] z) {
        [a] a = Gemm (x, w1, b1) [r] c = Relu (a) [b] y = Gemm <transB = 1> (c, w2) [d] z = MatMul (c, w3) }"""
    s = SPREAD[:12].astype(np.float32)
    model = build(
        text,
        w1=weights(16, 12) * s,
        b1=weights(12) * s,
        w2=weights(6, 12) / s,
        w3=weights(12, 5) / s[:, None],
    )
    assert done(model, pairs=1).spread_after < 4


def depthwise(groups_out: int = 1) -> onnx.ModelProto:
    """Pointwise, depthwise and pointwise layers whose channels were spread by powers of two."""
    text = """g (float[N,4,8,8] x) => (float[N,5] y) {
        [a] a = Conv (x, w1, b1) [ra] ra = Relu (a)
        [d] d = Conv <group = 16, pads = [1,1,1,1]> (ra, w2, b2) [rd] rd = Relu (d)
        [e] e = Conv (rd, w3, b3) [re] re = Relu (e)
        [p] p = GlobalAveragePool (re) [f] f = Flatten (p) [g] y = Gemm (f, w4, b4) }"""
    s, t, u = (2.0 ** np.random.default_rng(i).integers(-6, 7, 16) for i in range(3))
    s, t, u = (v.astype(np.float32)[:, None, None, None] for v in (s, t, u))
    return build(
        text,
        w1=conv(16, 4, 1) * s, b1=np.float32(0.1) * weights(16) * s[:, 0, 0, 0],
        w2=conv(16, 1, 3) * t / s, b2=np.float32(0.1) * weights(16) * t[:, 0, 0, 0],
        w3=conv(16, 16, 1) / t.reshape(1, 16, 1, 1) * u, b3=np.float32(0.1) * weights(16) * u[:, 0, 0, 0],
        w4=weights(16, 5) / u.reshape(16, 1), b4=weights(5),
    )  # fmt: skip


def test_depthwise_triples() -> None:
    result = done(depthwise(), pairs=3)
    assert result.spread_before > 1000 and result.spread_after < 30
    assert set(result.names) == {"a", "d", "e", "g"}


def test_equalization_wins_back_what_one_scale_for_all_costs() -> None:
    """Nagel et al., table 1: with spread channels, per-tensor int8 is noise until the channels are even."""
    model = depthwise()
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(0, 1, (2, 4, 8, 8)).astype(np.float32)} for _ in range(20)]
    ratios = {}
    for name, options in {"plain": {}, "equalized": {"equalize": True}}.items():
        result = onnxq.quantize(
            model,
            calibration=feeds,
            preset="w8a8",
            per_channel=False,
            threads=1,
            benchmark=False,
            force=True,
            **options,
        )
        assert result.model is not None
        expected = np.concatenate([run(model.SerializeToString(), feed)["y"] for feed in feeds])
        got = np.concatenate([run(result.model.SerializeToString(), feed)["y"] for feed in feeds])
        ratios[name] = sqnr_db(expected, got)
    assert ratios["plain"] < 12 and ratios["equalized"] > 25


def test_flattened_images_and_transposed_gemm() -> None:
    text = """g (float[N,3,4,4] x) => (float[N,5] y) {
        [a] a = Conv (x, w1, b1) [r] r = Relu (a) [f] f = Flatten (r) [b] y = Gemm <transB = 1> (f, w2, b2) }"""
    s = SPREAD[:8].astype(np.float32)
    model = build(
        text, w1=conv(8, 3, 1) * s[:, None, None, None], b1=weights(8) * s, w2=weights(5, 128) / np.repeat(s, 16),
        b2=weights(5),
    )  # fmt: skip
    assert done(model, pairs=1).spread_after < 6


def test_grouped_and_transposed_convolutions() -> None:
    text = """g (float[N,4,6,6] x) => (float[N,6,12,12] y) {
        [a] a = ConvTranspose <group = 2, strides = [2,2]> (x, w1, b1) [r] r = Relu (a)
        [b] y = Conv <group = 2> (r, w2, b2) }"""
    s = SPREAD[:8].astype(np.float32)
    model = build(
        text,
        w1=weights(4, 4, 2, 2) * s.reshape(2, 1, 4, 1, 1).repeat(2, 1).reshape(4, 4, 1, 1), b1=weights(8) * s,
        w2=weights(6, 4, 1, 1) / s.reshape(2, 1, 4, 1, 1).repeat(3, 1).reshape(6, 4, 1, 1), b2=weights(6),
    )  # fmt: skip
    assert done(model, pairs=1).spread_after < 6


def test_channels_of_zeros_stay() -> None:
    arrays = spread_convs()
    arrays["w1"][2], arrays["b1"][2] = 0.0, 0.7
    arrays["w2"][:, 5] = 0.0
    result = done(build(two("[r] c = Relu (a)"), **arrays), pairs=1)
    assert np.isfinite(result.spread_after)


def test_high_biases_are_absorbed_where_nothing_pads() -> None:
    text = """g (float[N,4,6,6] x) => (float[N,5,6,6] y) {
        [a] a = Conv (x, w1, b1) [r] r = Relu (a) [b] y = Conv (r, w2, b2) }"""
    bias = np.array([9, 0, 7, -1], np.float32)
    model = build(text, w1=conv(4, 4, 1) * np.float32(0.3), b1=bias, w2=conv(5, 4, 1), b2=weights(5))
    copy, _ = prepared(model)
    before = model.SerializeToString()
    feeds = [feeds_for(session(before), 2, seed) for seed in range(3)]
    inner = onnx.ModelProto.FromString(before)
    inner.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, None))
    found = np.concatenate([run(inner.SerializeToString(), feed)["a"] for feed in feeds])
    changed = absorb_biases(copy, lambda names: {"a": found.min(axis=(0, 2, 3))} if "a" in names else {})
    assert changed == ["a", "b"]
    for feed in feeds:
        same(run(before, feed), run(io.to_bytes(copy), feed), 1e-5)
    new = next(n for n in copy.graph if n.name == "a").inputs[2].const_value.numpy()
    assert (new[[0, 2]] < bias[[0, 2]] - 1).all() and (new[[1, 3]] == bias[[1, 3]]).all()
    padded = build(text.replace("Conv (r", "Conv <pads = [1,1,1,1]> (r").replace("5,6,6", "5,8,8"),
                   w1=conv(4, 4, 1), b1=bias, w2=conv(5, 4, 1), b2=weights(5))  # fmt: skip
    assert absorb_biases(prepared(padded)[0], lambda names: pytest.fail(str(list(names))) if list(names) else {}) == []


def test_pairs_are_found_in_order() -> None:
    copy, _ = prepared(depthwise())
    found = find_pairs(copy.graph)
    assert [(p.first.node.name, [n.name for n in p.seconds]) for p in found] == [
        ("a", ["d"]),
        ("d", ["e"]),
        ("e", ["g"]),
    ]


def test_a_bias_behind_weights_that_are_nearly_zero_does_not_become_the_range() -> None:
    initializers = spread_convs() | {"w1": conv(8, 3, 3), "w2": conv(4, 8, 3)}
    initializers["w1"][5] *= np.float32(1e-25)
    initializers["b1"] = np.full(8, 0.5, np.float32)
    copy, _ = prepared(build(two("[r] c = Relu (a)", out="c"), **initializers))
    equalize(copy)
    biases = [value.const_value.numpy() for node in copy.graph for value in node.inputs[2:] if value is not None]
    assert max(float(np.abs(bias).max()) for bias in biases) < 4.1
