"""GPTQ against optimal brain quantization done column by column, by its definition."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.algorithms import gptq as module
from onnxq.algorithms.gptq import GPTQConfig, cholesky_in_place, gptq, gptq_by_group
from onnxq.algorithms.grid import GridConfig, search_params
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize, params_for, scale_shape
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QParams, TensorSpec
from onnxq.errors import CalibrationError, RecipeError
from tests.algorithms.correlated import SPECS, draw, moments, name, output_error, weight_error

Array = npt.NDArray[Any]
Fault = Literal["none", "full inverse", "wrong columns", "no update"]

BLOCK_4 = TensorSpec(QType.INT4, PerBlock(1, 16), symmetric=True)


def brain_surgeon(weight: Array, hessian: Array, spec: TensorSpec, config: GPTQConfig, fault: Fault = "none") -> Array:
    """The dequantized weight, float64, by the rule of optimal brain quantization.

    Column by column: of the columns left, F, the inverse of H[F, F] itself says how the others make good for the error
    of the first. No Cholesky factor, no blocks; ``fault`` makes one of the mistakes the rule is mistaken for.
    """
    h = np.array(hessian, np.float64)
    mean = np.diagonal(h).mean()
    h[np.diag_indices_from(h)] += config.damping * mean
    inputs = weight.shape[1]
    order = np.argsort(-np.diagonal(hessian), kind="stable") if config.act_order else np.arange(inputs)
    size = spec.granularity.size if isinstance(spec.granularity, PerBlock) else inputs
    work, out = weight.astype(np.float64), np.zeros(weight.shape)
    static = config.act_order or not isinstance(spec.granularity, PerBlock)
    full = np.linalg.inv(h)
    inverses = [np.linalg.inv(h[np.ix_(order[step:], order[step:])]) for step in range(inputs)]
    importance = np.zeros(inputs)
    importance[order] = [1 / inverse[0, 0] for inverse in inverses]
    importance /= importance.max()
    whole = search_params(weight, spec, config.grid, importance)
    scale = zero_point = np.zeros(0)
    for step, column in enumerate(order):
        if static:
            block = column // size if isinstance(spec.granularity, PerBlock) else 0
            scale = whole.scale[:, block].astype(np.float64)
            zero_point = whole.zero_point[:, block].astype(np.float64)
        elif column % size == 0:
            found = search_params(
                work[:, column : column + size].astype(np.float32),
                spec,
                config.grid,
                importance[column : column + size],
            )
            scale, zero_point = found.scale[:, 0].astype(np.float64), found.zero_point[:, 0].astype(np.float64)
        level = np.clip(np.rint(work[:, column] / scale) + zero_point, spec.qmin, spec.qmax)
        out[:, column] = (level - zero_point) * scale
        left = order[step:]
        row = inverses[step][0] / inverses[step][0, 0]
        if fault == "full inverse":
            row = full[column, left] / full[column, column]
        elif fault == "wrong columns":
            row = np.roll(row, 1)
        elif fault == "no update":
            row = row * 0
        work[:, left[1:]] -= np.outer(work[:, column] - out[:, column], row[1:])
    return out


PLAIN = GPTQConfig(act_order=False, grid=None)
CONFIGS = [
    PLAIN,
    GPTQConfig(damping=0.1, act_order=False, grid=None),
    GPTQConfig(grid=None),
    GPTQConfig(act_order=False, grid=GridConfig(steps=5)),
    GPTQConfig(),
    GPTQConfig(grid=GridConfig(steps=5, asymmetric=True, power=2.4)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "damped", "act_order", "searched", "default", "asymmetric"])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_equals_the_direct_elimination(spec: TensorSpec, config: GPTQConfig) -> None:
    weight, x = draw(3)  # 72 inputs: blocks of 16, 32 and 128 are uneven
    result = gptq(weight, moments(x), spec, config)
    expected = brain_surgeon(weight, moments(x), spec, config)
    np.testing.assert_allclose(dequantize(result.values, result.params), expected, rtol=1e-6, atol=1e-6)
    assert result.params.scale.shape == scale_shape(weight.shape, spec.granularity)
    assert result.params.zero_point.dtype == result.values.dtype == spec.dtype.numpy


@pytest.mark.parametrize("size", [16, 40, 64])
def test_equals_the_direct_elimination_over_many_blocks(size: int) -> None:
    weight, x = draw(5, out=6, inputs=211, samples=600)
    spec = TensorSpec(QType.UINT4, PerBlock(1, size))
    result = gptq(weight, moments(x), spec, PLAIN)
    expected = brain_surgeon(weight, moments(x), spec, PLAIN)
    np.testing.assert_allclose(dequantize(result.values, result.params), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [PLAIN, GPTQConfig()])
def test_equals_the_direct_elimination_where_the_hessian_is_factored_in_many_blocks(
    config: GPTQConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 40)
    monkeypatch.setattr(module, "_SMALL", 16)
    weight, x = draw(5, out=6, inputs=211, samples=600)
    result = gptq(weight, moments(x), BLOCK_4, config)
    expected = brain_surgeon(weight, moments(x), BLOCK_4, config)
    np.testing.assert_allclose(dequantize(result.values, result.params), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 130, 512, 513, 1100])
def test_the_factor_is_lapack_s(size: int) -> None:
    x = np.random.default_rng(size).standard_normal((size + 3, size))
    matrix = x.T @ x
    found = matrix.copy()
    cholesky_in_place(found)
    expected = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(np.tril(found), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max(initial=0.0))


def test_what_is_given_is_not_changed() -> None:
    weight, x = draw(5)
    hessian, before = moments(x), weight.copy()
    kept = hessian.copy()
    gptq(weight, hessian, BLOCK_4)
    assert np.array_equal(hessian, kept)
    assert np.array_equal(weight, before)


@pytest.mark.parametrize("fault", ["full inverse", "wrong columns", "no update"])
@pytest.mark.parametrize("spec", SPECS[:3], ids=name)
def test_that_comparison_finds_a_wrong_update(fault: Fault, spec: TensorSpec) -> None:
    weight, x = draw(3)
    result = gptq(weight, moments(x), spec, PLAIN)
    wrong = brain_surgeon(weight, moments(x), spec, PLAIN, fault)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(dequantize(result.values, result.params), wrong, rtol=1e-6, atol=1e-6)
    assert output_error(weight, wrong, x) > output_error(weight, result, x)


@pytest.mark.parametrize(
    ("spec", "config"),
    [*((spec, PLAIN) for spec in SPECS[:5]), (SPECS[1], GPTQConfig())],
    ids=[*map(name, SPECS[:5]), "default"],
)
def test_on_correlated_inputs_the_weight_is_worse_and_the_output_better(spec: TensorSpec, config: GPTQConfig) -> None:
    both = 0
    for seed in range(30):
        weight, x = draw(100 + seed)
        solved, rounded = gptq(weight, moments(x), spec, config), rtn(weight, spec)
        both += weight_error(weight, solved) > weight_error(weight, rounded) and (
            output_error(weight, solved, x) < output_error(weight, rounded, x)
        )
    assert both >= 29


def test_order_and_searched_ranges_each_make_the_output_better_still() -> None:
    spec = TensorSpec(QType.INT4, PerAxis(0), symmetric=True)
    errors = []
    for seed in range(10):
        weight, x = draw(400 + seed)
        errors.append([output_error(weight, gptq(weight, moments(x), spec, CONFIGS[i]), x) for i in (0, 2, 3, 4)])
    plain, ordered, searched, both = np.array(errors).T
    assert np.median(ordered / plain) < 0.5
    assert np.median(searched / plain) < 0.9
    assert np.median(both / ordered) < 0.95


def test_the_factor_of_the_hessian_does_not_matter() -> None:
    weight, x = draw(1)
    first, second = gptq(weight, moments(x), BLOCK_4), gptq(weight, moments(x) * 0.125, BLOCK_4)
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.params.scale, second.params.scale)


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    weight, _ = draw(2)
    for config in CONFIGS[:3]:
        result, rounded = gptq(weight, np.eye(72) * 5, BLOCK_4, config), rtn(weight, BLOCK_4)
        assert np.array_equal(result.values, rounded.values)


def test_inputs_that_were_always_zero_are_rounded_to_nearest() -> None:
    weight, x = draw(4)
    x[:, [0, 17, 71]] = 0
    spec = TensorSpec(QType.UINT4, PerAxis(0))
    result = gptq(weight, moments(x), spec, GPTQConfig(grid=None))
    rounded = rtn(weight, spec)
    assert np.array_equal(result.values[:, [0, 17, 71]], rounded.values[:, [0, 17, 71]])
    assert output_error(weight, result, x) < output_error(weight, rounded, x)
    nothing = gptq(weight, np.zeros((72, 72)), spec, GPTQConfig(grid=None))
    assert np.array_equal(nothing.values, rounded.values)


def test_fewer_samples_than_inputs_need_only_damping() -> None:
    weight, x = draw(6, samples=20)
    result = gptq(weight, moments(x).astype(np.float32), BLOCK_4)
    assert output_error(weight, result, x) < output_error(weight, rtn(weight, BLOCK_4), x)


def test_a_weight_on_its_grid_is_kept() -> None:
    weight, x = draw(7)
    for spec in SPECS:
        on_grid = rtn(weight, spec)
        real = dequantize(on_grid.values, on_grid.params)
        again = gptq(real, moments(x), spec)
        np.testing.assert_allclose(dequantize(again.values, again.params), real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (1, 1), (1, 5), (5, 1)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    weight = np.ones(shape, np.float32)
    for spec in (BLOCK_4, TensorSpec(QType.UINT4, PerTensor())):
        result = gptq(weight, np.eye(shape[1]), spec)
        assert result.values.shape == shape
        np.testing.assert_allclose(dequantize(result.values, result.params), weight, rtol=1e-6)


def test_what_cannot_be_solved_is_said() -> None:
    weight, x = draw(8)
    indefinite = moments(x)
    indefinite[0, 1] = indefinite[1, 0] = 10 * indefinite[0, 0]
    with pytest.raises(CalibrationError, match="72 inputs is not positive definite after damping of 0.01; raise"):
        gptq(weight, indefinite, BLOCK_4)
    with pytest.raises(CalibrationError, match=r"shape \(71, 71\) does not fit a weight with 72 inputs"):
        gptq(weight, np.eye(71), BLOCK_4)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        gptq(weight, np.full((72, 72), np.nan), BLOCK_4)
    with pytest.raises(CalibrationError, match="negative diagonal"):
        gptq(weight, -np.eye(72), BLOCK_4)
    with pytest.raises(RecipeError, match="do not lie along the rows"):
        gptq(weight, np.eye(72), TensorSpec(QType.INT4, PerAxis(1)))
    with pytest.raises(RecipeError, match="is no matrix"):
        gptq(weight[0], np.eye(72), BLOCK_4)
    with pytest.raises(RecipeError, match="outside 0 to 1"):
        GPTQConfig(damping=2.0)


def test_a_scale_is_found_for_each_row_of_the_grid() -> None:
    weight, x = draw(9)
    spec = TensorSpec(QType.INT8, PerAxis(0), symmetric=True)
    result = gptq(weight, moments(x), spec, PLAIN)
    assert np.array_equal(result.params.scale, params_for(weight, spec).scale)


GIVEN = [
    TensorSpec(QType.INT4, PerAxis(0), symmetric=True),
    TensorSpec(QType.UINT4, PerTensor()),
    TensorSpec(QType.UINT4, PerBlock(1, 16)),
]


@pytest.mark.parametrize("spec", GIVEN, ids=name)
def test_grids_that_are_given_are_kept(spec: TensorSpec) -> None:
    weight, x = draw(6)
    params = params_for(weight, spec)
    result = gptq(weight, moments(x), spec, GPTQConfig(), params)
    expected = brain_surgeon(weight, moments(x), spec, GPTQConfig(grid=None))
    assert result.params is params
    np.testing.assert_allclose(dequantize(result.values, params), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", GIVEN[:2], ids=name)
@pytest.mark.parametrize("inputs", [1, 9, 40])
def test_groups_at_once_are_each_the_direct_elimination(spec: TensorSpec, inputs: int) -> None:
    drawn = [draw(20 + group, out=3, inputs=max(inputs, 6), samples=64) for group in range(5)]
    weight = np.stack([pair[0][:, :inputs] for pair in drawn])
    hessian = np.stack([moments(pair[1][:, :inputs]) for pair in drawn])
    hessian[2] = 0.0  # nothing came in there
    flat = params_for(weight.reshape(-1, inputs), spec)
    scale, zero = (np.broadcast_to(a, (15, 1)).reshape(5, 3, 1) for a in (flat.scale, flat.zero_point))
    found = gptq_by_group(weight, hessian, QParams(spec, scale, zero))
    assert found.dtype == spec.dtype.numpy and found.shape == weight.shape
    for group in range(5):
        params = QParams(spec, scale[group], zero[group])
        one = gptq(weight[group], hessian[group], spec, GPTQConfig(grid=None), params)
        assert np.array_equal(found[group], one.values)


def test_a_group_whose_moments_are_no_numbers_is_refused() -> None:
    weight, hessian = np.ones((2, 1, 2), np.float32), np.stack([np.eye(2), np.full((2, 2), np.nan)])
    params = QParams(GIVEN[0], np.ones((2, 1, 1), np.float32), np.zeros((2, 1, 1), np.int8))
    with pytest.raises(CalibrationError, match="NaN or infinite entries"):
        gptq_by_group(weight, hessian, params)
