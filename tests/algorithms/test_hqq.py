"""Half-quadratic quantization against a slow solver of one group, and its promise never to be worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.algorithms.grid import GridConfig, search_params
from onnxq.algorithms.groups import split
from onnxq.algorithms.hqq import HQQConfig, _solvers, hqq
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize, params_for, quantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, QTensor, TensorSpec
from onnxq.errors import RecipeError
from tests.algorithms.correlated import SPECS, draw, name

Array = npt.NDArray[Any]
UINT4 = TensorSpec(QType.UINT4, PerBlock(1, 32))


def heavy(seed: int) -> Array:
    """A weight with the long tails that real ones have; 72 inputs, uneven for most blocks."""
    return np.asarray(np.random.default_rng(seed).standard_t(4, size=(24, 72)) * 0.03, np.float32)


def objective(weight: Array, real: Array, spec: TensorSpec, power: float = 0.7) -> Array:
    """‖W − Ŵ‖ₚᵖ of each group, float64."""
    error = np.abs(weight.astype(np.float64) - real)
    return np.asarray((split(error, spec.granularity) ** power).sum(axis=1))


def real(result: QTensor) -> Array:
    """The dequantized weight."""
    return dequantize(result.values, result.params).astype(np.float64)


def slow_zero_point(x: Array, scale: float, zero: float, spec: TensorSpec, config: HQQConfig) -> float:
    """The float zero point of one group, element by element, by the two steps of the paper."""
    best, least, beta = zero, np.inf, config.beta
    for _ in range(config.iterations):
        levels = [min(max(float(np.rint(v / scale + zero)), spec.qmin), spec.qmax) for v in x]
        errors = [v / scale - (level - zero) for v, level in zip(x, levels, strict=True)]
        loss = sum(abs(e) ** config.power for e in errors)
        if loss < least:
            best, least = zero, loss
        outliers = [np.sign(e) * max(abs(e) - abs(e) ** (config.power - 1) / beta, 0.0) if e else 0.0 for e in errors]
        parts = zip(x, levels, outliers, strict=True)
        zero = float(np.mean([level + outlier - v / scale for v, level, outlier in parts]))
        beta *= config.kappa
    return best


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.symmetric and s.bits < 8], ids=name)
def test_float_zero_points_are_those_of_the_slow_solver(spec: TensorSpec) -> None:
    weight, config = heavy(0), HQQConfig()
    start = params_for(weight, spec)
    ((_, solver),) = _solvers(weight, start, config)
    solver.solve_zero_point()  # before it is rounded
    zero_point = solver.zero_point.reshape(start.scale.shape)
    size = spec.granularity.size if isinstance(spec.granularity, PerBlock) else 72
    for row, block in [(0, 0), (7, zero_point.shape[1] - 1), (23, 0)]:
        x = weight[row, block * size : (block + 1) * size].astype(np.float64)
        scale, zero = float(start.scale[row, block]), float(start.zero_point[row, block])
        expected = slow_zero_point(x, scale, zero, spec, config)
        np.testing.assert_allclose(zero_point[row, block], expected, rtol=2e-3, atol=2e-3)
    found = real(hqq(weight, spec, config))
    before, after = objective(weight, real(rtn(weight, spec)), spec), objective(weight, found, spec)
    assert (after <= before * 1.0001).all()
    assert after.sum() < 0.995 * before.sum()


@pytest.mark.parametrize("config", [HQQConfig(), HQQConfig(grid=GridConfig(steps=6))])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_no_group_is_worse_than_rounding_to_nearest(spec: TensorSpec, config: HQQConfig) -> None:
    weight = heavy(1)
    start = search_params(weight, spec, config.grid)
    before = objective(weight, dequantize(quantize(weight, start), start), spec)
    result = hqq(weight, spec, config)
    after = objective(weight, real(result), spec)
    assert (after <= before * 1.0001).all()
    if spec.bits < 8:
        assert after.sum() < 0.99 * before.sum()
    assert result.params.zero_point.dtype == result.values.dtype == spec.dtype.numpy
    assert spec.mirrored or (result.params.scale > 0).all()
    assert np.array_equal(result.values, quantize(weight, result.params))
    if spec.symmetric:
        assert (result.params.zero_point.astype(int) == spec.midpoint).all()


def test_on_weights_with_outliers_the_squared_error_falls_too() -> None:
    ratios = []
    for seed in range(30):
        weight = heavy(300 + seed)
        ratios.append(
            np.mean((real(hqq(weight, UINT4)) - weight) ** 2) / np.mean((real(rtn(weight, UINT4)) - weight) ** 2)
        )
    assert np.median(ratios) < 1.0


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_size_of_the_weights_does_not_matter(spec: TensorSpec) -> None:
    weight = heavy(2)
    first, second = hqq(weight, spec), hqq(weight * np.float32(1024), spec)
    assert np.mean(first.values != second.values) < 0.01  # a logarithm rounds differently
    np.testing.assert_allclose(first.params.scale * 1024, second.params.scale, rtol=0.05)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = draw(3, out=40)
    whole = hqq(weight, UINT4)
    monkeypatch.setattr("onnxq.algorithms.groups.row_slabs.__defaults__", (72 * 7,))
    slabs = hqq(weight, UINT4)
    assert np.array_equal(whole.values, slabs.values)
    assert np.array_equal(whole.params.scale, slabs.params.scale)


def test_zeros_and_weights_on_the_grid_are_exact() -> None:
    for spec in SPECS:
        assert not real(hqq(np.zeros((4, 72), np.float32), spec)).any()
        on_grid = real(rtn(heavy(4), spec)).astype(np.float32)
        np.testing.assert_allclose(real(hqq(on_grid, spec)), on_grid, rtol=1e-5, atol=1e-6)
    assert hqq(np.zeros((0, 72), np.float32), UINT4).values.shape == (0, 72)


def test_what_cannot_be_asked_for_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"power 2.0"):
        HQQConfig(power=2.0)
    with pytest.raises(RecipeError, match="do not lie along the rows"):
        hqq(heavy(0), TensorSpec(QType.INT4, PerAxis(1)))
