"""Learned rounding against every rounding there is, and against rounding to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxq.algorithms.adaround import AdaRoundConfig, _Problem, adaround
from onnxq.core.affine import dequantize, fake_quantize, params_for
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

Array = np.ndarray
QUICK = AdaRoundConfig(iterations=300)
SPECS = [
    TensorSpec(QType.INT4, PerAxis(0), symmetric=True),
    TensorSpec(QType.UINT4, PerAxis(0)),
    TensorSpec(QType.INT8, PerTensor(), symmetric=True, narrow_range=True, grid_bits=4),
    TensorSpec(QType.UINT4, PerBlock(1, 5)),
    TensorSpec(QType.INT2, PerAxis(0)),
]


def drawn(seed: int, out: int, inputs: int, rows: int = 400) -> tuple[Array, Array]:
    """A weight and correlated inputs, (rows, inputs)."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, 1, (inputs, inputs)) / np.sqrt(inputs)
    samples = rng.normal(0, 1, (rows, inputs)) @ (mixing + 0.3) + rng.normal(0, 0.3, inputs)
    return rng.normal(0, 1, (out, inputs)).astype(np.float32), samples


def error(weight: Array, real: Array, samples: Array, inputs: Array | None = None) -> float:
    given = samples if inputs is None else inputs
    return float(np.square(samples @ weight.T.astype(np.float64) - given @ real.T.astype(np.float64)).mean())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.dtype.value}-{type(spec.granularity).__name__}")
def test_better_than_nearest_on_correlated_inputs(spec: TensorSpec) -> None:
    for seed in range(5):
        weight, samples = drawn(seed, 24, 33)
        moment = samples.T @ samples / len(samples)
        nearest = error(weight, fake_quantize(weight, params_for(weight, spec)), samples)
        found = adaround(weight, moment, spec, QUICK)
        learned = error(weight, dequantize(found.values, found.params), samples)
        assert learned < 0.7 * nearest
        assert found.values.dtype == spec.dtype.numpy
        whole = found.values.astype(int)
        assert spec.qmin <= whole.min() and whole.max() <= spec.qmax


def test_close_to_the_best_of_all_roundings() -> None:
    spec = TensorSpec(QType.INT4, PerAxis(0), symmetric=True)
    ratios = []
    for seed in range(20):
        weight, samples = drawn(seed, 1, 8)
        moment = samples.T @ samples / len(samples)
        params = params_for(weight, spec)
        scale = float(params.scale.reshape(()))
        floor = np.clip(np.floor(weight / scale), -8, 6)
        best = min(
            error(weight, (floor + np.array(choice)) * scale, samples) for choice in itertools.product((0, 1), repeat=8)
        )
        found = adaround(weight, moment, spec, QUICK)
        learned = error(weight, dequantize(found.values, found.params), samples)
        assert learned >= best * (1 - 1e-4)
        ratios.append(learned / best)
    assert np.mean(np.array(ratios) < 1.02) >= 0.75 and max(ratios) < 4


def test_the_gradient_is_that_of_the_error() -> None:
    weight, samples = drawn(3, 4, 6)
    spec = TensorSpec(QType.UINT4, PerBlock(1, 4))
    problem = _Problem.of(weight, samples.T @ samples / len(samples), None, params_for(weight, spec))
    steps = np.random.default_rng(0).uniform(0, 1, weight.shape).astype(np.float32)
    gradient = problem.gradient(steps) * problem.scale**2
    for i, j in itertools.product(range(4), range(6)):
        up, down = steps.copy(), steps.copy()
        up[i, j] += 1e-2
        down[i, j] -= 1e-2
        slope = (problem.errors(up)[i] - problem.errors(down)[i]) / 2e-2 / 2.0
        assert gradient[i, j] == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_distillation_makes_good_for_errors_of_the_inputs() -> None:
    """Targets from clean inputs, learned on noisy ones: closer to the targets than learning on clean inputs alone."""
    spec = TensorSpec(QType.INT4, PerAxis(0), symmetric=True)
    gains = []
    for seed in range(8):
        weight, clean = drawn(seed, 16, 24)
        rng = np.random.default_rng(seed)
        noisy = np.rint(clean * 1.5) / 1.5 * rng.uniform(0.85, 1.0, 24)
        alone = adaround(weight, clean.T @ clean, spec, QUICK)
        taught = adaround(weight, noisy.T @ noisy, spec, QUICK, cross=clean.T @ noisy)
        gains.append(
            error(weight, dequantize(taught.values, taught.params), clean, noisy)
            / error(weight, dequantize(alone.values, alone.params), clean, noisy)
        )
    assert np.mean(gains) < 0.9 and max(gains) < 1.0


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0)])
def test_learned_scales_are_no_worse(granularity: PerTensor | PerAxis) -> None:
    spec = TensorSpec(QType.INT4, granularity, symmetric=True, narrow_range=True)
    for seed in range(4):
        weight, samples = drawn(seed, 16, 24)
        moment = samples.T @ samples
        fixed = adaround(weight, moment, spec, QUICK)
        fitted = adaround(weight, moment, spec, AdaRoundConfig(iterations=300, learn_scale=True))
        assert np.array_equal(fixed.values, fitted.values)
        before, after = (error(weight, dequantize(t.values, t.params), samples) for t in (fixed, fitted))
        assert after <= before * (1 + 1e-5)


def test_inputs_that_are_always_zero_and_no_inputs_at_all() -> None:
    weight, samples = drawn(0, 4, 6)
    samples[:, 2] = 0.0
    spec = TensorSpec(QType.INT4, PerAxis(0), symmetric=True)
    for moment in (samples.T @ samples, np.zeros((6, 6))):
        found = adaround(weight, moment, spec, QUICK)
        assert np.isfinite(dequantize(found.values, found.params)).all()
    same = fake_quantize(weight, params_for(weight, spec))
    assert np.array_equal(dequantize(found.values, found.params), same)


def test_what_does_not_fit_is_refused() -> None:
    weight, _ = drawn(0, 4, 6)
    spec = TensorSpec(QType.INT4, PerAxis(0), symmetric=True)
    with pytest.raises(CalibrationError, match=r"the moment of shape \(5, 5\) does not fit 6 inputs"):
        adaround(weight, np.eye(5), spec, QUICK)
    with pytest.raises(CalibrationError, match="is not finite"):
        adaround(weight, np.full((6, 6), np.nan), spec, QUICK)
    with pytest.raises(RecipeError, match="is no matrix"):
        adaround(weight[0], np.eye(6), spec, QUICK)
    with pytest.raises(RecipeError, match="have to be positive"):
        AdaRoundConfig(iterations=0)
