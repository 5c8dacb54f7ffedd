"""Models that bring their own Q and DQ nodes: their scales are kept, and what they lack is added."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from tests.graph.build import build, run, weights

SCALES = np.random.default_rng(4).uniform(0.005, 0.01, 48).astype(np.float32)
FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 32, 8, 8)).astype(np.float32)} for i in range(5)]

QAT = """g (float[N,32,8,8] x) => (float[N,48,8,8] y) {
    [qx] a = QuantizeLinear (x, sx, zx) [dx] b = DequantizeLinear (a, sx, zx)
    [qw] c = QuantizeLinear <axis = 0> (w, sw, zw) [dw] d = DequantizeLinear <axis = 0> (c, sw, zw)
    [conv] e = Conv (b, d, bias) [act] f = Relu (e)
    [qf] g1 = QuantizeLinear (f, sf, zf) [df] h = DequantizeLinear (g1, sf, zf)
    [tail] y = Conv (h, w2) }"""


def qat(text: str = QAT) -> onnx.ModelProto:
    """As quantization-aware training exports it: float weights behind Q and DQ; the last layer was left float."""
    constants = {
        "sx": np.float32(0.025), "zx": np.uint8(120), "sw": SCALES, "zw": np.zeros(48, np.int8),
        "sf": np.float32(0.011), "zf": np.uint8(0), "w": weights(48, 32, 1, 1, low=-0.6, high=0.6),
        "bias": weights(48), "w2": weights(48, 48, 1, 1),
    }  # fmt: skip
    used = {name: np.asarray(array) for name, array in constants.items() if name in text}
    return build(text, **used)


def scales(model: onnx.ModelProto) -> dict[str, list[bytes]]:
    """Of each kind of node, the bytes of scale and zero point."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}
    found: dict[str, list[bytes]] = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found.setdefault(node.name, []).extend(arrays[name] for name in node.input[1:])
    return found


def test_scales_are_kept_weights_become_integers_and_nothing_is_calibrated() -> None:
    proto = qat()
    result = onnxq.quantize(proto, calibration=FEEDS, preset="w8a8", benchmark=False)
    assert "calibrate" not in result.seconds
    model = result.model
    assert model is not None
    before, after = scales(proto), scales(model)
    assert "qw" not in after  # the weight is stored as what it gave
    assert {name: after[name] for name in ("qx", "dx", "qf", "df")} == {n: before[n] for n in ("qx", "dx", "qf", "df")}
    assert before["dw"] in after.values()
    large = Counter(tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 1000)
    assert large == {onnx.TensorProto.INT8: 2}
    for feed in FEEDS:
        got, expected = run(model.SerializeToString(), feed), run(proto.SerializeToString(), feed)
        assert np.abs(got["y"] - expected["y"]).max() < 0.02 * np.abs(expected["y"]).max()


def test_what_was_quantized_gives_the_same_numbers_but_for_the_rounding_of_the_bias() -> None:
    text = QAT.replace("[tail] y = Conv (h, w2)", "[out] y = Identity (h)")
    result = onnxq.quantize(qat(text), calibration=FEEDS, preset="w8a8", benchmark=False)
    assert result.plan.counts("integer") == 1 and not result.plan.counts("present", "storage")
    assert result.model is not None
    step = 0.011
    for feed in FEEDS[:2]:
        expected = run(qat(text).SerializeToString(), feed)["y"]
        apart = np.abs(run(result.model.SerializeToString(), feed)["y"] - expected)
        assert apart.max() < 1.01 * step and np.mean(apart > 0.01 * step) < 0.01
    assert result.sqnr_db is not None and result.sqnr_db > 40
    assert result.trained == {
        "kept": {"activations": 2, "weights": 1}, "given": {"activations": 2, "weights": 1},
        "added": {"activations": [], "biases": 1}, "refused": {},
    }  # fmt: skip


def test_trained_layers_run_on_integers_and_what_was_left_float_stays_so() -> None:
    result = onnxq.quantize(qat(), calibration=FEEDS, preset="w8a8", benchmark=False)
    assert {name: node.action for name, node in result.plan.nodes.items()} == {
        "conv": "integer", "act": "folded", "tail": "storage",
    }  # fmt: skip
    reason = "its weight was not quantized in training; its weight is stored as int8"
    assert result.kept_float == [("tail", "Conv", reason)]
    assert result.coverage["Conv"] == {"quantized": 2, "total": 2}


def test_what_was_left_float_is_quantized_where_the_user_insists() -> None:
    tanh = QAT.replace("y = Conv (h, w2)", "t = Tanh (h) [tail] y = Conv (t, w2)")
    for text, calibrated in ((tanh, ["t", "y"]), (QAT, ["y"])):
        proto = qat(text.replace("[tail] t", "[tanh] t"))
        result = onnxq.quantize(proto, calibration=FEEDS, preset="w8a8", benchmark=False, include=["tail"])
        assert result.plan.nodes["tail"].action == "integer"
        assert list(result.plan.calibrated) == calibrated  # what the last layer reads has its scale from training
        assert result.model is not None and result.sqnr_db is not None and result.sqnr_db > 30
        kept = scales(result.model)
        assert all(kept[name] == found for name, found in scales(proto).items() if name not in ("qw", "dw"))


def test_the_file_shrinks_and_needs_no_data(tmp_path: Path) -> None:
    path = tmp_path / "qat.onnx"
    onnx.save(qat(), path)
    result = onnxq.quantize(path, benchmark=False)
    assert result.preset == "w8a8" and result.plan.nodes["conv"].action == "integer"
    assert result.output is not None and result.output.stat().st_size == result.size_after
    assert result.size_after < 0.6 * result.size_before


def test_a_model_that_is_quantized_already_is_an_error() -> None:
    done = onnxq.quantize(
        build("g (float[N,32,8,8] x) => (float[N,48,8,8] y) { y = Conv (x, w) }", w=weights(48, 32, 1, 1)),
        calibration=FEEDS, preset="w8a8", benchmark=False,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="the model is quantized already .7 nodes. and the rest stays float"):
        onnxq.quantize(done.model, calibration=FEEDS, preset="w8a8", benchmark=False)


def test_a_model_of_integer_operators_is_an_error_too() -> None:
    done = onnxq.quantize(
        build("g (float[N,32,8,8] x) => (float[N,48,8,8] y) { y = Conv (x, w) }", w=weights(48, 32, 1, 1)),
        calibration=FEEDS, preset="w8a8", benchmark=False, format="qoperator",
    )  # fmt: skip
    with pytest.raises(RecipeError, match="the model is quantized already .3 nodes. and the rest stays float"):
        onnxq.quantize(done.model, calibration=FEEDS, preset="w8a8", benchmark=False)
