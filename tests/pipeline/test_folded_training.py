"""Exports of quantization-aware training whose weights were rounded and left float: their grids are found again."""

from __future__ import annotations

import numpy as np
import onnx

from onnxq.graph.trained.folded_grids import grid_under, on_grids
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.targets import target_named
from tests.graph.build import Array, build, run, weights
from tests.pipeline.test_trained_models import FEEDS, RNG, apart, grid, integers, quantized, steps

TF2ONNX = """g (float[N,8,8,8] x) => (float[N,10] y) {
    q0 = QuantizeLinear (x, sx, zx) d0 = DequantizeLinear (q0, sx, zx)
    t = Transpose <perm = [0,3,1,2]> (d0)
    [conv1] c1 = Conv <pads = [0,0,1,1], strides = [2,2]> (t, w1, b1) [relu1] r1 = Relu (c1)
    q1 = QuantizeLinear <axis = 2> (r1, sr, zr) d1 = DequantizeLinear <axis = 2> (q1, sr, zr)
    [pool] p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (d1)
    [conv2] c2 = Conv (p, w2, b2) q2 = QuantizeLinear <axis = 2> (c2, sc, zc)
    d2 = DequantizeLinear <axis = 2> (q2, sc, zc)
    [add] a = Add (p, d2) q3 = QuantizeLinear <axis = 2> (a, sa, za) d3 = DequantizeLinear <axis = 2> (q3, sa, za)
    [mean] g = GlobalAveragePool (d3) s = Squeeze <axes = [2,3]> (g)
    q4 = QuantizeLinear <axis = 1> (s, sm, zr) d4 = DequantizeLinear <axis = 1> (q4, sm, zr)
    [fc] m = MatMul (d4, w3) [bias] y = Add (m, b3) }"""


def tf2onnx(**changed: Array) -> onnx.ModelProto:
    """As tf2onnx 1.17 writes a Keras model in opset 13: what fakes the quantization of weights is computed."""
    per_channel = (integers(16, 8, 3, 3) * steps(16)[:, None, None, None]).astype(np.float32)
    folded = integers(16, 16, 1, 1) * np.float32(0.002) * RNG.uniform(0.3, 3, 16)[:, None, None, None]
    given = grid("x", 0.03, 120, np.uint8) | grid("r", 0.02, 0, np.uint8) | grid("c", 0.04, 128, np.uint8)
    given |= grid("a", 0.05, 90, np.uint8) | {"sm": np.asarray(np.float32(0.03))}
    given |= {"w1": per_channel, "b1": weights(16), "w2": folded.astype(np.float32), "b2": weights(16)}
    given |= {"w3": (integers(16, 10) * np.float32(0.003)).astype(np.float32), "b3": weights(10)}
    return build(TF2ONNX.replace("<axes = [2,3]> (g)", "(g, both)"), both=np.array([2, 3]), **given | changed)


def test_weights_whose_fake_quantization_was_computed_are_found_on_their_grids() -> None:
    proto = tf2onnx()
    result = quantized(proto)
    assert result.trained is not None
    assert result.trained["kept"] == {"activations": 5, "weights": 3} == result.trained["given"]
    assert result.trained["added"]["biases"] == 3
    assert {n.name: n.action for n in result.plan.nodes.values() if "conv" in n.name} == {
        "conv1": "integer", "conv2": "integer",
    }  # fmt: skip
    assert result.model is not None
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    scales = [arrays[n.input[1]] for n in result.model.graph.node if n.op_type == "DequantizeLinear"]
    assert any(s.size == 16 for s in scales), "each channel of a convolution has its own"
    assert np.abs(apart(result, proto)).max() < 0.03 * np.abs(run(proto.SerializeToString(), FEEDS[0])["y"]).max()


def test_layers_behind_quantized_values_whose_weights_lie_on_no_grid_were_meant_to_stay_float() -> None:
    proto = tf2onnx(w1=weights(16, 8, 3, 3), w2=weights(16, 16, 1, 1))
    assert on_grids(load_and_prepare(proto, target_named("cpu"), Clock(None)).model) == {}
    assert quantized(proto).trained is None


def test_the_grid_under_a_weight() -> None:
    for axis in (0, 1):
        values = integers(6, 40)
        scale = steps(6).reshape(-1, 1)
        weight = values * scale
        if axis == 1:
            values, weight = values.T, weight.T
        found = grid_under(weight.astype(np.float32), axis)
        assert found is not None
        reals = found[0] * np.expand_dims(found[1].scale, 1 - axis)
        np.testing.assert_allclose(reals, weight, rtol=1e-5, atol=1e-9)
        assert found[1].axis == axis and (found[1].zero_point == 0).all()
    assert grid_under(weights(6, 40), 0) is None
    assert grid_under(np.zeros((6, 40), np.float32), 0) is None
    assert grid_under(integers(3, 4).astype(np.float32), 0) is None, "too few to tell"
    one = np.where(np.arange(6)[:, None] == 2, 0, integers(6, 40)).astype(np.float32)
    found = grid_under(one, 0)
    assert found is not None and (found[0] == one).all(), "a channel of zeros"
