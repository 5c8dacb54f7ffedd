"""Values whose quiet samples an 8-bit grid would swallow: their nodes stay float, and nothing else does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.affine import params_from_range
from onnxq.core.dtypes import QType
from onnxq.core.error_measures import sqnr_db
from onnxq.core.spec import PerTensor, TensorSpec
from onnxq.plan.activations.low_sqnr import LEAST_SQNR_DB, low_sqnr_values
from onnxq.plan.decisions import Calibrated, Plan
from onnxq.recipe.recipe import FORMATS
from onnxq.stats.statistics import Statistics
from tests.graph.build import build, weights

SPEC = TensorSpec(QType.UINT8, PerTensor(), symmetric=False)
# A spectrum whose loudness differs from sample to sample, scaled back before the last layers read it.
LOUD = """g (float[N,64] x) => (float[N,32] y) { [first] s = MatMul (x, w0) [abs] a = Abs (s)
    [mean] m = ReduceMean <axes = [1], keepdims = 1> (a) [even] e = Div (a, m) [second] h = MatMul (e, w1)
    [act] r = Relu (h) [third] y = MatMul (r, w2) }"""


def model() -> onnx.ModelProto:
    return build(LOUD, w0=weights(64, 64), w1=weights(64, 64, seed=1) / 8, w2=weights(64, 32, seed=2) / 8)


def feeds(decades: float, count: int = 40) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    loudness = 10.0 ** np.linspace(-decades, 0, count)
    return [{"x": (generator.normal(size=(1, 64)) * factor).astype(np.float32)} for factor in loudness]


def found(arrays: list[np.ndarray], method: str = "minmax") -> dict[str, str]:
    statistics = Statistics()
    for array in arrays:
        statistics.update("v", array, len(array))
    return low_sqnr_values(Plan({}, {"v": Calibrated(SPEC, method)}), statistics, 99.9)


@pytest.mark.parametrize("ratio", [10.0, 30.0, 60.0, 100.0, 1000.0])
@pytest.mark.parametrize("relu", [False, True])
def test_the_estimate_is_the_sqnr_that_rounding_gives(ratio: float, relu: bool) -> None:
    generator = np.random.default_rng(1)
    arrays = [generator.normal(size=(1, 4000)) * (1.0 if i >= 4 else 1.0 / ratio) for i in range(20)]
    arrays = [np.maximum(array, 0) if relu else array for array in arrays]
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    params = params_from_range(low, high, SPEC)
    step = float(params.scale.reshape(()))
    true = sorted(sqnr_db(array, np.rint(array / step) * step) for array in arrays)[2]
    said = found([array.astype(np.float32) for array in arrays])
    if abs(true - LEAST_SQNR_DB) > 1.5:  # a bin is 0.75 dB wide
        assert bool(said) == (true < LEAST_SQNR_DB)
    if said:
        assert f"at 8 bits 10 % of samples have an SQNR of {max(true, 0):.0f} dB" in said["v"] or ratio > 30


def test_fewer_than_a_tenth_may_be_quiet_and_silence_does_not_count() -> None:
    loud = [np.random.default_rng(i).normal(size=(1, 100)).astype(np.float32) for i in range(37)]
    assert not found([*loud, *(array / 1000 for array in loud[:3])])
    assert found([*loud, *(array / 1000 for array in loud[:5])])
    assert not found([*loud, *(array * 0 for array in loud)])


def test_one_outlier_that_leaves_nothing_of_the_rest_counts_too() -> None:
    arrays = [np.random.default_rng(i).normal(size=(1, 1000)).astype(np.float32) for i in range(10)]
    assert not found(arrays)
    arrays[0][0, 0] = 1000.0
    assert found(arrays)
    assert not found(arrays, "percentile")  # which leaves it out of the range


@pytest.mark.parametrize("form", FORMATS)
def test_layers_that_read_what_differs_too_much_stay_float(form: str) -> None:
    options = {"preset": "w8a8", "format": form, "range": "minmax", "benchmark": False, "threads": 1}
    even = onnxq.quantize(model(), calibration=feeds(0.5), **options)
    assert even.coverage["MatMul"] == {"quantized": 3, "total": 3}
    assert even.plan.nodes["first"].action == "integer"
    wide = onnxq.quantize(model(), calibration=feeds(4.0), **options)
    assert [wide.plan.nodes[name].action for name in ("first", "second", "third")] == ["storage", "integer", "integer"]
    (reason,) = [reason for name, _, reason in wide.kept_float if name == "first"]
    assert reason.startswith(
        "value 'x' has too wide a dynamic range: at 8 bits 10 % of samples have an SQNR of 0 dB or less"
    )
    insisted = onnxq.quantize(model(), calibration=feeds(4.0), include=("*",), force=True, **options)
    assert insisted.plan.nodes["first"].action == "integer"
