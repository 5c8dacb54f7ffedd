"""Models that onnx's converter cannot raise: quantized as far as their operator set goes, or a reason in one line."""

from __future__ import annotations

import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from tests.graph.build import build, session, weights

IR_VERSIONS = {8: 4, 9: 4, 10: 5, 11: 6, 12: 7}


def net(opset: int) -> onnx.ModelProto:
    """onnxruntime runs its LayerNormalization in any operator set; onnx knows it from 17 on."""
    text = """g (float[2,64] x) => (float[2,64] y) {
        a = MatMul (x, w) l = LayerNormalization (a, s, s) y = MatMul (l, w) }"""
    return build(text, opset=opset, ir=IR_VERSIONS[opset], s=weights(64), w=weights(64, 64))


def quantized(opset: int, preset: str, target: str = "cpu") -> onnxq.QuantizeResult:
    samples = [{"x": weights(2, 64, seed=i)} for i in range(8)]
    return onnxq.quantize(net(opset), calibration=samples, preset=preset, target=target, include=["*"], benchmark=False)


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
@pytest.mark.parametrize("opset", [10, 12])
def test_weights_have_one_scale_where_operators_take_no_axis(opset: int, target: str) -> None:
    result = quantized(opset, "w8a8", target)
    assert result.model is not None
    session(result.model.SerializeToString())
    assert result.sqnr_db is not None and result.sqnr_db > 25


@pytest.mark.parametrize(
    ("opset", "preset", "target", "said"),
    [
        (9, "w8a8", "tensorrt", "operator set 9, from which the model cannot be raised, has no QuantizeLinear"),
        (8, "w8a8", "qnn", "operator set 8, from which the model cannot be raised, has no QuantizeLinear"),
        (11, "w4a4", "cpu", "needs operator set 12, and the model cannot be raised from 11"),
        (12, "bf16", "cpu", "bfloat16: needs operator set 13, and the model cannot be raised from 12"),
    ],
)
def test_what_the_operator_set_lacks_is_said(opset: int, preset: str, target: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        quantized(opset, preset, target)
