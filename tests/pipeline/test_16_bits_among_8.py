"""16-bit values among those of 8, for engines of integers alone: their second grids, and kernels that need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from tests.graph.build import Array, build, weights
from tests.pipeline.test_targets_written import made


@pytest.fixture
def encoder(root: Path) -> tuple[Path, list[dict[str, Array]], list[str]]:
    """A transformer with a mask that is unsqueezed in front of its layers, samples with padding, and its sizes."""
    with np.load(root / "models" / "text_encoder.test.npz") as data:
        samples = [{name: data[name][i : i + 1] for name in ("input_ids", "attention_mask")} for i in range(12)]
    sizes = [f"{name}:{axis}={size}" for name, ids in samples[0].items() for axis, size in enumerate(ids.shape)]
    return root / "models" / "text_encoder.onnx", samples, sizes


def grid(model: onnx.ModelProto, ending: str) -> tuple[float, float]:
    """The range of the one QuantizeLinear whose name has this ending."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (node,) = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.name.endswith(ending)]
    scale, zero = (constants[name] for name in node.input[1:])
    ends = np.iinfo(zero.dtype)
    return (ends.min - int(zero)) * float(scale), (ends.max - int(zero)) * float(scale)


def test_a_mask_that_is_moved_before_it_is_widened_keeps_its_range(
    encoder: tuple[Path, list[dict[str, Array]], list[str]],
) -> None:
    """Calibration leaves padding out of the statistics, and with it all that the mask is for."""
    model, samples, sizes = encoder
    options = {"target": "qnn", "preset": "w8a8", "calibration": samples, "fix_dims": sizes, "benchmark": False}
    result = onnxq.quantize(onnx.load(model), **options)
    assert result.model is not None
    low, high = grid(result.model, "unsqueeze_1_QuantizeLinear_Converted_QuantizeLinear")
    assert low == pytest.approx(-256, rel=0.01) and abs(high) < 0.01
    assert result.sqnr_db is not None and result.sqnr_db > 30


def test_what_was_cut_off_on_8_bits_is_not_given_room_on_16() -> None:
    """The second grid of a value ends where the first one does."""
    text = "g (float[1, 64] x) => (float[1, 64] y) { [a] h = MatMul (x, w) k = Abs (h) [b] y = Sqrt (k) }"
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_t(2, (1, 64)).astype(np.float32)} for _ in range(20)]
    recipe = onnxq.Recipe(target="qnn", preset="w8a8", rules=(onnxq.Rule("b", preset="w8a16"),))
    found = made(build(text, w=weights(64, 64)), "qnn", None, recipe=recipe, calibration=samples)
    narrow, wide = grid(found.model, "k_QuantizeLinear"), grid(found.model, "k_QuantizeLinear_Converted_QuantizeLinear")
    assert wide == pytest.approx(narrow, rel=0.02)


def test_norms_have_16_bits_on_htp_unless_a_rule_says_8() -> None:
    text = """g (float[1, 8, 16] x) => (float[1, 8, 16] y) {
        [a] h = MatMul (x, w) [n] k = LayerNormalization <axis = -1> (h, one, none) [b] y = MatMul (k, v) }"""
    layers = {
        "w": weights(16, 16),
        "v": weights(16, 16, seed=1),
        "one": weights(16, seed=2),
        "none": weights(16, seed=3),
    }
    rng = np.random.default_rng(0)
    samples = [{"x": rng.normal(size=(1, 8, 16)).astype(np.float32)} for _ in range(5)]
    found = made(build(text, **layers), "qnn", calibration=samples)
    assert "16-bit activations: LayerNormalization of 8 bits" in found.result.plan.nodes["n"].reason
    assert not found.result.plan.nodes["a"].reason
    asked = onnxq.Recipe(target="qnn", preset="w8a8", rules=(onnxq.Rule("n", preset="w8a8"),))
    narrow = made(build(text, **layers), "qnn", None, recipe=asked, calibration=samples)
    assert not narrow.result.plan.conversions
    assert not made(build(text, **layers), "openvino", calibration=samples).result.plan.conversions


@pytest.mark.qnn
def test_the_simulator_computes_a_transformer_as_the_cpu_does(
    encoder: tuple[Path, list[dict[str, Array]], list[str]], tmp_path: Path
) -> None:
    model, samples, sizes = encoder
    options = {"target": "qnn", "preset": "w8a8", "calibration": samples, "fix_dims": sizes, "benchmark": False}
    engine = onnxq.quantize(model, tmp_path / "q.onnx", **options).engine
    assert engine is not None and engine["refused"] == []
    assert engine["sqnr_db"] > engine["sqnr_db_on_cpu"] - 1.5
