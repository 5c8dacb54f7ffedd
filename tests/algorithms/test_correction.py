"""Rounding towards the float stream, against least squares and a column-by-column elimination on the samples."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.gptq import GPTQConfig, gptq
from onnxq.algorithms.grid import search_params
from onnxq.algorithms.learned import correction as module
from onnxq.algorithms.learned.correction import Streams, correction, refined
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, TensorSpec
from tests.algorithms.correlated import SPECS, Array, draw, moments, name

PLAIN = GPTQConfig(damping=1e-9, grid=None)


def streams(seed: int, samples: int = 600) -> tuple[Array, Array, Array]:
    """(weight, x, x̂): what layers before made of x is off by noise and by a part that x itself tells."""
    weight, x = draw(seed, samples=samples)
    rng = np.random.default_rng(seed + 100)
    inputs = x.shape[1]
    wrong = 0.05 * rng.normal(size=(inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    return weight, x, x @ wrong + 0.05 * x.std(axis=0) * rng.normal(size=x.shape)


def sums(x: Array, given: Array) -> Streams:
    return Streams(given.T @ given, (x - given).T @ given)


def error(weight: Array, real: Array, x: Array, given: Array) -> float:
    return float(((x @ weight.T.astype(np.float64) - given @ real.T.astype(np.float64)) ** 2).sum())


def by_elimination(weight: Array, x: Array, given: Array, spec: TensorSpec, fault: str = "") -> Array:
    """‖W·x − Ŵ·x̂‖² on the samples themselves, column by column: of those left, what least squares gives the first."""
    target = x @ weight.T.astype(np.float64)
    read = x if fault == "float inputs" else given
    start = np.linalg.lstsq(read, target, rcond=None)[0].T
    if fault == "float target":
        start = weight.astype(np.float64)
        target = given @ start.T
    order = np.argsort(-(read**2).sum(axis=0), kind="stable")
    params = search_params(start.astype(np.float32), spec, None)
    size = spec.granularity.size if isinstance(spec.granularity, PerBlock) else weight.shape[1]
    out = np.zeros(weight.shape)
    for step, column in enumerate(order):
        left = order[step:]
        wanted = np.linalg.lstsq(read[:, left], target, rcond=None)[0][0]
        block = column // size
        scale = params.scale[:, block].astype(np.float64)
        zero = params.zero_point[:, block].astype(np.float64)
        level = np.clip(np.rint(wanted / scale) + zero, spec.qmin, spec.qmax)
        out[:, column] = (level - zero) * scale
        target = target - np.outer(read[:, column], out[:, column])
    return out


GRIDS = [TensorSpec(QType.UINT4, PerBlock(1, 32)), TensorSpec(QType.INT4, PerBlock(1, 16), symmetric=True),
         TensorSpec(QType.UINT4, PerAxis(0), grid_bits=3)]  # fmt: skip


def rounded(monkeypatch: pytest.MonkeyPatch, spec: TensorSpec) -> tuple[Array, tuple[Array, Array, Array]]:
    monkeypatch.setattr(module, "DAMPINGS", (1e-9,))
    weight, x, given = streams(3)
    all_rows = sums(x, given)
    half = Streams(all_rows.moment / 2, all_rows.difference / 2)  # both halves alike: the whole of A is right for both
    found = correction([weight], half, half)
    tensor = gptq((weight + weight @ found).astype(np.float32), all_rows.moment, spec, PLAIN)
    return dequantize(tensor.values, tensor.params), (weight, x, given)


@pytest.mark.parametrize("spec", GRIDS, ids=name)
def test_it_is_the_elimination_on_the_samples(monkeypatch: pytest.MonkeyPatch, spec: TensorSpec) -> None:
    real, drawn = rounded(monkeypatch, spec)
    assert np.isclose(real, by_elimination(*drawn, spec), rtol=1e-3, atol=1e-5).mean() > 0.99


@pytest.mark.parametrize("fault", ["float inputs", "float target"])
def test_the_elimination_tells_the_streams_apart(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    real, drawn = rounded(monkeypatch, GRIDS[0])
    assert np.isclose(real, by_elimination(*drawn, GRIDS[0], fault), rtol=1e-3, atol=1e-5).mean() < 0.9


def test_the_share_is_the_best_on_rows_that_it_was_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DAMPINGS", (0.01,))
    weight, x, given = streams(5, samples=200)
    fitted, held = sums(x[:120], given[:120]), sums(x[120:], given[120:])
    found = correction([weight], fitted, held)
    every = fitted.with_rows_of(held)

    def whole(part: Streams) -> Array:
        damped = part.moment + 0.01 * np.diagonal(part.moment).mean() * np.eye(len(part.moment))
        return part.difference @ np.linalg.inv(damped)

    shares = np.linspace(0.0, 1.0, 201)
    errors = [error(weight, weight + weight @ (s * whole(fitted)), x[120:], given[120:]) for s in shares]
    best = shares[int(np.argmin(errors))]
    assert 0.05 < best < 0.99
    np.testing.assert_allclose(found, best * whole(every), atol=0.01 * np.abs(whole(every)).max())


def test_nothing_is_corrected_where_it_does_not_hold_on_other_rows() -> None:
    weight, x, given = streams(7)
    fitted, held = sums(x[:300], given[:300]), sums(given[300:], x[300:])
    opposite = Streams(held.moment, -fitted.difference)
    assert not correction([weight], fitted, opposite).any()
    assert not correction([weight], fitted, None).any()
    assert not correction([weight], sums(x, x), sums(x, x)).any()


def test_several_layers_that_read_one_value_share_a_correction() -> None:
    weight, x, given = streams(9)
    fitted, held = sums(x[:400], given[:400]), sums(x[400:], given[400:])
    found = correction([weight[:10], weight[10:]], fitted, held)
    np.testing.assert_allclose(found, correction([weight], fitted, held), rtol=1e-4, atol=1e-6)
    real = weight + weight @ found
    assert error(weight, real, x, given) < 0.8 * error(weight, weight, x, given)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_refining_makes_no_row_worse(spec: TensorSpec) -> None:
    weight, x = draw(11)
    hessian = moments(x)
    start = gptq(weight, hessian, spec)
    found = refined(weight, start, hessian, len(x))
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(len(hessian))

    def rows(tensor: object) -> Array:
        off = dequantize(tensor.values, tensor.params).astype(np.float64) - weight  # type: ignore[attr-defined]
        return np.einsum("ri,ij,rj->r", off, damped, off)

    before, after = rows(start), rows(found)
    whole = spec.granularity.__class__.__name__ == "PerTensor"
    assert after.sum() <= before.sum() * 1.0001 if whole else (after <= before * 1.001 + 1e-6).all()


@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_single_precision_corrects_as_well(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    weight, x, given = streams(13)
    x, given = x * np.sqrt(size), given * np.sqrt(size)
    fitted, held = sums(x[:400], given[:400]), sums(x[400:], given[400:])
    exact = correction([weight], fitted, held)
    monkeypatch.setattr(module, "_EXACT", 0)
    found = correction([weight], fitted, held)
    real, single = (error(weight, weight + weight @ part, x, given) for part in (exact, found))
    assert single == pytest.approx(real, rel=1e-3)
