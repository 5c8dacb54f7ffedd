"""Weights that no method may stumble over, and those that each refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.algorithms.awq import awq_clip, awq_scales
from onnxq.algorithms.gptq import gptq
from onnxq.algorithms.grid import GridConfig, quantize_range, search_range
from onnxq.algorithms.hqq import hqq
from onnxq.algorithms.kmeans import kmeans
from onnxq.algorithms.kquant import kquant
from onnxq.algorithms.nearest import quantize_codebook
from onnxq.algorithms.rtn import rtn
from onnxq.core import codebook
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QTensor, TensorSpec
from onnxq.errors import ModelError
from tests.algorithms.correlated import SPECS, draw, moments, name

Array = npt.NDArray[Any]
_, X = draw(0)
H, MAGNITUDE = moments(X), np.abs(X).mean(axis=0)


def real(result: QTensor) -> Array:
    """The dequantized weight."""
    return dequantize(result.values, result.params)


def awq(weight: Array, spec: TensorSpec) -> Array:
    """Scales, clips, and the scales divided out again."""
    scales = awq_scales([weight], H, MAGNITUDE, spec)
    scaled = weight * scales
    return np.asarray(real(quantize_range(scaled, *awq_clip(scaled, H, spec), spec)) / scales)


METHODS: dict[str, Callable[[Array, TensorSpec], Array]] = {
    "ranges": lambda w, spec: real(quantize_range(w, *search_range(w, spec, GridConfig()), spec)),
    "gptq": lambda w, spec: real(gptq(w, H, spec)),
    "awq": awq,
    "hqq": lambda w, spec: real(hqq(w, spec)),
    "kquant": lambda w, spec: real(kquant(w, spec)),
    "negative": lambda w, spec: real(kquant(w, replace(spec, mirrored=spec.symmetric))),
    "nf4": lambda w, spec: codebook.decode(quantize_codebook(w, granularity=spec.granularity)),
    "kmeans": lambda w, spec: codebook.decode(kmeans(w, spec.granularity)),
}


@pytest.mark.parametrize("size", [1e-30, 1e25])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1], SPECS[9]], ids=name)
def test_very_small_and_very_large_weights(spec: TensorSpec, method: str, size: float) -> None:
    weight = draw(1)[0] * np.float32(size)
    plain = np.abs(real(rtn(weight, spec)).astype(np.float64) - weight).max()
    found = METHODS[method](weight, spec)
    assert np.isfinite(found).all()
    allowed = max(plain, 0.3 * float(np.abs(weight).max()))  # AWQ and GPTQ err more in the weight
    assert np.abs(found.astype(np.float64) - weight).max() <= 2.5 * allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_groups_of_zeros_among_others(spec: TensorSpec, method: str) -> None:
    weight = draw(2)[0]
    weight[3] = 0
    weight[:, 16:48] = 0
    found = METHODS[method](weight, spec)
    assert np.isfinite(found).all()
    if method not in ("gptq", "kmeans"):  # one makes good with them for others; the other has no zero to itself
        assert not found[3].any()
    assert not METHODS[method](np.zeros_like(weight), spec).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "ranges"])
def test_weights_that_are_not_finite_are_refused(method: str, bad: float) -> None:
    weight = draw(3)[0]
    weight[5, 7] = bad
    with pytest.raises(ModelError, match="NaN or infinite elements .1 of them in rows 0 to 23.*exclude the layer"):
        METHODS[method](weight, SPECS[1])


@pytest.mark.parametrize("granularity", [PerBlock(1, 16), PerBlock(1, 64), PerAxis(0), PerTensor()])
def test_inputs_are_not_changed(granularity: PerBlock | PerAxis | PerTensor) -> None:
    weight = draw(4)[0]
    weight.flags.writeable = False
    hessian = H.copy()
    hessian.flags.writeable = False
    spec = TensorSpec(QType.UINT4, granularity)
    for method in METHODS.values():
        method(weight, spec)
    gptq(weight, hessian, spec)
    awq_scales([weight], hessian, MAGNITUDE, spec)
    assert np.array_equal(H, moments(X))


def test_columns_in_any_memory_order_give_the_same() -> None:
    weight = draw(5)[0]
    for spec in SPECS[:2]:
        for method in METHODS.values():
            np.testing.assert_array_equal(method(np.asfortranarray(weight), spec), method(weight, spec))
