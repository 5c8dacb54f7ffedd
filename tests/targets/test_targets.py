"""Targets: their operators have rows and costs, and what they promise about saturation holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.affine import quantize_tensor
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, TensorSpec
from onnxq.errors import TargetError
from onnxq.graph.reading.ops import OPS, Kind
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import FORMATS
from onnxq.targets import TARGETS, Target, target_named
from tests.graph.build import build, weights
from tests.plan.planning import plan_of

every = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 16, 6, 6)).astype(np.float32)} for i in range(5)]
TWO = "g (float[N,16,6,6] x) => (float[N,16,6,6] y) { [a] c = Conv (x, w) [r] d = Relu (c) [b] y = Conv (d, w) }"


@every
def test_every_integer_operator_is_in_the_operator_table(target: Target) -> None:
    assert target.integer_ops <= set(OPS)


@every
def test_every_integer_operator_has_costs(target: Target) -> None:
    weighted = {op_type for op_type in target.integer_ops if OPS[op_type].kind is Kind.WEIGHTED}
    clamps = {op_type for op_type in target.integer_ops if OPS[op_type].kind is Kind.CLAMPING}
    assert target.integer_ops - weighted <= set(target.costs.float_ops)
    assert target.integer_ops - weighted - clamps <= set(target.costs.int_ops)
    if target.integer_ops:  # "Transpose rows" too
        assert {name.split()[0] for name in target.costs.int_ops} <= target.integer_ops


@every
def test_what_a_target_is_made_of(target: Target) -> None:
    assert TARGETS[target.name] is target
    if target.name in ("cpu", "cpu-avx2"):
        assert (target.activation, target.weight) == (QType.UINT8, QType.INT8)  # the one fast pair of types
    assert 2 <= target.weight_bits <= target.weight.bits
    assert set(target.formats) <= set(FORMATS) and target.formats
    assert target.min_opset >= 13  # per-axis DequantizeLinear
    assert "\n" not in target.description


def test_the_public_lists() -> None:
    assert [row["name"] for row in onnxq.targets()] == list(TARGETS)
    assert [row["name"] for row in onnxq.presets()] == list(PRESETS)
    assert onnxq.targets()[1]["weight"] == "int8, 7 bits used"


def test_an_unknown_target_names_what_is_near() -> None:
    with pytest.raises(TargetError, match="--target: no target 'cpu-avx'; did you mean 'cpu-avx2'. There are cpu"):
        target_named("cpu-avx")
    with pytest.raises(TargetError, match="--target: no target 'npu'; did you mean 'cpu'|There are cpu, cpu-avx2"):
        target_named("npu")


def test_two_products_of_the_safe_target_fit_sixteen_bits() -> None:
    def spec(target: Target) -> TensorSpec:
        bits = target.weight_bits if target.weight_bits < target.weight.bits else None
        return TensorSpec(target.weight, PerAxis(0), symmetric=True, narrow_range=True, grid_bits=bits)

    safe, plain = spec(TARGETS["cpu-avx2"]), spec(TARGETS["cpu"])
    assert (safe.qmin, safe.qmax) == (-63, 63)
    top = np.iinfo(np.int16).max
    assert top > 255 * 64 * 2  # what the documentation says; the grid uses one less
    assert 255 * max(-safe.qmin, safe.qmax) * 2 <= top < 255 * max(-plain.qmin, plain.qmax) * 2
    tensor = quantize_tensor(weights(8, 50, low=-3, high=3), safe)
    assert np.abs(tensor.values.astype(int)).max() == 63


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_of_the_safe_target_stay_within_seven_bits(form: str, per_channel: bool) -> None:
    result = onnxq.quantize(
        build(TWO, w=weights(16, 16, 1, 1)), calibration=FEEDS, preset="w8a8", target="cpu-avx2", format=form,
        per_channel=per_channel, include=["*"], benchmark=False,
    )  # fmt: skip
    assert result.model is not None and result.target == "cpu-avx2"
    (stored,) = [
        array for t in result.model.graph.initializer if (array := onnx.numpy_helper.to_array(t)).dtype == np.int8
        and array.ndim == 4
    ]  # fmt: skip
    assert stored.min() >= -63 and stored.max() <= 63 and np.abs(stored).max() == 63
    assert result.sqnr_db is not None and result.sqnr_db > 25


def test_weights_that_are_only_stored_have_all_eight_bits() -> None:
    """They are computed with as float, where nothing saturates."""
    text = """g (float[N,16,6,6] x) => (float[N,16,8,8] y) {
        [on] c = Conv (x, w) [off] y = ConvTranspose (c, v) }"""
    planned = plan_of(build(text, w=weights(16, 16, 1, 1), v=weights(16, 16, 3, 3)), target="cpu-avx2")
    assert planned.actions == {"on": "integer", "off": "storage"}
    assert planned["on"].weights[1].bits == 7 and planned["off"].weights[1].bits == 8
