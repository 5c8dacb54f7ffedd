"""Channels of activations are evened out in the weights around them; the float function stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.algorithms.channels.even_channels import Evened, SampleExtremes
from onnxq.core.error_measures import sqnr_db
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.passes import even_out as passes
from onnxq.passes.channel_factors import channel_factors
from onnxq.passes.even_out import even_out, rounded
from onnxq.runtime.sampled_rows import sample_channels
from tests.graph.build import build, feeds_for, prepared, run, same, session, weights

Array = np.ndarray

SPREAD = 2.0 ** np.random.default_rng(3).uniform(-5, 5, 16).astype(np.float32)
"""How much larger than usual the channels between the layers are."""


class Feeds(list[dict[str, Array]]):
    """Samples, as much of a reader as sampling needs."""

    def count_feeds(self) -> int:
        return len(self)


def layer(out: int, inner: int, kernel: int = 1, seed: int = 0, *, by: Array | None = None) -> Array:
    """A weight whose output channels are as large as ``by`` says."""
    weight = weights(out, inner, kernel, kernel, seed=seed) * np.float32((inner * kernel * kernel) ** -0.5)
    return weight if by is None else weight * by[:out, None, None, None]


def arrays(channels: int = 8, group: int = 1) -> dict[str, Array]:
    """Two layers; the second one takes back what the first one's channels have too much."""
    s = SPREAD[:channels]
    w2 = layer(channels if group > 1 else 4, channels // group, 3, 1)
    w2 = w2 / s[:, None, None, None] if group > 1 else w2 / s[None, :, None, None]
    return {"w1": layer(channels, 3, 3, by=s), "b1": weights(channels) * s, "w2": w2}


def network(between: str, read: str = "c", *, group: int = 1, more: str = "", size: str = "D") -> str:
    return (
        f"g (float[N,3,8,8] x) => (float[N,{size},H,W] y) {{ [a] a = Conv <pads = [1,1,1,1]> (x, w1, b1) {between} "
        f"[b] y = Conv <pads = [1,1,1,1], group = {group}> ({read}, w2) {more} }}"
    )


def even(model: Model, seed: int = 0) -> list[float]:
    """Even a model out as if all layers rounded; the exponents that were chosen."""
    factors = channel_factors(model.graph)
    factors = rounded(factors, {node.name or "" for node, _, _ in factors.read})
    axes = {value.name or "": factors.axes[value.name or ""] for _, value, _ in factors.rounding}
    if not axes:
        return []
    opened = session(io.to_bytes(model))
    feeds = Feeds(feeds_for(opened, 2, seed + each) for each in range(6))
    seen = sample_channels(model, axes, feeds, rows=400, feeds=6)  # type: ignore[arg-type]
    return [evened.alpha or 0.0 for evened in even_out(model, factors, seen).values()]


def check(proto: onnx.ModelProto, *, groups: int, settled: bool = True) -> Model:
    """Even out a prepared copy; what it computes stays, and a second time finds nothing to do."""
    model, _ = prepared(proto)
    found = even(model)
    assert len(found) == groups
    before, content = proto.SerializeToString(), io.to_bytes(model)
    for seed in (0, 1):
        feeds = feeds_for(session(before), 2, seed)
        same(run(before, feeds), run(content, feeds), 1e-5)
    if settled:
        assert even(model) == []
        assert io.to_bytes(model) == content
    return model


def constant(model: Model, name: str, position: int = 1) -> Array:
    node = next(node for node in model.graph if node.name == name)
    value = node.inputs[position]
    assert value is not None and value.const_value is not None
    return np.asarray(value.const_value.numpy())


@pytest.mark.parametrize(
    ("between", "read"),
    [
        ("", "a"),
        ("[r] c = Relu (a)", "c"),
        ("[r] c = LeakyRelu <alpha = 0.1> (a)", "c"),
        ("[r] c = PRelu (a, slope)", "c"),
        ("[r] c = Clip (a, zero)", "c"),
        ("[r] r = Relu (a) [p] c = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)", "c"),
        ("[r] r = Relu (a) [p] c = AveragePool <kernel_shape = [3,3]> (r)", "c"),
        ("[p] c = Pad (a, pads)", "c"),
        ('[p] c = Resize <mode = "linear"> (a, , scales)', "c"),
        ("[r] r = Relu (a) [m] c = Mul (r, r2) [g] g1 = GlobalAveragePool (r) [s] r2 = Sigmoid (g1)", "c"),
        ("[r] r = Relu (a) [d] d = Conv <group = 8> (r, wd) [q] c = Relu (d)", "c"),
    ],
    ids=["none", "relu", "leaky", "prelu", "clip", "maxpool", "averagepool", "pad", "resize", "gate", "depthwise"],
)
def test_what_keeps_channels_apart_lets_factors_pass(between: str, read: str) -> None:
    more: dict[str, Array] = {}
    if "slope" in between:
        more["slope"] = weights(8, 1, 1, low=0.05, high=0.4)
    if "zero" in between:
        more["zero"] = np.array(0, np.float32)
    if "pads" in between and "Pad (" in between:
        more["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    if "scales" in between:
        more["scales"] = np.array([1, 1, 2, 2], np.float32)
    if "wd" in between:
        more["wd"] = layer(8, 1)
    if "Sigmoid" in between:  # nodes in order, and a gate in [0, 1] that nothing scales
        between = "[r] r = Relu (a) [g] g1 = GlobalAveragePool (a) [s] r2 = Sigmoid (g1) [m] c = Mul (r, r2)"
        check(build(network(between, read), **arrays()), groups=0)  # Sigmoid reads the channels themselves
        between = "[r] r = Relu (a) [k] k = Conv (x, wk) [g] g1 = GlobalAveragePool (k) [s] r2 = Sigmoid (g1) "
        between += "[m] c = Mul (r, r2)"
        more["wk"] = layer(8, 3, 1, 5)
    check(build(network(between, read), **arrays(), **more), groups=2 if "wd" in between else 1)


@pytest.mark.parametrize(
    ("between", "read"),
    [
        ("[r] c = Sigmoid (a)", "c"),
        ("[r] c = HardSwish (a)", "c"),
        ("[r] c = Clip (a, zero, six)", "c"),
        ("[r] c = Add (a, one)", "c"),
        ("[s] s = Sigmoid (a) [m] c = Mul (a, s)", "c"),
        ("[s] c = Softmax <axis = 1> (a)", "c"),
        ("[m] c = Mul (a, a)", "c"),
    ],
    ids=["sigmoid", "hardswish", "relu6", "constant", "swish", "softmax", "square"],
)
def test_what_does_not_commute_keeps_its_channels(between: str, read: str) -> None:
    more = {}
    if "six" in between:
        more = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    if "one" in between:
        more = {"one": weights(8, 8, 8)}
    check(build(network(between, read), opset=17, **arrays(), **more), groups=0)


def test_outputs_of_the_graph_keep_their_channels() -> None:
    model = build(network("").replace("(float[N,D,H,W] y)", "(float[N,D,H,W] y, float[N,8,8,8] a)").replace(
        "(c, w2)", "(a, w2)"), **arrays())  # fmt: skip
    check(model, groups=0)


def test_what_is_added_has_one_factor() -> None:
    text = (
        "g (float[N,3,8,8] x) => (float[N,D,H,W] y) { [a] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r] r = Relu (a) "
        "[k] k = Conv (r, wk) [s] s = Add (r, k) [q] q = Relu (s) [b] y = Conv (q, w2) }"
    )
    s = SPREAD[:8]
    wk = layer(8, 8, 1, 4, by=s) / s[None, :, None, None]
    # a layer that reads and writes the same factors has other weights afterwards, for which others may be better still
    model = check(build(text, **arrays(), wk=wk), groups=1, settled=False)
    given = arrays()
    factor = given["b1"] / constant(model, "a", 2)
    assert factor.max() / factor.min() > 4
    np.testing.assert_allclose(constant(model, "b"), given["w2"] * factor[None, :, None, None], rtol=1e-4)
    unlike = wk * factor[None, :, None, None] / factor[:, None, None, None]
    np.testing.assert_allclose(constant(model, "k"), unlike, rtol=1e-4)


def test_joined_channels_have_those_of_their_parts() -> None:
    text = (
        "g (float[N,3,8,8] x) => (float[N,D,H,W] y) { [a] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r] r = Relu (a) "
        "[k] k = Conv (x, wk) [t] t = Sigmoid (k) [j] j = Concat <axis = 1> (r, t) [b] y = Conv (j, w3) }"
    )
    s = np.concatenate([SPREAD[:8], np.ones(4, np.float32)])
    given = arrays()
    model = check(build(text, **given, wk=layer(4, 3, 1, 4), w3=layer(4, 12, 1, 6) / s[None, :, None, None]), groups=1)
    np.testing.assert_array_equal(constant(model, "b")[:, 8:], (layer(4, 12, 1, 6) / s[None, :, None, None])[:, 8:])


def test_flattened_images_repeat_their_channels() -> None:
    text = (
        "g (float[N,3,4,4] x) => (float[N,5] y) { [a] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r] r = Relu (a) "
        "[f] f = Flatten (r) [b] y = Gemm <transB = 1> (f, w3) }"
    )
    w3 = weights(5, 128) / np.repeat(SPREAD[:8], 16)
    check(build(text, **{k: v for k, v in arrays().items() if k != "w2"}, w3=w3), groups=1)


def test_weights_that_others_read_stay() -> None:
    given = arrays()
    text = network("[r] c = Relu (a)", more="[o] z = ReduceMax <keepdims = 0> (w2)").replace(
        "(float[N,D,H,W] y)", "(float[N,D,H,W] y, float z)"
    )
    model, _ = prepared(build(text, **given))
    assert even(model) == []


def test_what_a_subgraph_reads_keeps_its_channels() -> None:
    text = (
        "g (float[N,3,8,8] x, bool p) => (float[N,D,H,W] y, float z) { [a] a = Conv <pads = [1,1,1,1]> (x, w1, b1) "
        "[r] c = Relu (a) [b] y = Conv <pads = [1,1,1,1]> (c, w2) "
        "[i] z = If (p) <then_branch = t () => (float u) { [m] u = ReduceMax <keepdims = 0> (c) }, "
        "else_branch = e () => (float v) { [n] v = ReduceMin <keepdims = 0> (c) }> }"
    )
    check(build(text, **arrays()), groups=0)


def test_one_sample_and_silent_channels_do_no_harm() -> None:
    given = arrays()
    given["w1"][2], given["b1"][2] = 0, 0
    model, _ = prepared(build(network("[r] c = Relu (a)"), **given))
    factors = channel_factors(model.graph)
    factors = rounded(factors, {"b"})
    rows = np.abs(np.random.default_rng(0).normal(0, 1, (50, 8))).astype(np.float32) * SPREAD[:8]
    rows[:, 2] = 0
    part = SampleExtremes(rows, rows.min(axis=0), rows.max(axis=0))
    (found,) = even_out(model, factors, {"c": (part, part)}).values()
    assert np.isfinite(found.scales).all() and found.scales.max() / found.scales.min() < 2.0**17
    assert found.error < found.plain


@pytest.mark.parametrize("group", [1, 8])
def test_static_integers_are_more_exact(group: int) -> None:
    proto = build(network("[r] c = Relu (a)", group=group), **arrays(8, group))
    feeds = [feeds_for(session(proto.SerializeToString()), 1, seed) for seed in range(12)]
    options = {"preset": "w8a8", "calibration": feeds, "include": ["a", "b"], "benchmark": False, "force": True}
    with_it = onnxq.quantize(proto, **options)  # type: ignore[arg-type]
    without = onnxq.quantize(proto, per_channel=False, **options)  # type: ignore[arg-type]
    reference = [run(proto.SerializeToString(), feed)["y"] for feed in feeds]
    errors = []
    for result in (with_it, without):
        content = result.model.SerializeToString()
        got = np.concatenate([run(content, feed)["y"] for feed in feeds])
        errors.append(sqnr_db(np.concatenate(reference), got))
    assert errors[0] > 25
    assert errors[0] > errors[1] + 6


@pytest.mark.parametrize("preset", ["w8a8", "auto"])
def test_an_estimate_that_is_wrong_is_taken_back_and_said(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Scales that spread channels instead look good to each layer here, and cost the whole model its accuracy."""
    proto = build(
        network("[r] c = Relu (a)"), **{**arrays(), "w1": layer(8, 3, 3), "b1": weights(8), "w2": layer(4, 8, 3)}
    )
    feeds = [feeds_for(session(proto.SerializeToString()), 1, seed) for seed in range(12)]
    options = {"preset": preset, "calibration": feeds, "include": ["a", "b"], "benchmark": False, "force": True}
    with monkeypatch.context() as patch:
        patch.setattr(passes, "search_even", lambda values, count: Evened(1.0, SPREAD[:count].astype(float), 0.1, 1.0))
        spread = onnxq.quantize(proto, cache=False, threads=1, **options)  # type: ignore[arg-type]
    plain = onnxq.quantize(proto, cache=False, threads=1, **options)  # type: ignore[arg-type]
    assert any("channels of activations were not evened out: held-out samples have" in w for w in spread.warnings)
    assert not any("evened out" in warning for warning in plain.warnings)
    assert spread.sqnr_db == pytest.approx(plain.sqnr_db, abs=1e-6)
