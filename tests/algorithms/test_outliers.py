"""Which channels are outliers, and a weight without them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.outliers import outlier_channels, without_rows
from onnxq.errors import RecipeError


def test_channels_that_reach_the_threshold() -> None:
    assert outlier_channels(np.array([1.0, 6.0, 5.99, 80.0])).tolist() == [1, 3]
    assert outlier_channels(np.array([1.0, 2.0]), 2.0).tolist() == [1]
    assert outlier_channels(np.zeros(3)).size == 0
    with pytest.raises(RecipeError, match="is no magnitude"):
        outlier_channels(np.ones(3), 0.0)


def test_rows_of_outliers_become_zero_in_a_copy() -> None:
    weight = np.arange(1.0, 13.0).reshape(4, 3)
    rest = without_rows(weight, np.array([1, 3]))
    assert rest[[1, 3]].tolist() == [[0.0] * 3] * 2
    np.testing.assert_array_equal(rest[[0, 2]], weight[[0, 2]])
    np.testing.assert_array_equal(without_rows(weight.T, np.array([1, 3]), transposed=True), rest.T)
    assert (weight > 0).all()
