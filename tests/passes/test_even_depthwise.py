"""Channels are evened out in front of depthwise convolutions: the same model, whose products are finer."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.channels.even_channels import SampleExtremes
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.graph.walk import all_nodes
from onnxq.passes.even_depthwise import cut_off_db, factors_of, is_depthwise, multiply_channels
from tests.graph.build import Array, build, run

CHANNELS, UNIT = 6, 256
DEPTHWISE = """g (float[1, 6, 12, 12] x) => (float[1, 12, 12, 12] y, float[1, 6, 12, 12] z) {
    [r] h = Relu (x) [d] y = Conv <group = 6, pads = [1, 1, 1, 1]> (h, w, b)
    [other] z = Conv <group = 6, pads = [1, 1, 1, 1]> (h, v) }"""


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(12, 1, 3, 3)).astype(np.float32),
        "b": rng.normal(size=12).astype(np.float32),
        "v": rng.normal(size=(6, 1, 3, 3)).astype(np.float32),
    }


def values(loud: float) -> Array:
    x = np.abs(np.random.default_rng(1).normal(size=(1, CHANNELS, 12, 12))).astype(np.float32)
    x[:, 0] *= loud
    return x


def seen(array: Array) -> SampleExtremes:
    rows = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
    return SampleExtremes(rows, rows.min(axis=0), rows.max(axis=0))


def loaded() -> Model:
    return io.load(build(DEPTHWISE, **arrays()))


def test_the_model_computes_the_same_and_other_readers_keep_what_they_read() -> None:
    model, x = loaded(), values(40.0)
    before = run(io.to_bytes(model), {"x": x})
    factors = factors_of(seen(x))
    assert multiply_channels(model, {"d": factors}) == ["d_evened"]
    after = run(io.to_bytes(model), {"x": x})
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after["z"], before["z"])
    nodes = {node.name: node for node in all_nodes(model.graph)}
    assert nodes["d"].inputs[0] is nodes["d_evened"].outputs[0]
    assert nodes["other"].inputs[0] is nodes["r"].outputs[0]


def test_factors_are_whole_numbers_that_bring_channels_to_the_largest() -> None:
    x = values(40.0)
    factors = factors_of(seen(x))
    assert factors[0] == 1.0
    assert np.array_equal(factors, np.floor(factors))
    peaks = factors * np.abs(x).max(axis=(0, 2, 3))
    assert (peaks > 0.9 * peaks.max()).all() and (peaks <= peaks.max()).all()
    assert factors_of(seen(0.0 * x)).tolist() == [1.0] * CHANNELS
    x[:, 1] = 0.0
    assert factors_of(seen(x))[1] == 255.0


@pytest.mark.parametrize("loud", [1.0, 10.0, 300.0])
def test_what_is_cut_off_is_estimated_as_a_kernel_cuts_it_off(loud: float) -> None:
    """A kernel in integers: sums of products of 16-bit and 8-bit numbers, of which what is below 256 is dropped."""
    x = values(loud)
    x[:, 1:] /= np.float32(np.sqrt(loud))
    model = loaded()
    node = next(node for node in all_nodes(model.graph) if node.name == "d")
    exact = run(io.to_bytes(model), {"x": x})["y"]
    w = arrays()["w"].astype(np.float64)
    step, steps = x.max() / 65535.0, np.abs(w).reshape(12, -1).max(axis=1) / 127.0
    integers = np.pad(np.rint(x.astype(np.float64) / step), ((0, 0), (0, 0), (1, 1), (1, 1)))
    cut, signal = 0.0, float(np.square(exact.astype(np.float64)).mean())
    for o in range(12):
        weight = np.rint(w[o, 0] / steps[o])
        windows = np.lib.stride_tricks.sliding_window_view(integers[0, o // 2], (3, 3))
        total = (windows * weight).sum(axis=(2, 3))
        cut += float(np.square((total - np.floor(total / UNIT) * UNIT) * step * steps[o]).mean()) / 12
    measured = 10 * np.log10(signal / cut)
    assert cut_off_db(node, 8, UNIT, seen(x), seen(exact)) == pytest.approx(measured, abs=1.5)


def test_a_finer_input_is_cut_off_less() -> None:
    """The weights of the small channels are large in return."""
    given, x = arrays(), values(300.0)
    given["w"][2:] *= 300.0
    model = io.load(build(DEPTHWISE, **given))
    node = next(node for node in all_nodes(model.graph) if node.name == "d")
    exact = run(io.to_bytes(model), {"x": x})["y"]
    before = cut_off_db(node, 8, UNIT, seen(x), seen(exact))
    factors = factors_of(seen(x))
    multiply_channels(model, {"d": factors})
    after = cut_off_db(node, 8, UNIT, seen(x * factors.reshape(1, -1, 1, 1).astype(np.float32)), seen(exact))
    assert before < 50.0
    assert after > before + 30.0


def test_which_convolutions_are_depthwise() -> None:
    text = """g (float[1, 6, 8, 8] x) => (float[1, 6, 8, 8] y, float[1, 6, 8, 8] z) {
        [dense] h = Conv (x, w) [grouped] y = Conv <group = 3> (h, v) [depth] z = Conv <group = 6> (h, u) }"""
    ones = {"w": np.ones((6, 6, 1, 1), np.float32), "v": np.ones((6, 2, 1, 1), np.float32)}
    model = io.load(build(text, **ones, u=np.ones((6, 1, 1, 1), np.float32)))
    assert [node.name for node in all_nodes(model.graph) if is_depthwise(node)] == ["depth"]
