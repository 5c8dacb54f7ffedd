"""HQQ: choose the zero point by the shape of the error, without any data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.grid import GridConfig, search_params
from onnxq.algorithms.groups import check_finite, check_layout, group_size, join, row_slabs, rows_of, split
from onnxq.core.affine import to_storage
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError

_TINY = np.float32(1e-30)


@dataclass(frozen=True)
class HQQConfig:
    """How HQQ works. Errors are in steps of the grid, so that nothing depends on the size of the weights.

    Attributes:
        power: p of the ‖W − Ŵ‖ₚᵖ that is minimised; below 1, large errors count for little more than small ones.
        beta: weight of the quadratic term at the start.
        kappa: what beta is multiplied with after each iteration.
        iterations: how often outliers and zero point (or scale) are solved in turn.
        grid: search of the ranges that it starts from; None takes the extrema.
    """

    power: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20
    grid: GridConfig | None = None

    def __post_init__(self) -> None:
        if not (0.0 < self.power < 1.0 and self.beta > 0.0 and self.kappa >= 1.0 and self.iterations >= 1):
            raise RecipeError(
                f"HQQConfig: power {self.power}, beta {self.beta}, kappa {self.kappa}, iterations {self.iterations} "
                "do not converge; use a power between 0 and 1, a positive beta, kappa and iterations of 1 or more"
            )


def hqq(weight: Array, spec: TensorSpec, config: HQQConfig | None = None) -> QTensor:
    """Quantize a weight with the zero points (and scales) that half-quadratic splitting finds.

    Minimises ‖W − Ŵ‖ₚᵖ for p < 1 by solving in turn for the part of the error that is taken for outliers, by a
    generalised soft threshold, and for the zero point that removes the mean of the rest. On an affine grid the zero
    point is then rounded to an integer and the scale solved for; a symmetric grid has no zero point to choose, so
    there the scale is solved for alone.

    Args:
        weight: float32, (out, in).
        spec: the grid; `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`.
        config: see `HQQConfig`; None takes the defaults.

    Returns:
        QTensor; in no group is ‖W − Ŵ‖ₚᵖ above that of rounding to nearest on the starting grid.

    Raises:
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows.

    References:
        Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023.
    """
    config = config or HQQConfig()
    weight = check_layout(weight, spec.granularity, "hqq")
    check_finite(weight, "hqq")
    start = search_params(weight, spec, config.grid)
    scale = np.array(start.scale, np.float32)
    zero_point = np.array(start.zero_point.astype(np.float32))
    values = np.empty(weight.shape, spec.dtype.numpy)
    for rows, solver in _solvers(weight, start, config):
        if not spec.symmetric:
            solver.solve_zero_point()
            solver.round_zero_point()
        solver.solve_scale()
        values[rows] = solver.values()
        at = rows if scale.shape[0] > 1 else slice(None)
        scale[at] = solver.scale.reshape(scale[at].shape)
        zero_point[at] = solver.zero_point.reshape(zero_point[at].shape)
    return QTensor(values, QParams(spec, scale, to_storage(zero_point, spec.dtype)))


def _solvers(weight: Array, start: QParams, config: HQQConfig) -> Iterator[tuple[slice, _Solver]]:
    """A solver for each slab of rows; one for all rows where they share a scale."""
    if not weight.size:
        return
    whole = isinstance(start.spec.granularity, PerTensor)
    slabs = [slice(0, weight.shape[0])] if whole else row_slabs(weight.shape)
    for rows in slabs:
        yield rows, _Solver(weight[rows], rows_of(start, rows), config)


class _Solver:
    """Half-quadratic splitting over groups, each on its own; the best of every group is kept."""

    def __init__(self, weight: Array, start: QParams, config: HQQConfig) -> None:
        self.config, self.spec, self.shape = config, start.spec, weight.shape
        granularity = start.spec.granularity
        self.x = split(weight, granularity)
        self.count = np.full((self.x.shape[0], 1), self.x.shape[1], np.float32)
        size = group_size(weight.shape, granularity)
        if isinstance(granularity, PerBlock) and weight.shape[1] % size:
            blocks = -(-weight.shape[1] // size)
            self.count.reshape(-1, blocks)[:, -1] = weight.shape[1] % size
        self.scale = np.array(start.scale, np.float32).reshape(-1, 1)
        self.zero_point = start.zero_point.astype(np.float32).reshape(-1, 1)
        self.first = self.zero_point
        self.best = np.full(self.count.shape, np.inf, np.float32)

    def _round(self, scale: Array, zero_point: Array) -> tuple[Array, Array]:
        """(levels, error in steps); the filling of an uneven block has no error."""
        whole = self.x / scale
        levels = np.rint(whole + zero_point)
        np.clip(levels, self.spec.qmin, self.spec.qmax, out=levels)
        error = whole
        error -= levels
        error += zero_point
        self._clear(error)
        return levels, error

    def _clear(self, values: Array) -> None:
        size = self.x.shape[1]
        last = int(self.count.min())
        if last < size:
            uneven = (self.count < size).ravel()
            values[uneven, last:] = 0.0

    def _powers(self, error: Array) -> tuple[Array, Array]:
        """(|e|, |e|^p)."""
        magnitude = np.abs(error)
        power = np.log(np.maximum(magnitude, _TINY))
        power *= np.float32(self.config.power)
        np.exp(power, out=power)
        power[magnitude < _TINY] = 0.0
        return magnitude, power

    def _keep(self, scale: Array, zero_point: Array, loss: Array) -> None:
        better = loss < self.best
        self.best = np.where(better, loss, self.best)
        self.scale = np.where(better, scale, self.scale)
        self.zero_point = np.where(better, zero_point, self.zero_point)

    def _try(self, scale: Array, zero_point: Array, beta: float) -> tuple[Array, Array, Array]:
        """Round, keep what is better, and give (levels, error, the part of it taken for outliers)."""
        levels, error = self._round(scale, zero_point)
        magnitude, power = self._powers(error)
        loss = power.sum(axis=1, keepdims=True) * np.abs(scale) ** np.float32(self.config.power)
        self._keep(scale, zero_point, loss)
        shrunk = magnitude - power / (np.maximum(magnitude, _TINY) * np.float32(beta))
        np.maximum(shrunk, 0.0, out=shrunk)
        return levels, error, np.copysign(shrunk, error)

    def solve_zero_point(self) -> None:
        """Zero points, as floats, for the scales that are."""
        zero_point, beta = self.zero_point, self.config.beta
        for _ in range(self.config.iterations):
            _, error, outliers = self._try(self.scale, zero_point, beta)
            # x/s = q − z + outliers: the z that fits best is off by the mean of what the outliers leave
            change = np.sum(error - outliers, axis=1, keepdims=True) / self.count
            zero_point = zero_point - change
            beta *= self.config.kappa
            if np.abs(change).max() < 1e-4:
                break

    def round_zero_point(self) -> None:
        """The better of the two integers beside each zero point, unless the one it started from is better still."""
        below, above = np.floor(self.zero_point), np.ceil(self.zero_point)
        scale = self.scale
        self.best = np.full(self.count.shape, np.inf, np.float32)
        for candidate in (self.first, below, above):
            self._try(scale, np.clip(candidate, self.spec.qmin, self.spec.qmax), 1.0)

    def solve_scale(self) -> None:
        """Scales for the zero points that are."""
        scale, beta = self.scale, self.config.beta
        zero_point = self.zero_point
        for _ in range(self.config.iterations):
            levels, _, outliers = self._try(scale, zero_point, beta)
            levels -= zero_point
            self._clear(levels)
            target = self.x - outliers * scale
            squares = np.einsum("ge,ge->g", levels, levels)[:, None]
            fitted = np.einsum("ge,ge->g", target, levels)[:, None] / np.maximum(squares, _TINY)
            size = fitted * np.sign(scale)  # a mirrored grid stays mirrored
            usable = (squares > 0.0) & (size >= np.finfo(np.float32).tiny) & np.isfinite(size)
            following = np.where(usable, fitted, scale)
            beta *= self.config.kappa
            if np.array_equal(following, scale):
                break
            scale = following

    def values(self) -> Array:
        """The integers on the grids found, (out, in)."""
        levels, _ = self._round(self.scale, self.zero_point)
        return to_storage(join(levels, self.shape, self.spec.granularity), self.spec.dtype)
