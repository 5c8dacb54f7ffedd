from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.core import error_measures
from onnxq.verify.fidelity import Fidelity

FLOATS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=st.floats(-1e3, 1e3, width=32)
)


def of(*pairs):
    state = Fidelity()
    for reference, actual in pairs:
        state.update(np.asarray(reference), np.asarray(actual))
    return state.result()


@given(arrays=st.lists(FLOATS, min_size=1, max_size=4), seed=st.integers(0, 9), size=st.sampled_from([0, 1e-3, 1]))
def test_a_stream_gives_what_the_measures_give_on_everything_at_once(arrays, seed, size):
    generator = np.random.default_rng(seed)
    pairs = [(a, (a + size * generator.standard_normal(a.shape)).astype(np.float32)) for a in arrays]
    found = of(*pairs)
    left, right = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    assert found.sqnr_db == pytest.approx(error_measures.sqnr_db(left, right), abs=1e-6)
    assert found.cosine == pytest.approx(error_measures.cosine(left, right), abs=1e-9)
    assert found.max_abs_error == pytest.approx(np.abs(left.astype(np.float64) - right).max(), rel=1e-9)
    assert found.finite
    assert found.samples == len(pairs)


def test_twenty_decibels_are_a_tenth_of_the_signal():
    assert of(([[1.0, -1.0]], [[1.1, -1.1]])).sqnr_db == pytest.approx(20)


def test_equal_outputs_are_infinitely_good_and_noise_without_signal_infinitely_bad():
    assert of(([1.0, 2.0], [1.0, 2.0])).sqnr_db == math.inf
    assert of(([0.0, 0.0], [0.0, 0.0])).cosine == 1.0
    silent = of(([0.0, 0.0], [0.0, 0.1]))
    assert (silent.sqnr_db, silent.cosine) == (-math.inf, 0.0)


def test_what_is_not_finite_in_float_is_counted_and_left_out():
    found = of(([1.0, math.nan, math.inf, 2.0], [1.0, 5.0, math.nan, 2.0]))
    assert (found.sqnr_db, found.nonfinite_float, found.nonfinite_quantized, found.finite) == (math.inf, 2, 0, True)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_the_quantized_model_only_breaks_it(broken):
    found = of(([[1.0, 2.0]], [[1.0, broken]]), ([[1.0, 2.0]], [[1.0, 2.0]]))
    assert not found.finite
    assert (found.sqnr_db, found.cosine, found.max_abs_error) == (-math.inf, 0.0, math.inf)
    assert found.nonfinite_quantized == 1


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.str_])
def test_what_is_no_real_number_is_counted_as_equal_or_not(dtype):
    found = of((np.array([0, 1, 1, 0]).astype(dtype), np.array([0, 1, 0, 0]).astype(dtype)))
    assert found.agreement == 0.75
    assert found.sqnr_db is found.cosine is found.max_abs_error is found.top1_agreement is None


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_all_float_types_are_real_numbers(dtype):
    assert of((np.array([[1, 2]], dtype), np.array([[1, 2]], dtype))).sqnr_db == math.inf


def test_other_shapes_and_types_are_left_out_and_counted():
    found = of(([1.0], [1.0, 2.0]), ([1.0], [1]), ([1.0], [1.0]))
    assert (found.samples, found.mismatched, found.sqnr_db) == (1, 2, math.inf)


def test_what_is_not_finite_in_float_alone_is_counted():
    found = of(([1.0, math.nan, math.inf, -math.inf], [1.0, 5.0, 2.0, -math.inf]))
    assert (found.nonfinite_float, found.nonfinite_lost, found.finite) == (3, 2, True)


def test_an_output_without_one_finite_element_is_not_called_equal():
    nothing = np.full((2, 3), np.nan, np.float32)
    found = of((nothing, np.zeros((2, 3), np.float32)))
    assert (found.sqnr_db, found.cosine, found.nonfinite_float, found.finite) == (None, None, 6, True)
    empty = np.zeros((0, 3), np.float32)
    assert of((empty, empty)).sqnr_db == math.inf
