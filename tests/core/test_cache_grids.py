"""Grids of caches: their integers are those of the operator, and their ranges lose no more than any other."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.core.cache_grids import CacheGrid, RotaryTable, at_other_positions, fit_grid


def rows_of(seed: int, count: int = 300, heads: int = 2, size: int = 6) -> np.ndarray:
    """Correlated channels of very different size, some of them off zero, with a long tail."""
    rng = np.random.default_rng(seed)
    base = rng.standard_t(5, (count, heads, size))
    mixed = base + 0.7 * base[..., ::-1]
    return (mixed * np.geomspace(0.1, 8.0, size) + np.linspace(-1, 1, size)).astype(np.float32)


def noise(rows: np.ndarray, grid: CacheGrid) -> np.ndarray:
    cache = np.swapaxes(rows[None], 1, 2)
    back = grid.dequantize(grid.quantize(cache))
    return np.square(back - cache).sum(axis=(0, 2))


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_go_there_and_back(bits: int) -> None:
    scale = np.array([0.5, -0.25, 1.0, 2.0], np.float32).reshape(1, 2, 1, 2)
    grid = CacheGrid(bits, scale, "channel", 0.0)
    levels = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), (3, 2, 5, 2))
    cache = (levels * scale).astype(np.float32)
    stored = grid.quantize(cache)
    assert stored.dtype == (np.int8 if bits == 8 else np.uint8)
    assert stored.shape == (3, 2, 5, 2 if bits == 8 else 1)
    np.testing.assert_array_equal(grid.dequantize(stored), cache)


def test_the_first_number_is_in_the_lower_half_of_a_byte() -> None:
    grid = CacheGrid(4, np.ones((1, 1, 1, 2), np.float32), "channel", 0.0)
    assert grid.quantize(np.array([[[[-8.0, 7.0]]]], np.float32)).tolist() == [[[[0xF0]]]]


@pytest.mark.parametrize("bits", [8, 4])
def test_no_channel_loses_more_than_with_its_largest_magnitude(bits: int) -> None:
    rows = rows_of(1)
    peaks = np.abs(rows).max(axis=0)
    grid = fit_grid(rows, peaks, bits)
    plain = CacheGrid(bits, (peaks / ((1 << (bits - 1)) - 1))[None, :, None].astype(np.float32), "channel", 0.0)
    ours, theirs = noise(rows, grid), noise(rows, plain)
    assert (ours <= theirs * (1 + 1e-5)).all()
    if bits == 4:
        assert ours.sum() < 0.8 * theirs.sum()
    signal = float(np.square(rows).sum())
    assert grid.error_db == pytest.approx(10 * np.log10(signal / ours.sum()), abs=0.01)


def test_four_bits_take_the_best_scale_of_a_fine_search() -> None:
    rows = rows_of(2, heads=1, size=4)
    grid = fit_grid(rows, np.abs(rows).max(axis=0), 4)
    for channel in range(4):
        column = rows[:, 0, channel]
        steps = np.linspace(0.02, 0.2, 400) * np.abs(column).max()
        every = [np.square(np.clip(np.rint(column / s), -8, 7) * s - column).sum() for s in (*steps, *-steps)]
        assert noise(rows, grid)[0, channel] <= 1.03 * min(every)


def test_one_scale_is_taken_where_channels_are_alike_and_only_if_asked() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((24, 2, 4)).astype(np.float32)
    peaks = np.abs(rows).max(axis=0)
    shared = fit_grid(rows, peaks, 4, tensor=True)
    assert shared.shared == "tensor" and np.unique(shared.scale).size == 1
    assert fit_grid(rows, peaks, 4).shared == "channel"
    wide = rows * np.array([0.01, 1, 5, 20], np.float32)
    assert fit_grid(wide, np.abs(wide).max(axis=0), 4, tensor=True).shared == "channel"


def test_a_channel_of_zeros_has_a_usable_scale() -> None:
    rows = np.zeros((5, 1, 2), np.float32)
    grid = fit_grid(rows, np.zeros((1, 2), np.float32), 8, tensor=True)
    assert np.isfinite(grid.scale).all() and (grid.scale != 0).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_keys_at_other_positions_are_those_of_the_rotary_embedding(interleaved: bool) -> None:
    pairs, size, positions = 3, 8, 50  # two channels are not turned
    angles = np.arange(positions)[:, None] * np.array([1.0, 0.2, 0.01])
    table = RotaryTable(np.cos(angles), np.sin(angles), interleaved)
    rows = np.random.default_rng(0).standard_normal((40, 2, size)).astype(np.float32)
    moved = at_other_positions(rows, table)
    np.testing.assert_array_equal(moved[..., 2 * pairs :], rows[..., 2 * pairs :])

    def as_numbers(array: np.ndarray) -> np.ndarray:
        turned = array[..., : 2 * pairs]
        return (
            turned[..., 0::2] + 1j * turned[..., 1::2]
            if interleaved
            else turned[..., :pairs] + 1j * turned[..., pairs:]
        )

    ratio = as_numbers(moved) / as_numbers(rows)
    np.testing.assert_allclose(np.abs(ratio), 1.0, atol=1e-4)
    by = np.angle(ratio[:, 0, 2]) / 0.01  # the slowest pair says the position
    np.testing.assert_allclose(by, by.round(), atol=0.05)
    assert by.min() >= 0.9 and by.max() <= positions - 1 + 0.1
    np.testing.assert_allclose(ratio, np.exp(1j * angles[by.round().astype(int)])[:, None].repeat(2, 1), atol=1e-3)
