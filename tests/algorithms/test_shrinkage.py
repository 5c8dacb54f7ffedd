"""Second moments from few samples."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.algorithms.gptq import gptq
from onnxq.algorithms.rtn import rtn
from onnxq.algorithms.shrinkage import MOSTLY_CHANCE, chance_in, shrunk
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerBlock, QTensor, TensorSpec

SPEC = TensorSpec(QType.INT4, PerBlock(1, 16), symmetric=True)
CHANNELS = 48


def rows_of(count: int, mixing: Array, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS)) @ mixing.T


def reference(moment: Array, rows: int) -> float:
    """The formula as the paper has it, with sums written out."""
    s, p = moment / rows, moment.shape[0]
    trace = sum(s[i, i] for i in range(p))
    squares = sum(s[i, j] * s[j, i] for i in range(p) for j in range(p))
    above = (1 - 2 / p) * squares + trace**2
    return float(min(1.0, above / ((rows + 1 - 2 / p) * (squares - trace**2 / p))))


@pytest.mark.parametrize("rows", [4, 30, 400])
def test_share_of_chance_is_the_paper_s(rows: int) -> None:
    x = rows_of(rows, 0.7 ** np.abs(np.subtract.outer(np.arange(CHANNELS), np.arange(CHANNELS))))
    assert chance_in(x.T @ x, rows) == pytest.approx(reference(x.T @ x, rows), rel=1e-9)


@pytest.mark.parametrize(("moment", "rows"), [(np.zeros((4, 4)), 3), (np.eye(1), 3), (np.eye(3), 0)])
def test_nothing_to_shrink(moment: Array, rows: int) -> None:
    assert chance_in(moment, rows) == 0.0
    assert shrunk(moment, rows) is moment


def test_few_rows_of_unrelated_channels_do_not_mislead_gptq() -> None:
    weight = np.random.default_rng(1).standard_normal((32, CHANNELS)).astype(np.float32)
    x = rows_of(24, np.eye(CHANNELS))
    moment = x.T @ x
    assert chance_in(moment, 24) > MOSTLY_CHANCE
    unseen = np.eye(CHANNELS)
    plain = output_error(weight, gptq(weight, moment, SPEC), unseen)
    assert output_error(weight, gptq(weight, shrunk(moment, 24), SPEC), unseen) < 0.5 * plain
    assert plain > output_error(weight, rtn(weight, SPEC), unseen)


def test_real_correlations_are_kept() -> None:
    x = rows_of(24, np.random.default_rng(2).standard_normal((CHANNELS, 6)) @ np.eye(6, CHANNELS))
    assert shrunk(x.T @ x, 24) is not None
    assert chance_in(x.T @ x, 24) < MOSTLY_CHANCE
    many = rows_of(4000, 0.9 ** np.abs(np.subtract.outer(np.arange(CHANNELS), np.arange(CHANNELS))))
    moment = many.T @ many
    assert shrunk(moment, 4000) is moment


def output_error(weight: Array, tensor: QTensor, moment: Array) -> float:
    error = weight - dequantize(tensor.values, tensor.params)
    return float(np.einsum("oi,ij,oj->", error, moment, error))
