"""Scales and integers in turn, against what every single change of a level would do, and against whole products."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.gptq import gptq
from onnxq.algorithms.learned import descent
from onnxq.algorithms.learned.descent import RoundedWeight, refine_integers
from onnxq.core.spec import PerTensor, QTensor, TensorSpec
from tests.algorithms.correlated import SPECS, Array, draw, moments, name


def begin(seed: int, spec: TensorSpec) -> tuple[RoundedWeight, Array]:
    weight, x = draw(seed)
    hessian = moments(x)
    hessian += 0.01 * np.diagonal(hessian).mean() * np.eye(len(hessian))
    start: QTensor = gptq(weight, hessian, spec)
    return RoundedWeight.of(start, weight.astype(np.float32)), (hessian / np.diagonal(hessian).max()).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_in_the_end_no_single_step_makes_a_row_better(spec: TensorSpec) -> None:
    start, hessian = begin(1, spec)
    found = refine_integers(start, hessian, 30)
    pull, _ = found.pull(hessian)
    scale = found.spread(found.params.scale)
    for step in (-1.0, 1.0):
        inside = (found.levels + step >= spec.qmin) & (found.levels + step <= spec.qmax)
        change = 2.0 * step * scale * pull + scale**2 * np.diagonal(hessian)
        room = 1e-3 * np.abs(scale**2 * np.diagonal(hessian))
        assert not (inside & (change < -room)).any()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_rows_are_taken_apart_and_put_together(spec: TensorSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    start, hessian = begin(2, spec)
    monkeypatch.setattr(descent, "_FEWEST_ROWS", 7)
    monkeypatch.setattr(descent, "_MOST_ROWS", 7)
    in_parts = refine_integers(start, hessian, 2)
    monkeypatch.setattr(descent, "_MOST_ROWS", 1 << 20)
    monkeypatch.setattr(descent, "_FEWEST_ROWS", 1 << 20)
    at_once = refine_integers(start, hessian, 2)
    assert (in_parts.levels == at_once.levels).mean() > 0.99
    np.testing.assert_allclose(in_parts.params.scale, at_once.params.scale, rtol=0.01)
    if isinstance(spec.granularity, PerTensor):
        assert in_parts.params.scale.shape == start.params.scale.shape


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_it_is_better_and_ends_where_little_is_gained(spec: TensorSpec) -> None:
    start, hessian = begin(3, spec)
    before = start.pull(hessian)[1].sum()
    one = refine_integers(start, hessian, 1).pull(hessian)[1].sum()
    assert one < before
    assert refine_integers(start, hessian, 9, enough=1.0).pull(hessian)[1].sum() == one
    assert refine_integers(start, hessian, 9).pull(hessian)[1].sum() <= one * 1.0001
