"""Ranges searched for the smallest rounding error, instead of taken from the extrema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.groups import as_scale, check_layout, row_slabs, rows_of, split
from onnxq.core.affine import fake_quantize, params_from_range, quantize, reduce_range
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError


@dataclass(frozen=True)
class GridConfig:
    """How a range is searched.

    Attributes:
        steps: ranges tried below the full one, evenly spaced.
        smallest: share of the full range that the narrowest one keeps, 0 to 1.
        asymmetric: on an affine grid, afterwards also narrow each end alone.
        power: errors are counted as |error|^power; 2 is the mean squared error.
    """

    steps: int = 20
    smallest: float = 0.5
    asymmetric: bool = False
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 < self.smallest < 1.0 or self.power <= 0.0:
            raise RecipeError(
                f"GridConfig: steps {self.steps}, smallest {self.smallest}, power {self.power} make no search; "
                "use steps of 1 or more, smallest between 0 and 1, a positive power"
            )

    def ratios(self) -> list[float]:
        """Shares of the full range below 1, from the widest to the narrowest."""
        return [1.0 - (1.0 - self.smallest) * step / self.steps for step in range(1, self.steps + 1)]


def grid_error(weight: Array, params: QParams, importance: Array | None = None, power: float = 2.0) -> Array:
    """Sum over each group of importance · |Q(w) − w|^power.

    Works on slabs of rows: memory does not grow with the weight.

    Args:
        weight: float32, (out, in).
        params: its scale and zero point.
        importance: (in,), not negative; None counts all inputs alike.
        power: exponent of the error.

    Returns:
        float64, shape of the scale.
    """
    granularity = params.spec.granularity
    parts = []
    for rows in row_slabs(weight.shape):
        piece = weight[rows]
        error = fake_quantize(piece, rows_of(params, rows))
        np.subtract(error, piece, out=error)
        # an error beyond float32 is infinite, and its range is passed over
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if power == 2.0:
                np.multiply(error, error, out=error)
            else:
                np.power(np.abs(error, out=error), np.float32(power), out=error)
            if importance is not None:
                np.multiply(error, np.asarray(importance, np.float32), out=error)
        parts.append(np.einsum("ge->g", split(error, granularity)).astype(np.float64))
    if isinstance(granularity, PerTensor):
        parts = [np.sum(parts, axis=0)]
    return as_scale(np.concatenate(parts), weight.shape, granularity)


def search_range(
    weight: Array, spec: TensorSpec, config: GridConfig | None = None, importance: Array | None = None
) -> tuple[Array, Array]:
    """The range of each group whose grid has the smallest (weighted) error, the full range included.

    Args:
        weight: float32, (out, in).
        spec: the grid; `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`.
        config: the search; None takes the extrema.
        importance: (in,), not negative; None counts all inputs alike.

    Returns:
        (low, high), float32, shape of the scale; never with a larger error than the extrema.

    Raises:
        RecipeError: the groups do not lie along rows.

    References:
        Frantar et al., GPTQ, arXiv:2210.17323 (grids by MSE); Choukroun et al., Low-bit Quantization of Neural
        Networks for Efficient Inference, arXiv:1902.06822.
    """
    weight = check_layout(weight, spec.granularity, "search_range")
    if config is None:
        return reduce_range(weight, spec.granularity)
    power = config.power
    return search_by(weight, spec, config, lambda params: grid_error(weight, params, importance, power))


def search_by(
    weight: Array, spec: TensorSpec, config: GridConfig, error_of: Callable[[QParams], Array]
) -> tuple[Array, Array]:
    """The range of each group with the smallest error by any measure; see `search_range`.

    Args:
        weight: float32, (out, in).
        spec: the grid.
        config: which ranges are tried.
        error_of: the error of each group (shape of the scale) on a grid.
    """
    low, high = reduce_range(weight, spec.granularity)
    if weight.size == 0:
        return low, high
    best = error_of(params_from_range(low, high, spec))
    sides = [(True, True)]
    if config.asymmetric and not spec.symmetric:
        sides += [(True, False), (False, True)]
    for low_moves, high_moves in sides:
        from_low, from_high = low, high
        for ratio in config.ratios():
            share = np.float32(ratio)
            lows = from_low * share if low_moves else low
            highs = from_high * share if high_moves else high
            error = error_of(params_from_range(lows, highs, spec))
            better = error < best
            best = np.where(better, error, best)
            low, high = np.where(better, lows, low), np.where(better, highs, high)
    return low, high


def search_params(
    weight: Array, spec: TensorSpec, config: GridConfig | None = None, importance: Array | None = None
) -> QParams:
    """Scale and zero point of the range that `search_range` finds."""
    return params_from_range(*search_range(weight, spec, config, importance), spec)


def quantize_range(weight: Array, low: Array, high: Array, spec: TensorSpec) -> QTensor:
    """Quantize a weight on the grid of given ranges.

    Args:
        weight: float32, any shape.
        low: lower ends, shape of the scale.
        high: upper ends.
        spec: the grid.
    """
    params = params_from_range(low, high, spec)
    return QTensor(quantize(weight, params), params)
