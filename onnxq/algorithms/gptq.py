"""GPTQ: round column by column, and let the columns to come make good for the error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.algorithms.grid import GridConfig, search_params
from onnxq.algorithms.groups import check_finite, check_layout, group_size
from onnxq.core.affine import to_storage
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

_LEAF = 32


@dataclass(frozen=True)
class GPTQConfig:
    """How GPTQ works.

    Attributes:
        damping: added to the diagonal of the Hessian, as a share of its mean.
        act_order: round the inputs with the largest second moment first. The groups stay where they are, with grids
            fixed beforehand, so that no index of groups is stored.
        static_groups: fix the grids of blocks beforehand, from the weight as given; without it a block's grid is
            found when the block is reached, from the weight as corrected until then.
        grid: search of the ranges, with the error of each column counted as the objective counts it, 1/[H⁻¹]ᵢᵢ among
            the columns still to be rounded; None takes the extrema.
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = False
    grid: GridConfig | None = field(default_factory=GridConfig)

    def __post_init__(self) -> None:
        if not 0.0 <= self.damping <= 1.0:
            raise RecipeError(f"GPTQConfig: damping {self.damping} is outside 0 to 1; 0.01 is usual")


def check_hessian(hessian: Array, inputs: int, where: str) -> Array:
    """A Hessian as symmetric float64, in a copy.

    Raises:
        CalibrationError: it has the wrong shape, is not finite, or has a negative diagonal.
    """
    if hessian.shape != (inputs, inputs):
        raise CalibrationError(
            f"{where}: a Hessian of shape {hessian.shape} does not fit a weight with {inputs} inputs; "
            f"it must be ({inputs}, {inputs})"
        )
    doubled = np.asarray(hessian, np.float64)
    symmetric = np.asarray((doubled + doubled.T) * 0.5)
    if not np.isfinite(symmetric).all():
        raise CalibrationError(f"{where}: the Hessian holds NaN or infinite entries; check the calibration samples")
    if (np.diagonal(symmetric) < 0.0).any():
        raise CalibrationError(
            f"{where}: the Hessian has a negative diagonal entry {np.diagonal(symmetric).min():.3g}; second moments "
            "are never negative, collect it again"
        )
    return symmetric


def damped(hessian: Array, damping: float) -> Array:
    """A Hessian whose diagonal is raised by a share of its mean; inputs that were always zero get the mean itself.

    Args:
        hessian: float64, (in, in); changed in place.
        damping: share of the mean.
    """
    diagonal = np.einsum("ii->i", hessian)
    alive = diagonal > 0.0
    mean = float(diagonal[alive].mean()) if alive.any() else 1.0
    # nothing is known of a dead input, and nothing couples it to others: it is rounded to nearest
    diagonal[~alive] = mean
    diagonal += damping * mean
    return hessian


