"""Searched ranges."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.grid import GridConfig, grid_error, quantize_range, search_params, search_range
from onnxq.algorithms.groups import split_columns
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize, params_from_range, reduce_range, scale_shape
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerBlock, TensorSpec
from onnxq.errors import RecipeError
from tests.algorithms.correlated import SPECS, draw, name


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_the_error_of_a_grid_is_the_sum_over_its_group(spec: TensorSpec) -> None:
    weight, _ = draw(0)
    importance = np.linspace(0.1, 2, 72).astype(np.float32)
    rounded = rtn(weight, spec)
    error = np.abs(dequantize(rounded.values, rounded.params).astype(np.float64) - weight) ** 2.4 * importance
    found = grid_error(weight, rounded.params, importance, 2.4)
    assert found.shape == rounded.params.scale.shape == scale_shape(weight.shape, spec.granularity)
    np.testing.assert_allclose(found.sum(), error.sum(), rtol=1e-4)
    if isinstance(spec.granularity, PerBlock):
        size = spec.granularity.size
        np.testing.assert_allclose(found[5, -1], error[5, (found.shape[1] - 1) * size :].sum(), rtol=1e-4)


@pytest.mark.parametrize("importance", [None, np.linspace(0.0, 3, 72)])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_no_group_is_worse_than_with_its_extrema(
    spec: TensorSpec, asymmetric: bool, importance: np.ndarray | None
) -> None:
    weight, _ = draw(1)
    weight = weight**3
    config = GridConfig(steps=10, smallest=0.3, asymmetric=asymmetric)
    before = grid_error(weight, params_from_range(*reduce_range(weight, spec.granularity), spec), importance)
    after = grid_error(weight, search_params(weight, spec, config, importance), importance)
    assert (after <= before).all()
    if spec.bits < 8:
        assert after.sum() < before.sum()


def test_the_best_of_the_tried_ranges_is_found() -> None:
    weight, _ = draw(2)
    spec = TensorSpec(QType.UINT4, PerBlock(1, 16))
    config = GridConfig(steps=8, smallest=0.4)
    low, high = reduce_range(weight, spec.granularity)
    tried = [grid_error(weight, params_from_range(low * r, high * r, spec)) for r in [1.0, *config.ratios()]]
    found = grid_error(weight, search_params(weight, spec, config))
    np.testing.assert_allclose(found, np.min(tried, axis=0), rtol=1e-5)


def test_ends_that_move_alone_are_no_worse_than_together() -> None:
    weight, _ = draw(3)
    weight = np.where(weight > 0, weight**3, weight)
    spec = TensorSpec(QType.UINT4, PerBlock(1, 32))
    together = grid_error(weight, search_params(weight, spec, GridConfig()))
    alone = grid_error(weight, search_params(weight, spec, GridConfig(asymmetric=True)))
    assert (alone <= together).all()
    assert alone.sum() < together.sum()


def test_a_range_becomes_a_tensor() -> None:
    weight, _ = draw(4)
    spec = SPECS[1]
    result = quantize_range(weight, *search_range(weight, spec), spec)
    assert np.array_equal(result.values, rtn(weight, spec).values)


def test_a_search_that_tries_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="steps 0"):
        GridConfig(steps=0)
    with pytest.raises(RecipeError, match="does not fit a weight of shape"):
        split_columns(np.ones(3), (2, 4), PerBlock(1, 2))
