"""Hadamard matrices and the orthogonal matrices that are made of them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.core.hadamard import hadamard_of, turn_of, turn_of_means


@pytest.mark.parametrize("order", [1, 4, 8, 12, 20, 24, 28, 36, 44, 48, 60, 76, 124])
def test_rows_of_a_hadamard_matrix_are_orthogonal(order: int) -> None:
    matrix = hadamard_of(order)
    assert matrix is not None and set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("order", [2, 3, 6, 18, 40, 92])
def test_orders_that_no_construction_gives(order: int) -> None:
    assert hadamard_of(order) is None


@pytest.mark.parametrize(
    ("size", "hadamard"), [(1, True), (64, True), (384, True), (896, True), (576, True), (33, False)]
)
def test_a_turn_keeps_lengths_and_products(size: int, hadamard: bool) -> None:
    turn = turn_of(size, 3)
    assert turn.hadamard is hadamard
    matrix = turn.apply(np.eye(size))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    x = np.random.default_rng(0).standard_normal((3, size, 2))
    np.testing.assert_allclose(turn.apply(x, 1), np.einsum("aib,ij->ajb", x, matrix), atol=1e-10)
    np.testing.assert_array_equal(turn_of(size, 3).apply(x, 1), turn.apply(x, 1))
    if hadamard:
        np.testing.assert_allclose(np.abs(matrix), 1 / np.sqrt(size), atol=1e-12)


@pytest.mark.parametrize("size", [1, 8, 20, 33, 96, 384])
def test_a_turn_of_means_keeps_them_and_lengths(size: int) -> None:
    turn = turn_of_means(size, 3)
    matrix = turn.apply(np.eye(size))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    x = np.random.default_rng(0).standard_normal((5, size))
    np.testing.assert_allclose(turn.apply(x).mean(-1), x.mean(-1), atol=1e-12)
    np.testing.assert_array_equal(turn_of_means(size, 3).apply(x), turn.apply(x))
    if size > 8:
        assert np.abs(matrix).max() < 5 / np.sqrt(size)  # every coordinate goes into all others


def test_a_spike_is_spread_over_all_coordinates() -> None:
    spike = np.zeros(96)
    spike[17] = 5.0
    np.testing.assert_allclose(np.abs(turn_of(96).apply(spike)), 5.0 / np.sqrt(96))