def inverse_factor(hessian: Array, damping: float, where: str = "gptq") -> Array:
    """The upper triangular U with UᵀU = H⁻¹.

    H is never inverted: with the order of the inputs reversed, the Cholesky factor of H is an upper triangular R with
    RRᵀ = H, and U is R⁻¹.

    Args:
        hessian: float64, (in, in), positive definite.
        damping: that was added, for the message.
        where: name of the caller, for the message.

    Raises:
        CalibrationError: H is not positive definite.
    """
    try:
        lower = np.linalg.cholesky(hessian[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise CalibrationError(
            f"{where}: the Hessian of {hessian.shape[0]} inputs is not positive definite after damping of {damping:g}; "
            "raise the damping (0.1 is a strong one) or calibrate on more samples"
        ) from None
    return _inverse_upper(np.ascontiguousarray(lower[::-1, ::-1]))


def _inverse_upper(matrix: Array) -> Array:
    """Inverse of an upper triangular matrix by halves: a sixth of the work of a general inverse, nearly all in GEMM."""
    count = matrix.shape[0]
    if count <= 64:
        return np.asarray(np.triu(np.linalg.inv(matrix))) if count else matrix
    half = count // 2
    out = np.zeros_like(matrix)
    out[:half, :half] = _inverse_upper(matrix[:half, :half])
    out[half:, half:] = _inverse_upper(matrix[half:, half:])
    out[:half, half:] = -(out[:half, :half] @ matrix[:half, half:] @ out[half:, half:])
    return out


class _Sweep:
    """One pass over the columns. Arrays are (in, out): a column of the weight is a row here, contiguous."""

    def __init__(self, weight: Array, order: Array, upper: Array, spec: TensorSpec, config: GPTQConfig) -> None:
        self.spec, self.grid = spec, config.grid
        self.upper = upper
        self.work = np.ascontiguousarray(weight.T[order], np.float64)
        self.error = np.empty_like(self.work)
        self.levels = np.empty(self.work.shape, np.int16)
        self.size = max(1, group_size(weight.shape, spec.granularity))
        self.group = order // self.size
        blocks = -(-weight.shape[1] // self.size)
        self.scale = np.ones((blocks, weight.shape[0]))
        self.zero_point = np.zeros((blocks, weight.shape[0]))
        whole = not isinstance(spec.granularity, PerBlock)
        self.fixed = whole or config.static_groups or config.act_order
        # what a squared error of each column costs in the objective
        importance = np.empty(weight.shape[1])
        importance[order] = 1.0 / np.diagonal(upper) ** 2
        self.importance = importance / np.max(importance, initial=1e-300)
        if self.fixed:
            params = search_params(weight, spec, config.grid, self.importance)
            self.scale[:] = params.scale.T
            self.zero_point[:] = params.zero_point.astype(np.float64).T

    def run(self, start: int, stop: int) -> None:
        """Round columns [start, stop), which every earlier column has corrected.

        The range is halved until it is small; a finished half corrects the other in one GEMM. This is the lazy update
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
        self.work[middle:stop] -= self.upper[start:middle, middle:stop].T @ self.error[start:middle]
        self.run(middle, stop)

    def _find_grid(self, start: int) -> None:
        block = np.ascontiguousarray(self.work[start : start + self.size].T, np.float32)
        importance = self.importance[start : start + self.size]
        params = search_params(block, self.spec, self.grid, importance)
        index = start // self.size
        self.scale[index] = params.scale[:, 0]
        self.zero_point[index] = params.zero_point[:, 0].astype(np.float64)

    def _leaf(self, start: int, stop: int) -> None:
        if not self.fixed and start % self.size == 0:
            self._find_grid(start)
        qmin, qmax = float(self.spec.qmin), float(self.spec.qmax)
        upper, error = self.upper, self.error
        for column in range(start, stop):
            value = self.work[column]
            if column > start:
                value = value - upper[start:column, column] @ error[start:column]
            scale, zero_point = self.scale[self.group[column]], self.zero_point[self.group[column]]
            level = np.rint(value / scale)
            level += zero_point
            np.maximum(level, qmin, out=level)
            np.minimum(level, qmax, out=level)
            self.levels[column] = level
            level -= zero_point
            level *= scale
            np.subtract(value, level, out=error[column])
            error[column] /= upper[column, column]


def gptq(weight: Array, hessian: Array, spec: TensorSpec, config: GPTQConfig | None = None) -> QTensor:
    """Quantize columns in order and push each column's error onto the later ones.

    Minimises ‖(W − Ŵ)X‖² with H ∝ XXᵀ, whose factor does not matter. Worked in float64.

    Args:
        weight: float32, (out, in).
        hessian: float64 or float32, (in, in), symmetric; second moments of the inputs.
        spec: the grid; `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`.
        config: see `GPTQConfig`; None takes the defaults.

    Returns:
        QTensor; values (out, in), scale of rank 2. Inputs that were zero in every sample are rounded to nearest.

    Raises:
        CalibrationError: H is not finite, does not fit, or is not positive definite after damping.
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows.

    References:
        Frantar et al., GPTQ, arXiv:2210.17323, Algorithm 1.
    """
    config = config or GPTQConfig()
    weight = check_layout(weight, spec.granularity, "gptq")
    check_finite(weight, "gptq")
    moments = check_hessian(hessian, weight.shape[1], "gptq")
    order = np.arange(weight.shape[1])
    if config.act_order:
        order = np.argsort(-np.diagonal(moments), kind="stable")
        moments = moments[order][:, order]
    upper = inverse_factor(damped(moments, config.damping), config.damping)
    sweep = _Sweep(weight, order, upper, spec, config)
    if weight.size:
        sweep.run(0, weight.shape[1])
    levels = np.empty_like(sweep.levels)
    levels[order] = sweep.levels
    params = _params(sweep, spec)
    return QTensor(to_storage(np.ascontiguousarray(levels.T), spec.dtype), params)


def _params(sweep: _Sweep, spec: TensorSpec) -> QParams:
    scale, zero_point = sweep.scale.T, sweep.zero_point.T
    if not isinstance(spec.granularity, PerBlock):
        rows = scale.shape[0] if hasattr(spec.granularity, "axis") else 1
        scale, zero_point = scale[:rows, :1], zero_point[:rows, :1]
    return QParams(
        spec, np.ascontiguousarray(scale, np.float32), to_storage(np.ascontiguousarray(zero_point), spec.dtype)
    )
