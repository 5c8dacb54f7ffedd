"""Rounding weights to nearest."""

from __future__ import annotations

import numpy as np

from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize, quantize_tensor
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerTensor, TensorSpec

PER_CHANNEL = TensorSpec(QType.INT8, PerAxis(0), symmetric=True, narrow_range=True)


def test_each_channel_has_the_scale_of_its_extrema() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    rounded, expected = rtn(weight, PER_CHANNEL), quantize_tensor(weight, PER_CHANNEL)
    assert np.array_equal(rounded.values, expected.values)
    assert np.array_equal(rounded.params.scale, expected.params.scale)


def test_a_channel_of_zeros_takes_the_smallest_scale_of_the_others() -> None:
    weight = np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25]], np.float32)
    rounded = rtn(weight, PER_CHANNEL)
    assert rounded.params.scale[1, 0] == rounded.params.scale[2, 0] == np.float32(0.5 / 127)
    assert np.array_equal(rounded.values[1], [0, 0])


def test_zeros_alone_are_exact() -> None:
    for spec in (PER_CHANNEL, TensorSpec(QType.INT8, PerTensor(), symmetric=True)):
        rounded = rtn(np.zeros((3, 2), np.float32), spec)
        assert not dequantize(rounded.values, rounded.params).any()
        assert (rounded.params.scale == 1).all()


def test_no_scale_is_smaller_than_asked_for() -> None:
    weight = np.array([[1.0], [1e-6], [0.0]], np.float32)
    rounded = rtn(weight, PER_CHANNEL, np.array([0.001, 0.001, 0.0]))
    assert rounded.params.scale.ravel().tolist() == [np.float32(1 / 127), np.float32(0.001), np.float32(1e-6 / 127)]
