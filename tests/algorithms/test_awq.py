"""AWQ's scales and clips against their definition on samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.algorithms.awq import AWQConfig, awq_clip, awq_scales, output_loss, scale_for
from onnxq.algorithms.grid import GridConfig, quantize_range
from onnxq.algorithms.groups import split
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize, params_for, params_from_range, quantize, reduce_range
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError
from tests.algorithms.correlated import SPECS, draw, moments, name, output_error

Array = npt.NDArray[Any]
UINT4 = TensorSpec(QType.UINT4, PerBlock(1, 32))


def scaled_real(weight: Array, scales: Array, spec: TensorSpec) -> Array:
    """Q(W·s)/s."""
    scaled = (weight * scales).astype(np.float32)
    params = params_for(scaled, spec)
    return np.asarray(dequantize(quantize(scaled, params), params) / scales)


def outliers(seed: int, **sizes: int) -> tuple[Array, Array]:
    """A weight, and inputs of which a few are far larger."""
    weight, x = draw(seed, **sizes)
    x[:, 3::17] *= 20
    return weight, x


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_loss_is_the_squared_error_on_the_samples(spec: TensorSpec) -> None:
    weight, x = draw(0)
    scales = np.linspace(0.5, 2, 72).astype(np.float32)
    scaled = weight * scales
    loss = output_loss(scaled, params_for(scaled, spec), moments(x).astype(np.float32), 1 / scales)
    expected = 2 * np.sum((x @ (scaled_real(weight, scales, spec) - weight).T) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_best_exponent_is_found(spec: TensorSpec) -> None:
    weight, x = outliers(1)
    magnitude = np.abs(x).mean(0)
    config = AWQConfig(steps=8)
    found = awq_scales([weight], moments(x), magnitude, spec, config)
    losses = []
    for step in range(8):
        scales = magnitude ** (step / 8)
        scales = scales / np.sqrt(scales.max() * scales.min())
        losses.append(output_error(weight, scaled_real(weight, scales.astype(np.float32), spec), x))
    loss = output_error(weight, scaled_real(weight, found, spec), x)
    assert loss <= min(losses) * 1.001


def test_scales_are_normalised_as_in_the_paper() -> None:
    magnitude = np.array([0.1, 1.0, 25.0, 0.0])
    for exponent in (0.0, 0.3, 0.95):
        scales = scale_for(magnitude, exponent)
        np.testing.assert_allclose(scales.max() * scales.min(), 1, rtol=1e-6)
        np.testing.assert_allclose(scales[2] / scales[0], 250**exponent, rtol=1e-6)
        np.testing.assert_allclose(scales[3], scales[1], rtol=1e-6)  # never seen: the median
    assert (scale_for(magnitude, 0.0) == 1).all()
    assert (scale_for(np.zeros(3), 0.5) == 1).all()


def test_on_inputs_with_outliers_it_is_never_worse_and_mostly_much_better() -> None:
    ratios = []
    for seed in range(30):
        weight, x = outliers(200 + seed)
        scales = awq_scales([weight], moments(x), np.abs(x).mean(0), UINT4)
        before = output_error(weight, rtn(weight, UINT4), x)
        ratios.append(output_error(weight, scaled_real(weight, scales, UINT4), x) / before)
    assert max(ratios) <= 1.0001
    assert np.median(ratios) < 0.7


def test_layers_that_share_an_input_share_the_scales() -> None:
    weight, x = outliers(2)
    other, _ = draw(3, out=9)
    magnitude = np.abs(x).mean(0)
    together = awq_scales([weight, other * 3], moments(x), magnitude, UINT4)
    stacked = awq_scales([np.concatenate([weight, other * 3])], moments(x), magnitude, UINT4)
    np.testing.assert_array_equal(together, stacked)


def test_the_factors_of_the_statistics_do_not_matter() -> None:
    weight, x = outliers(4)
    magnitude = np.abs(x).mean(0)
    first = awq_scales([weight], moments(x), magnitude, UINT4)
    second = awq_scales([weight], moments(x) * 2.0**100, magnitude * 2.0**-20, UINT4)
    np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_clips_have_the_smallest_output_error_of_each_group(spec: TensorSpec) -> None:
    weight, x = outliers(5)
    config = AWQConfig(clip=GridConfig(steps=6, smallest=0.4))
    low, high = awq_clip(weight, moments(x), spec, config)
    full_low, full_high = reduce_range(weight, spec.granularity)
    tried = []
    for ratio in [1.0, *config.clip.ratios()]:
        params = params_from_range(full_low * np.float32(ratio), full_high * np.float32(ratio), spec)
        error = dequantize(quantize(weight, params), params).astype(np.float64) - weight
        tried.append(group_error(error, x, spec))
    params = params_from_range(low, high, spec)
    found = group_error(dequantize(quantize(weight, params), params).astype(np.float64) - weight, x, spec)
    np.testing.assert_allclose(found, np.min(tried, axis=0), rtol=1e-3)


def group_error(error: Array, x: Array, spec: TensorSpec) -> Array:
    """Squared output error of each group, its own inputs alone, from the samples."""
    size = spec.granularity.size if isinstance(spec.granularity, PerBlock) else 72
    columns = range(0, 72, size)
    cut = [np.sum((x[:, c : c + size] @ error[:, c : c + size].T) ** 2, axis=0) for c in columns]
    both = np.stack(cut, axis=1)
    return both.sum(keepdims=True) if isinstance(spec.granularity, PerTensor) else both


def test_clips_by_magnitude_weigh_inputs_by_their_squares() -> None:
    weight, x = outliers(6)
    magnitude = np.abs(x).mean(0)
    spec = TensorSpec(QType.INT4, PerBlock(1, 32), symmetric=True)
    ranges = awq_clip(weight, magnitude, spec), reduce_range(weight, spec.granularity)
    errors = []
    for low, high in ranges:
        result = quantize_range(weight, low, high, spec)
        error = dequantize(result.values, result.params).astype(np.float64) - weight
        errors.append((split(error * magnitude, spec.granularity) ** 2).sum(1))
    assert (errors[0] <= errors[1] * 1.0001).all()
    assert errors[0].sum() < 0.98 * errors[1].sum()


def test_what_does_not_fit_is_said() -> None:
    weight, x = draw(7)
    h, magnitude = moments(x), np.abs(x).mean(0)
    with pytest.raises(RecipeError, match="no weight was given"):
        awq_scales([], h, magnitude, UINT4)
    with pytest.raises(RecipeError, match="72 and 70 inputs do not share an input"):
        awq_scales([weight, weight[:, :70]], h, magnitude, UINT4)
    with pytest.raises(CalibrationError, match="Hessian of shape"):
        awq_scales([weight], h[:5], magnitude, UINT4)
    with pytest.raises(CalibrationError, match="magnitudes hold NaN or infinite"):
        awq_scales([weight], h, magnitude * np.inf, UINT4)
    with pytest.raises(CalibrationError, match=r"give shape \(72,\)"):
        awq_clip(weight, magnitude[:3], UINT4)
    with pytest.raises(RecipeError, match="do not lie along the rows"):
        awq_scales([weight], h, magnitude, TensorSpec(QType.INT4, PerAxis(1)))
    with pytest.raises(RecipeError, match="steps 0"):
        AWQConfig(steps=0)
