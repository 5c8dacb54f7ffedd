from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.core.error_measures import cosine, decibels, mse, sqnr_db, top1_agreement
from onnxq.errors import VerificationError

REFERENCE = np.array([3.0, -4.0, 0.0], np.float32)


def test_known_values():
    actual = np.array([3.0, -3.0, 1.0], np.float32)
    assert sqnr_db(REFERENCE, actual) == pytest.approx(10 * math.log10(25 / 2))
    assert mse(REFERENCE, actual) == pytest.approx(2 / 3)
    assert cosine(REFERENCE, actual) == pytest.approx(21 / (5 * math.sqrt(19)))


def test_equal_tensors():
    for x in (REFERENCE, np.zeros(3), np.zeros(0), np.array([np.nan, np.inf, -np.inf, 1.0])):
        assert sqnr_db(x, x) == math.inf
        assert mse(x, x) == 0.0
        assert cosine(x, x) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_stops_being_finite_is_an_infinite_error(bad):
    actual = np.array([3.0, bad, 0.0])
    assert sqnr_db(REFERENCE, actual) == -math.inf
    assert mse(REFERENCE, actual) == math.inf
    assert cosine(REFERENCE, actual) == 0.0


def test_a_reference_that_is_not_finite_must_be_met():
    reference = np.array([np.inf, 1.0, np.nan])
    assert sqnr_db(reference, np.array([-np.inf, 1.0, np.nan])) == -math.inf
    assert sqnr_db(reference, np.array([np.inf, 1.0, 0.0])) == -math.inf


def test_noise_without_signal():
    assert sqnr_db(np.zeros(2), np.ones(2)) == -math.inf
    assert cosine(np.zeros(2), np.ones(2)) == 0.0


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_sqnr_and_cosine_neither_overflow_nor_vanish(size):
    assert sqnr_db(size * np.array([1.0, 1.0]), size * np.array([1.1, 0.9])) == pytest.approx(20.0)
    assert cosine(size * np.array([1.0, 0.0]), size * np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))


def test_decibels_of_two_powers():
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
    assert decibels(1e-320, 1e-310) == pytest.approx(-100.0, abs=0.1)
    assert decibels(0.0, 0.0) == decibels(3.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == decibels(1.0, math.inf) == decibels(1.0, math.nan) == -math.inf


def test_top1_agreement():
    reference = np.array([[1, 2], [2, 1], [0, 5], [3, 0]])
    assert top1_agreement(reference, np.array([[0, 9], [1, 2], [0, 1], [1, 0]])) == 0.75
    assert top1_agreement(reference, reference, axis=0) == 1.0
    assert top1_agreement(np.zeros((0, 3)), np.zeros((0, 3))) == 1.0
    assert top1_agreement(np.array([[0.0, 1.0]]), np.array([[0.0, np.nan]])) == 0.0


@pytest.mark.parametrize("measure", [sqnr_db, mse, cosine, top1_agreement])
def test_shapes_must_agree(measure):
    with pytest.raises(VerificationError, match="must have one shape"):
        measure(np.zeros((1, 2)), np.zeros((2, 1)))


def test_top1_needs_its_axis():
    with pytest.raises(VerificationError, match="axis -1 is outside outputs of rank 0"):
        top1_agreement(np.float32(1), np.float32(1))
