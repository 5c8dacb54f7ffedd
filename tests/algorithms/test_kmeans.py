"""One-dimensional k-means against trying every partition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.algorithms import kmeans as module
from onnxq.algorithms.groups import split, split_columns
from onnxq.algorithms.kmeans import KMeansConfig, kmeans
from onnxq.core.codebook import CodebookTensor, decode
from onnxq.core.spec import Granularity, PerAxis, PerBlock, PerTensor
from onnxq.errors import RecipeError

Array = npt.NDArray[Any]
GRANULARITIES: list[Granularity] = [PerTensor(), PerAxis(0), PerBlock(1, 16), PerBlock(1, 40)]


def heavy(seed: int, shape: tuple[int, int] = (6, 72)) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_t(4, size=shape) * 0.03, np.float32)


def errors(weight: Array, result: CodebookTensor, importance: Array | None = None) -> Array:
    """Weighted squared error of each group."""
    squared = (decode(result).astype(np.float64) - weight) ** 2
    columns = split_columns(importance, (weight.shape[0], weight.shape[1]), result.granularity)
    return np.asarray((split(squared, result.granularity) * columns).sum(axis=1))


def least_error(x: Array, weights: Array, entries: int) -> float:
    """The smallest error of any split of the sorted values into runs."""
    order = np.argsort(x)
    x, weights = x[order].astype(np.float64), weights[order]

    def spread(start: int, stop: int) -> float:
        part, share = x[start:stop], weights[start:stop]
        return float((share * (part - np.average(part, weights=share)) ** 2).sum()) if share.sum() else 0.0

    splits = itertools.combinations(range(1, x.size), entries - 1)
    return min(sum(spread(a, b) for a, b in itertools.pairwise((0, *cut, x.size))) for cut in splits)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("entries", [2, 3, 4])
def test_no_partition_is_better(entries: int, weighted: bool) -> None:
    weight = heavy(0, (4, 14))
    importance = np.random.default_rng(0).uniform(0.1, 5, 14) if weighted else None
    config = KMeansConfig(entries=entries, method="optimal")
    for granularity in (PerAxis(0), PerBlock(1, 9)):
        found = errors(weight, kmeans(weight, granularity, config, importance), importance)
        groups = split(weight, granularity)
        columns = split_columns(importance, (4, 14), granularity).astype(np.float64)
        for group, value in enumerate(found):
            own = 14 if isinstance(granularity, PerAxis) else (9 if group % 2 == 0 else 5)
            best = least_error(groups[group, :own], columns[group, :own], entries)
            np.testing.assert_allclose(value, best, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("importance", [None, np.linspace(0, 3, 72)])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_the_optimum_is_no_worse_than_lloyds_nor_that_than_quantiles(
    granularity: Granularity, importance: Array | None
) -> None:
    weight = heavy(1)
    found = [
        errors(weight, kmeans(weight, granularity, KMeansConfig(entries=8, method=method), importance), importance)
        for method in ("optimal", "lloyd", "quantile")
    ]
    assert (found[0] <= found[1] * (1 + 1e-5) + 1e-12).all()
    assert (found[1] <= found[2] * (1 + 1e-5) + 1e-12).all()
    assert found[0].sum() < found[1].sum() < found[2].sum()


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_tensors_are_well_formed(granularity: Granularity, bits: int) -> None:
    weight = heavy(2, (3, 72))
    result = kmeans(weight, granularity, KMeansConfig(bits=bits))
    assert result.indices.dtype == np.uint8
    assert result.indices.shape == weight.shape
    assert result.table.dtype == np.float32
    assert result.table.shape[-1] == 1 << bits
    assert result.table.ndim == (1 if isinstance(granularity, PerTensor) else 2)
    assert (np.diff(result.table, axis=-1) >= 0).all()
    assert (result.scale == 1).all()
    again = kmeans(weight, granularity, KMeansConfig(bits=bits))
    assert np.array_equal(result.indices, again.indices)
    assert np.array_equal(result.table, again.table)


@pytest.mark.parametrize("method", ["optimal", "lloyd", "quantile"])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_few_different_values_are_exact(granularity: Granularity, method: Any) -> None:
    values = np.array([0, 1e-7, 0.3, -5, 1e5, 0.30000004], np.float32)
    weight = values[np.random.default_rng(3).integers(0, 6, (6, 72))]
    assert np.array_equal(decode(kmeans(weight, granularity, KMeansConfig(entries=6, method=method))), weight)
    assert not decode(kmeans(weight * 0, granularity)).any()


def test_more_values_than_places_are_nearly_as_good() -> None:
    weight = heavy(4, (40, 100))
    exact = errors(weight, kmeans(weight, PerTensor(), KMeansConfig(method="optimal", places=4000)))
    rough = errors(weight, kmeans(weight, PerTensor(), KMeansConfig(method="optimal", places=128)))
    lloyd = errors(weight, kmeans(weight, PerTensor(), KMeansConfig(method="lloyd")))
    assert exact[0] <= rough[0] <= 1.01 * exact[0]
    assert rough[0] <= lloyd[0]


def test_very_many_values_are_binned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(5, (40, 100))
    importance = np.linspace(0, 2, 100)
    for given in (None, importance):
        whole = errors(weight, kmeans(weight, PerTensor(), importance=given), given)
        with monkeypatch.context() as patched:
            patched.setattr(module, "_BATCH", 1000)
            binned = errors(weight, kmeans(weight, PerTensor(), importance=given), given)
            assert np.array_equal(decode(kmeans(weight * 0, PerTensor(), importance=given)), weight * 0)
        np.testing.assert_allclose(binned, whole, rtol=1e-3)


def test_batches_of_groups_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy(6)
    whole = kmeans(weight, PerBlock(1, 16))
    monkeypatch.setattr(module, "_BATCH", 50)
    parts = kmeans(weight, PerBlock(1, 16))
    assert np.array_equal(whole.table, parts.table)
    assert np.array_equal(whole.indices, parts.indices)


def test_important_inputs_are_served_better() -> None:
    weight = heavy(7)
    importance = np.where(np.arange(72) < 10, 100.0, 1.0)
    plain, weighted = kmeans(weight, PerAxis(0)), kmeans(weight, PerAxis(0), importance=importance)
    assert errors(weight, weighted, importance).sum() < 0.7 * errors(weight, plain, importance).sum()
    nothing = kmeans(weight, PerAxis(0), importance=np.zeros(72))
    assert np.array_equal(nothing.table, plain.table)


def test_what_cannot_be_asked_for_is_refused() -> None:
    with pytest.raises(RecipeError, match="17 entries in 4 bits"):
        KMeansConfig(entries=17)
    with pytest.raises(RecipeError, match="places 1 make no search"):
        KMeansConfig(places=1)
    with pytest.raises(RecipeError, match="importance of 3 inputs does not fit"):
        kmeans(np.ones((2, 2), np.float32), PerTensor(), importance=np.ones(3))
    for shape in ((0, 4), (3, 0)):
        for granularity in GRANULARITIES:
            assert kmeans(np.zeros(shape, np.float32), granularity).indices.shape == shape
