"""GPTQ: round column by column, and let the columns to come make good for the error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.algorithms.grid import GridConfig, search_params
from onnxq.algorithms.groups import check_finite, check_layout, group_size, row_slabs
from onnxq.algorithms.shrinkage import shrunk
from onnxq.core.affine import to_storage
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

_LEAF = 32
_BLOCK, _SMALL = 512, 64


@dataclass(frozen=True)
class GPTQConfig:
    """How GPTQ works.

    Attributes:
        damping: added to the diagonal of the Hessian, as a share of its mean.
        act_order: round the inputs with the largest second moment first. The groups stay where they are, with grids
            fixed beforehand, so that no index of groups is stored; without it a block's grid is found when the block is
            reached, from the weight as corrected until then.
        grid: search of the ranges, with the error of each column counted as the objective counts it, 1/[H⁻¹]ᵢᵢ among
            the columns still to be rounded; None takes the extrema.
    """

    damping: float = 0.01
    act_order: bool = True
    grid: GridConfig | None = field(default_factory=GridConfig)

    def __post_init__(self) -> None:
        if not 0.0 <= self.damping <= 1.0:
            raise RecipeError(f"GPTQConfig: damping {self.damping} is outside 0 to 1; 0.01 is usual")


def check_hessian(hessian: Array, inputs: int, where: str) -> None:
    """Refuse a Hessian that no rounding can go by.

    Raises:
        CalibrationError: it has the wrong shape, is not finite, or has a negative diagonal.
    """
    if hessian.shape != (inputs, inputs):
        raise CalibrationError(
            f"{where}: a Hessian of shape {hessian.shape} does not fit a weight with {inputs} inputs; "
            f"it must be ({inputs}, {inputs})"
        )
    if not all(np.isfinite(hessian[rows]).all() for rows in row_slabs(hessian.shape)):
        raise CalibrationError(f"{where}: the Hessian holds NaN or infinite entries; check the calibration samples")
    if (np.diagonal(hessian) < 0.0).any():
        raise CalibrationError(
            f"{where}: the Hessian has a negative diagonal entry {np.diagonal(hessian).min():.3g}; second moments "
            "are never negative, collect it again"
        )


def damped(hessian: Array, damping: float) -> Array:
    """A Hessian whose diagonal is raised by a share of its mean; inputs that were always zero get the mean itself.

    Args:
        hessian: floating point, (in, in); changed in place.
        damping: share of the mean.
    """
    diagonal = np.einsum("ii->i", hessian)
    alive = diagonal > 0.0
    mean = float(diagonal[alive].mean()) if alive.any() else 1.0
    # nothing is known of a dead input, and nothing couples it to others: it is rounded to nearest
    diagonal[~alive] = mean
    diagonal += damping * mean
    return hessian


def cholesky_in_place(matrix: Array, block: int = _BLOCK) -> None:
    """The lower triangular L with LLᵀ = A, in the place of the lower triangle of A; what is above it is not touched.

    By columns in blocks, each a GEMM with all that is left of it, and inside a block once more. No copy of the matrix
    is made, which LAPACK through numpy makes two of; and LAPACK sees small matrices alone, on which its threads do not
    wait for each other.

    Args:
        matrix: float64, (n, n), symmetric positive definite; changed in place.
        block: columns of a block.

    Raises:
        np.linalg.LinAlgError: it is not positive definite.
    """
    count = matrix.shape[0]
    for start in range(0, count, block):
        stop = min(start + block, count)
        if start:
            matrix[start:, start:stop] -= matrix[start:, :start] @ matrix[start:stop, :start].T
        corner = matrix[start:stop, start:stop]
        if stop - start > _SMALL:
            cholesky_in_place(corner, _SMALL)
        else:
            corner[:] = np.linalg.cholesky(corner)
        if stop < count:
            matrix[stop:, start:stop] = matrix[stop:, start:stop] @ _inverse_lower(corner).T


def _inverse_lower(matrix: Array) -> Array:
    """Inverse of the lower triangle of a matrix, by halves."""
    count = matrix.shape[0]
    if count <= _SMALL:
        return np.asarray(np.linalg.inv(np.tril(matrix)))
    half = count // 2
    out = np.zeros_like(matrix)
    out[:half, :half] = _inverse_lower(matrix[:half, :half])
    out[half:, half:] = _inverse_lower(matrix[half:, half:])
    out[half:, :half] = -(out[half:, half:] @ matrix[half:, :half] @ out[:half, :half])
    return out


def _factor(hessian: Array, order: Array, damping: float) -> Array:
    """The upper triangular R with RRᵀ = H, H damped and in the given order; below its diagonal is anything.

    With the order of the inputs reversed it is the Cholesky factor.

    Raises:
        CalibrationError: H is not positive definite.
    """
    backwards = order[::-1]
    moments = np.empty(hessian.shape)
    for rows in row_slabs(hessian.shape):
        chosen = backwards[rows]
        moments[rows] = (hessian[chosen][:, backwards] + hessian[:, chosen].T[:, backwards]) * 0.5
    try:
        cholesky_in_place(damped(moments, damping))
    except np.linalg.LinAlgError:
        raise CalibrationError(
            f"gptq: the Hessian of {hessian.shape[0]} inputs is not positive definite after damping of {damping:g}; "
            "raise the damping (0.1 is a strong one) or calibrate on more samples"
        ) from None
    return moments[::-1, ::-1]


class _Sweep:
    """One pass over the columns. Arrays are (in, out): a column of the weight is a row here, contiguous.

    With H = ŨDŨᵀ, Ũ upper triangular with ones on the diagonal, the objective is Σ D_kk·‖E_k + Σ_{j<k} Ũ_jk·E_j‖²,
    E = W − Ŵ: each column is best rounded where what the earlier ones left is added to it first. This is GPTQ's update
    (QuIP, theorem 6), without the inverse of H.
    """

    def __init__(
        self, weight: Array, order: Array, factor: Array, spec: TensorSpec, config: GPTQConfig, given: QParams | None
    ) -> None:
        self.spec, self.grid = spec, config.grid
        self.factor = factor
        self.diagonal = np.diagonal(factor).copy()
        self.error = np.ascontiguousarray(weight.T[order], np.float32)
        self.carried = np.zeros_like(self.error)
        self.levels = np.empty(self.error.shape, np.int16)
        self.size = max(1, group_size(weight.shape, spec.granularity))
        self.group = order // self.size
        blocks = -(-weight.shape[1] // self.size)
        self.scale = np.ones((blocks, weight.shape[0]), np.float32)
        self.zero_point = np.zeros((blocks, weight.shape[0]), np.float32)
        whole = not isinstance(spec.granularity, PerBlock)
        self.fixed = whole or config.act_order or given is not None
        # what a squared error of each column costs in the objective
        importance = np.empty(weight.shape[1])
        importance[order] = self.diagonal**2
        self.importance = importance / np.max(importance, initial=1e-300)
        if self.fixed:
            params = given if given is not None else search_params(weight, spec, config.grid, self.importance)
            self.scale[:] = params.scale.T
            self.zero_point[:] = params.zero_point.astype(np.float32).T

    def _unit(self, rows: slice, columns: slice) -> Array:
        """A part of Ũ."""
        return np.asarray(self.factor[rows, columns] / self.diagonal[columns], np.float32)

    def run(self, start: int, stop: int) -> None:
        """Round columns [start, stop), to which every earlier column has added what it left.

        The range is halved until it is small; a finished half adds to the other in one GEMM. This is the lazy update
        of the paper at every block size at once. Blocks are never cut before they are reached, so that their grids
        see all corrections.
        """
        width = stop - start
        if width <= _LEAF and (self.fixed or width <= self.size):
            self._leaf(start, stop)
            return
        half = width // 2
        if not self.fixed and width > self.size:
            half = max(1, half // self.size) * self.size
        elif half > _LEAF:
            half = half // _LEAF * _LEAF
        middle = start + half
        self.run(start, middle)
        for first in range(middle, stop, _BLOCK):
            part = slice(first, min(first + _BLOCK, stop))
            self.carried[part] += self._unit(slice(start, middle), part).T @ self.error[start:middle]
        self.run(middle, stop)

    def _find_grid(self, start: int) -> None:
        """The grid of a block from what its columns would become if each could be rounded without any error."""
        part = slice(start, min(start + self.size, len(self.error)))
        within = np.triu(self._unit(part, part)).astype(np.float64)
        block = self.error[part] + np.linalg.solve(within.T, self.carried[part].astype(np.float64))
        block = np.ascontiguousarray(block.T, np.float32)
        params = search_params(block, self.spec, self.grid, self.importance[part])
        index = start // self.size
        self.scale[index] = params.scale[:, 0]
        self.zero_point[index] = params.zero_point[:, 0].astype(np.float32)

    def _leaf(self, start: int, stop: int) -> None:
        if not self.fixed and start % self.size == 0:
            self._find_grid(start)
        qmin, qmax = np.float32(self.spec.qmin), np.float32(self.spec.qmax)
        unit, error = self._unit(slice(start, stop), slice(start, stop)), self.error
        for column in range(start, stop):
            value = self.carried[column]
            if column > start:
                value += unit[: column - start, column - start] @ error[start:column]
            value += error[column]
            scale, zero_point = self.scale[self.group[column]], self.zero_point[self.group[column]]
            level = np.rint(value / scale)
            level += zero_point
            np.maximum(level, qmin, out=level)
            np.minimum(level, qmax, out=level)
            self.levels[column] = level
            level -= zero_point
            level *= scale
            error[column] -= level


def gptq(
    weight: Array, hessian: Array, spec: TensorSpec, config: GPTQConfig | None = None, params: QParams | None = None
) -> QTensor:
    """Quantize columns in order and push each column's error onto the later ones.

    Minimises ‖(W − Ŵ)X‖² with H ∝ XXᵀ, whose factor does not matter. H is factored in float64, once and in one copy;
    weights are corrected in float32.

    Args:
        weight: float32, (out, in).
        hessian: float64 or float32, (in, in), symmetric; second moments of the inputs.
        spec: the grid; `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`.
        config: see `GPTQConfig`; None takes the defaults.
        params: scales and zero points to keep, of rank 2; None searches them.

    Returns:
        QTensor; values (out, in), scale of rank 2. Inputs that were zero in every sample are rounded to nearest.

    Raises:
        CalibrationError: H is not finite, does not fit, or is not positive definite after damping.
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows.

    References:
        Frantar et al., GPTQ, arXiv:2210.17323, Algorithm 1, in the equivalent form of Chee et al., QuIP,
        arXiv:2307.13304, theorem 6.
    """
    config = config or GPTQConfig()
    weight = check_layout(weight, spec.granularity, "gptq")
    check_finite(weight, "gptq")
    check_hessian(hessian, weight.shape[1], "gptq")
    order = np.arange(weight.shape[1])
    if config.act_order:
        order = np.argsort(-np.diagonal(hessian), kind="stable")
    sweep = _Sweep(weight, order, _factor(hessian, order, config.damping), spec, config, params)
    if weight.size:
        sweep.run(0, weight.shape[1])
    levels = np.empty_like(sweep.levels)
    levels[order] = sweep.levels
    found = params if params is not None else _params(sweep, spec)
    return QTensor(to_storage(np.ascontiguousarray(levels.T), spec.dtype), found)


def _params(sweep: _Sweep, spec: TensorSpec) -> QParams:
    scale, zero_point = sweep.scale.T, sweep.zero_point.T
    if not isinstance(spec.granularity, PerBlock):
        rows = scale.shape[0] if hasattr(spec.granularity, "axis") else 1
        scale, zero_point = scale[:rows, :1], zero_point[:rows, :1]
    return QParams(
        spec, np.ascontiguousarray(scale, np.float32), to_storage(np.ascontiguousarray(zero_point), spec.dtype)
    )


def gptq_of_moment(weight: Array, spec: TensorSpec, moment: Array, rows: int) -> QTensor:
    """Quantize with `gptq`, by second moments of which what is chance is taken out (`onnxq.algorithms.shrinkage`).

    Args:
        weight: float32, (out, in).
        spec: as for `gptq`.
        moment: (in, in), a multiple of the sum of xxᵀ over the rows.
        rows: rows that were summed.

    Raises:
        CalibrationError: as for `gptq`.
    """
    return gptq(weight, shrunk(moment, rows), spec)


def gptq_by_group(weight: Array, hessian: Array, params: QParams, damping: float = GPTQConfig.damping) -> Array:
    """Quantize many small matrices at once, as the groups of a Conv are: `gptq` on grids that are fixed.

    Args:
        weight: float32, (groups, out, in).
        hessian: float64, (groups, in, in), symmetric; second moments of the inputs of each group.
        params: scale and zero point broadcast against the weight, such as (groups, out, 1).
        damping: as of `GPTQConfig`.

    Returns:
        (groups, out, in) in the storage type of the grid.

    Raises:
        CalibrationError: a Hessian is not finite, does not fit, or is not positive definite after damping.
        ModelError: the weight is not finite.
    """
    groups, outputs, inputs = weight.shape
    check_finite(weight.reshape(groups * outputs, inputs), "gptq")
    for group in range(groups):
        check_hessian(hessian[group], inputs, "gptq")
    spec = params.spec
    order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    factors = np.stack([_factor(hessian[g], order[g], damping) for g in range(groups)])
    unit = (factors / np.diagonal(factors, axis1=1, axis2=2)[:, None, :]).astype(np.float32)
    error = np.take_along_axis(weight.swapaxes(1, 2).astype(np.float32), order[:, :, None], axis=1)
    scale, zero = (
        np.broadcast_to(array.astype(np.float32), weight.shape)[:, :, 0] for array in (params.scale, params.zero_point)
    )
    levels = np.empty(error.shape, np.float32)
    for column in range(inputs):
        value = error[:, column] + np.einsum("gj,gjo->go", unit[:, :column, column], error[:, :column])
        levels[:, column] = np.clip(np.rint(value / scale) + zero, spec.qmin, spec.qmax)
        error[:, column] -= (levels[:, column] - zero) * scale
    found = np.empty_like(levels)
    np.put_along_axis(found, order[:, :, None], levels, axis=1)
    return to_storage(np.ascontiguousarray(found.swapaxes(1, 2)), spec.dtype)
