"""SignRound against its update done by hand, and learned integers against GPTQ and all that can be tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxq.algorithms.gptq import GPTQConfig, gptq
from onnxq.algorithms.learned.autoround import AutoRoundConfig, autoround, autoround_of_moment
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, TensorSpec
from onnxq.errors import CalibrationError, ModelError, RecipeError
from tests.algorithms.correlated import SPECS, Array, draw, moments, name, output_error

PAPER = AutoRoundConfig(rounds=0, damping=0.0)


def by_hand(weight: Array, hessian: Array, iterations: int, size: int, steps: int) -> list[Array]:
    """Ŵ of each iteration of algorithm 1 on an affine grid, element by element in float64."""
    rows, inputs = weight.shape
    blocks = range(0, inputs, size)
    low = np.array([[min(row[b : b + size].min(), 0.0) for b in blocks] for row in weight.astype(np.float64)])
    high = np.array([[max(row[b : b + size].max(), 0.0) for b in blocks] for row in weight.astype(np.float64)])
    v, alpha, beta = np.zeros((rows, inputs)), np.ones_like(high), np.ones_like(low)
    found = []
    for t in range(iterations + 1):
        real = np.zeros((rows, inputs))
        raw = np.zeros((rows, inputs))
        scale = ((high * alpha - low * beta) / steps).astype(np.float32).astype(np.float64)
        zero = np.clip(np.rint(-low * beta / scale), 0, steps)
        for i, j in itertools.product(range(rows), range(inputs)):
            s, z = scale[i, j // size], zero[i, j // size]
            raw[i, j] = np.rint(np.float32(weight[i, j] / np.float32(s)) + v[i, j]) + z
            real[i, j] = (min(max(raw[i, j], 0), steps) - z) * s
        found.append(real)
        gradient = 2.0 * (real - weight) @ hessian
        rate = (1.0 - t / iterations) / iterations
        by_low, by_high = np.zeros_like(low), np.zeros_like(high)
        for i, j in itertools.product(range(rows), range(inputs)):
            b = j // size
            s, z = scale[i, b], zero[i, b]
            inside = 0 <= raw[i, j] <= steps
            level = min(max(raw[i, j], 0), steps)
            # dŴ/ds and dŴ/dz with round(x) taken as x; s = (h − l) / n, z = −l / s
            ds = (level - z) - (weight[i, j] / s if inside else 0.0)
            dz = 0.0 if inside else -s
            l_now = low[i, b] * beta[i, b]
            z_of_s = l_now / s**2
            by_high[i, b] += gradient[i, j] * (ds + dz * z_of_s) / steps
            by_low[i, b] += gradient[i, j] * (-(ds + dz * z_of_s) / steps - dz / s)
            v[i, j] = min(max(v[i, j] - rate * np.sign(gradient[i, j] * s * inside), -0.5), 0.5)
        alpha = np.clip(alpha - rate * np.sign(by_high * high), 0.5, 1.0)
        beta = np.clip(beta - rate * np.sign(by_low * low), 0.5, 1.0)
    return found


def test_it_is_the_update_of_the_paper() -> None:
    weight, x = draw(3, out=4, inputs=24, samples=64)
    hessian = moments(x)
    hessian *= 24 / np.trace(hessian)
    spec = TensorSpec(QType.UINT2, PerBlock(1, 8))
    every = by_hand(weight, hessian, 12, 8, 3)
    errors = np.array([np.einsum("ri,ij,rj->r", real - weight, hessian, real - weight) for real in every])
    best = np.stack([every[i][row] for row, i in enumerate(errors.argmin(axis=0))])
    found = autoround(weight, hessian, spec, AutoRoundConfig(iterations=12, rounds=0, damping=0.0))
    np.testing.assert_allclose(dequantize(found.values, found.params), best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_learned_integers_beat_rounding_and_gptq_on_other_samples(spec: TensorSpec) -> None:
    weight, x = draw(5, samples=512)
    seen, unseen = x[:384], x[384:]
    config = AutoRoundConfig(iterations=40)
    found = autoround(weight, moments(seen), spec, config)
    assert output_error(weight, found, seen) <= 1.02 * output_error(weight, gptq(weight, moments(seen), spec), seen)
    assert output_error(weight, found, unseen) < 0.5 * output_error(weight, rtn(weight, spec), unseen)
    alone = autoround(weight, moments(seen), spec, AutoRoundConfig(iterations=100, rounds=0))
    assert output_error(weight, alone, unseen) < 0.9 * output_error(weight, rtn(weight, spec), unseen)
    assert found.values.min() >= spec.qmin and found.values.max() <= spec.qmax


def test_two_bits_lose_half_of_what_gptq_loses() -> None:
    spec = TensorSpec(QType.UINT2, PerBlock(1, 16))
    ratios = []
    for seed in range(3):
        weight, x = draw(seed, samples=512)
        error = output_error(weight, gptq(weight, moments(x), spec), x)
        ratios.append(
            output_error(weight, autoround(weight, moments(x), spec, AutoRoundConfig(iterations=40)), x) / error
        )
    assert np.mean(ratios) < 0.6


def test_no_single_integer_could_be_better() -> None:
    weight, x = draw(2, out=3, inputs=20, samples=200)
    hessian = moments(x)
    spec = TensorSpec(QType.UINT4, PerBlock(1, 8), grid_bits=3)
    found = autoround(weight, hessian, spec, AutoRoundConfig(iterations=20, rounds=30, damping=0.0))
    levels = found.values.astype(np.int64)

    def error(values: Array) -> float:
        e = dequantize(values.astype(found.values.dtype), found.params).astype(np.float64) - weight
        return float(np.einsum("ri,ij,rj->", e, hessian, e))

    least = error(levels)
    for i, j in itertools.product(range(3), range(20)):
        for level in range(spec.qmin, spec.qmax + 1):
            other = levels.copy()
            other[i, j] = level
            assert error(other) >= least * (1 - 1e-5)


def test_no_iterations_round_to_nearest() -> None:
    weight, x = draw(1)
    for spec in (TensorSpec(QType.UINT4, PerBlock(1, 16)), TensorSpec(QType.INT4, PerAxis(0), symmetric=True)):
        found = autoround(weight, moments(x), spec, AutoRoundConfig(iterations=0, rounds=0))
        assert np.array_equal(found.values, rtn(weight, spec).values)


def test_chance_is_taken_out_of_few_rows() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(8, 64)).astype(np.float32), rng.normal(size=(12, 64))
    spec = TensorSpec(QType.UINT4, PerBlock(1, 16))
    found = autoround_of_moment(weight, spec, (x.T @ x / 12).astype(np.float32), 12)
    plain = autoround(weight, x.T @ x, spec)
    fresh = rng.normal(size=(500, 64))
    assert output_error(weight, found, fresh) < output_error(weight, plain, fresh)


def test_dead_inputs_and_a_weight_of_zeros() -> None:
    weight, x = draw(4)
    x[:, 3], weight[0] = 0.0, 0.0
    spec = TensorSpec(QType.UINT2, PerBlock(1, 16))
    found = autoround(weight, moments(x), spec, AutoRoundConfig(iterations=20))
    real = dequantize(found.values, found.params)
    assert np.isfinite(real).all() and not real[0].any()
    assert np.isfinite(dequantize(*_pair(autoround(weight, np.zeros((72, 72)), spec)))).all()
    assert autoround(np.zeros((0, 8), np.float32), np.eye(8), spec).values.shape == (0, 8)


def _pair(found: object) -> tuple[Array, object]:
    return found.values, found.params  # type: ignore[attr-defined]


def test_wrong_arguments() -> None:
    weight, x = draw(1)
    spec = TensorSpec(QType.UINT4, PerBlock(1, 16))
    with pytest.raises(CalibrationError, match=r"autoround: a Hessian of shape \(3, 3\) does not fit"):
        autoround(weight, np.eye(3), spec)
    with pytest.raises(ModelError, match="autoround: the weight of shape"):
        autoround(np.full_like(weight, np.nan), moments(x), spec)
    with pytest.raises(RecipeError, match="do not lie along the rows"):
        autoround(weight, moments(x), TensorSpec(QType.UINT4, PerBlock(0, 8)))
    with pytest.raises(RecipeError, match="AutoRoundConfig: iterations -1"):
        AutoRoundConfig(iterations=-1)
    assert GPTQConfig().damping == AutoRoundConfig().damping
