"""Statistics: exact merge in any order, sampling that sees everything it should, counters, odd arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import CalibrationError
from onnxq.stats import histogram as histogram_module
from onnxq.stats.histogram import HALF, SAMPLED, Histogram, exponent_of, stride
from onnxq.stats.observation import observe
from onnxq.stats.statistics import Statistics, combine_hashes
from onnxq.stats.value_statistic import ValueStatistic

numbers = st.floats(width=32, allow_subnormal=True) | st.sampled_from(
    [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3e38, -3e38, 2.0**-100, -(2.0**11), 2.0**12]
)
arrays = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), elements=numbers
) | hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=4), elements=st.floats())


def streamed(batches):
    statistic = ValueStatistic()
    for batch in batches:
        statistic.update(batch)
    return statistic


@given(st.lists(arrays, max_size=5), st.randoms(use_true_random=False))
def test_merge_is_the_stream_bit_for_bit_in_any_order(batches, random):
    whole = streamed(batches)
    shuffled = batches[:]
    random.shuffle(shuffled)
    cut = random.randint(0, len(shuffled))
    left, right = streamed(shuffled[:cut]), streamed(shuffled[cut:])
    before = left.to_arrays()
    assert left.merge(right) == whole == right.merge(left) == streamed(shuffled)
    assert all(np.array_equal(before[key], left.to_arrays()[key]) for key in before)


@given(st.lists(arrays, min_size=1, max_size=3))
def test_extrema_and_counters_are_exact(batches):
    statistic = streamed(batches)
    everything = np.concatenate([batch.ravel().astype(np.float64) for batch in batches])
    finite = everything[np.isfinite(everything)]
    assert statistic.count == everything.size
    assert statistic.nan_count == np.isnan(everything).sum()
    assert statistic.inf_count == np.isinf(everything).sum()
    assert (statistic.low, statistic.high) == ((finite.min(), finite.max()) if finite.size else (None, None))
    assert statistic.histogram.total == finite.size
    assert statistic.histogram.zeros == (finite == 0).sum()


@given(arrays)
def test_each_element_is_in_its_bin(batch):
    statistic = streamed([batch])
    values = batch.ravel().astype(np.float64)
    values = values[np.isfinite(values) & (values != 0)]
    width = statistic.histogram.width
    expected = np.zeros(2 * HALF, np.int64)
    for value in values.tolist():
        index = int(np.floor(value / width)) if abs(value / width) >= 1e-300 else (0 if value > 0 else -1)
        expected[HALF + index] += 1
    np.testing.assert_array_equal(statistic.histogram.counts, expected)


@given(arrays)
def test_round_trip_through_arrays(batch):
    statistic = streamed([batch])
    assert ValueStatistic.from_arrays(statistic.to_arrays()) == statistic


@given(arrays, st.sampled_from([0.0, -1.5]))
def test_a_known_floor_changes_nothing(batch, floor):
    clipped = np.maximum(batch, np.asarray(floor, batch.dtype))  # NaN stays, where there are any
    assert observed(clipped, floor) == observed(clipped, None)


@pytest.mark.parametrize("seen", [np.nan, np.inf, 7.0])
@pytest.mark.parametrize("position", [0, 1, 50_000])
def test_a_sample_that_reaches_the_floor_hides_nothing(seen, position):
    array = np.maximum(np.random.default_rng(0).normal(size=(1, 16, 65, 65)).astype(np.float32), 0)
    array.reshape(-1)[position] = seen
    assert observed(array, 0.0) == observed(array, None)
    assert observed(array + 1, 0.0) == observed(array + 1, None)  # the floor is not reached


def observed(array, floor):
    statistic = ValueStatistic()
    statistic.take(observe(array, floor=floor))
    return statistic


def test_large_arrays_merge_exactly_too():
    generator = np.random.default_rng(0)
    batches = [
        (generator.standard_normal(shape) * size).astype(np.float32)
        for shape, size in [((1, 32, 40, 40), 1.0), ((3, 7, 1111), 1e4), ((100,), 1e-3), ((1, 32, 56, 56), 70.0)]
    ]
    batches[1][0, 3, ::7] = np.nan
    batches[3][0, 0, 0, :5] = -np.inf
    whole = streamed(batches)
    for order in itertools.permutations(batches):
        assert streamed(order[:2]).merge(streamed(order[2:])) == whole


def test_sampled_counts_stand_for_all_elements():
    x = np.random.default_rng(0).standard_normal((1, 64, 56, 56), dtype=np.float32)
    sampled = streamed([x]).histogram
    assert sampled.sampled < x.size / 10
    assert sampled.total == pytest.approx(x.size, rel=1e-3)
    width = sampled.width
    assert sampled.counts[HALF : HALF + int(1 / width)].sum() == pytest.approx(((x >= 0) & (x < 1)).sum(), rel=0.03)


@pytest.mark.parametrize("end", [-50.0, 50.0])
@pytest.mark.parametrize("position", [0, 1])  # sampled and not
def test_the_extreme_element_counts_once_whether_sampled_or_not(end, position):
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    x[position] = end
    histogram = streamed([x]).histogram
    assert histogram.counts[HALF + int(np.floor(end / histogram.width))] == 1
    assert (histogram.counts >= 0).all()


@pytest.mark.parametrize(
    "shape",
    [
        (1, 32, 112, 112),
        (1, 1280, 7, 7),
        (1, 576, 14, 14),
        (1, 14, 14, 576),
        (8, 128, 768),
        (32, 4096),
        (1, 24, 11008),
        (1, 1, 500_000),
        (64, 3, 64, 64),
        (2, 30, 30, 30, 30),
    ],
)
def test_sampling_visits_every_index_of_every_axis_alike(shape):
    step = stride(shape)
    size = int(np.prod(shape))
    assert step > 1
    assert size / step >= SAMPLED * 0.75
    places = np.unravel_index(np.arange(0, size, step), shape)
    for axis, length in enumerate(shape):
        if length > 1 << 15:
            continue
        visits = np.bincount(places[axis], minlength=length)
        assert visits.min() >= max(1, 0.8 * size / step / length - 2)
        assert visits.max() <= 1.2 * size / step / length + 2


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_channels_that_differ_are_all_in_the_histogram(layout):
    channels = 96
    x = np.arange(1, channels + 1, dtype=np.float32)[None, :, None, None] * np.ones((1, channels, 56, 56), np.float32)
    if layout == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    histogram = streamed([x]).histogram
    at = HALF + np.floor(np.arange(1, channels + 1) / histogram.width).astype(int)
    share = histogram.counts[at] / (x.size / channels)
    assert share.min() > 0.7
    assert share.max() < 1.3


def test_small_arrays_are_counted_whole():
    assert stride((SAMPLED,)) == 1
    assert stride(()) == stride((0, 5)) == 1
    assert stride((1, SAMPLED // 2, 4)) == 3  # 2 would see half of the last axis


def test_memory_does_not_grow_with_samples():
    statistic = ValueStatistic()
    x = np.ones((50, 50), np.float32)
    for _ in range(50):
        statistic.update(x)
    held = sum(array.nbytes for array in statistic.to_arrays().values()) + statistic.histogram.counts.nbytes
    assert held < 200_000


@given(st.integers(-100, 120), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_growing_joins_pairs(exponent, steps, seed):
    counts = np.random.default_rng(seed).integers(0, 2**40, 2 * HALF)
    histogram = Histogram(exponent, counts.copy())
    histogram.grow(exponent + steps)
    index = np.arange(-HALF, HALF) >> steps
    expected = np.zeros(2 * HALF, np.int64)
    np.add.at(expected, index + HALF, counts)
    np.testing.assert_array_equal(histogram.counts, expected)
    histogram.grow(exponent)
    np.testing.assert_array_equal(histogram.counts, expected)


def test_exponent_holds_its_ends_strictly():
    assert exponent_of(0.0, 1.0) == 1
    assert exponent_of(-1.0, 0.5) == 1
    assert exponent_of(0.0, np.nextafter(1.0, 0.0)) == 0
    assert exponent_of(0.0, 0.0) == exponent_of(-1e-40, 0.0) == histogram_module.SMALLEST_EXPONENT


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_odd_shapes_and_types(shape, dtype):
    statistic = streamed([np.full(shape, -1.5, dtype)])
    assert statistic.shape == shape
    assert statistic.low == (-1.5 if np.prod(shape) else None)
    assert streamed([np.full(shape, np.nan, dtype)]).low is None


def test_shapes_may_change_between_samples():  # onnxruntime issue 18792
    batches = [np.ones((1, length, 4), np.float32) for length in (7, 3, 9)]
    assert streamed(batches).shape == (1, 3, 4)
    assert streamed(batches).count == 76


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64])
def test_arrays_that_are_not_float_are_refused(dtype):
    with pytest.raises(CalibrationError, match=f"value 'ids': update: element type {np.dtype(dtype)} is not float16"):
        Statistics().update("ids", np.zeros(3, dtype))


# --- Statistics ---------------------------------------------------------------------------------------------------


def run(seeds, model="m"):
    statistics = Statistics(model, combine_hashes(*(f"{seed:x}" for seed in seeds)), len(seeds))
    for seed in seeds:
        generator = np.random.default_rng(seed)
        statistics.update("b:0", generator.standard_normal((2, 3)))
        statistics.update("a/b", generator.standard_normal((200, 100)) * seed)
    return statistics


def test_shards_joined_are_one_run():
    shards = [run([1, 2]), run([3]), run([4, 5])]
    whole = run([1, 2, 3, 4, 5])
    for order in itertools.permutations(shards):
        assert Statistics.merge(*order) == whole
        assert order[0].merge(order[1]).merge(order[2]) == whole
    assert shards[0] == run([1, 2])
    alone = Statistics.merge(shards[0])
    assert alone == shards[0]
    alone.update("a/b", np.ones(3))
    assert shards[0] == run([1, 2])


def test_values_of_one_shard_only_are_kept():
    other = Statistics("m", "", 0)
    other.put("only", ValueStatistic())
    assert list(run([1]).merge(other)) == ["a/b", "b:0", "only"]
    assert len(run([1])) == 2


def test_statistics_of_two_models_do_not_merge():
    with pytest.raises(CalibrationError, match="two models, 'm' and 'other'"):
        Statistics.merge(run([1]), run([2], "other"))


def test_statistics_differ_where_anything_does():
    assert run([1]) != run([2])
    assert run([1]) != run([1], "n")
    assert run([1]) != 1
    assert "count=20000" in repr(run([1])["a/b"])


def test_hashes_combine_in_any_order_and_grouping():
    a, b, c = "f" * 64, "1", "not hexadecimal"
    assert combine_hashes(a, b) == combine_hashes(b, a) == "0" * 64
    assert combine_hashes(combine_hashes(a, c), b) == combine_hashes(b, c, a)
    assert combine_hashes("", b) == combine_hashes(b)
    assert combine_hashes("", "") == ""
    assert combine_hashes("-1") == combine_hashes(combine_hashes("-1"))


@pytest.mark.parametrize("shape", [(1, 5), (2, 64, 40, 40)])
def test_counting_many_arrays_together_gives_the_bits_of_counting_each_alone(shape):
    generator = np.random.default_rng(0)
    batches = [(generator.standard_normal(shape) * 3.0**n).astype(np.float32) for n in range(-4, 5)]
    batches[4].reshape(-1)[:3] = np.nan, np.inf, 0.0
    together, apart = ValueStatistic(), ValueStatistic()
    for batch in batches * 8:
        together.update(batch)
        apart.update(batch)
        assert apart.histogram.total  # counts what waits
    assert together == apart
    assert sum(together.powers.bins.values()) == len(batches) * 8
