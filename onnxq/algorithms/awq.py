"""AWQ: scale up the inputs that matter before rounding, and clip ranges by the error of the output.

Both searches measure the output error from second moments, so that no sample is kept: for an error E of the weight,
the outputs' squared error over the samples is tr(E H Eᵀ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.algorithms.grid import GridConfig, grid_error, quantize_range, search_by, search_params
from onnxq.algorithms.groups import as_scale, check_finite, check_layout, group_size, row_slabs, rows_of
from onnxq.core.affine import fake_quantize
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

_SLAB = 1 << 21


@dataclass(frozen=True)
class AWQConfig:
    """How AWQ searches.

    Attributes:
        steps: exponents α tried, evenly from 0 (no scaling) to below 1.
        grid: search of the ranges while α is searched; None takes the extrema.
        clip: which ranges `awq_clip` tries.
    """

    steps: int = 20
    grid: GridConfig | None = None
    clip: GridConfig = field(default_factory=lambda: GridConfig(steps=10, smallest=0.5))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"AWQConfig: steps {self.steps} make no search; use 1 or more, 20 is usual")


def check_moments(values: Array, inputs: int, rank: int, where: str) -> Array:
    """Second moments (rank 2) or magnitudes (rank 1) of the inputs as float32.

    Raises:
        CalibrationError: the shape does not fit, or an entry is not finite.
    """
    word = "a Hessian" if rank == 2 else "magnitudes"
    if values.shape != (inputs,) * rank:
        raise CalibrationError(
            f"{where}: {word} of shape {values.shape} do not fit a weight with {inputs} inputs; "
            f"give shape {(inputs,) * rank}"
        )
    # only ratios matter, and float32 must hold their squares
    peak = float(np.max(np.abs(values), initial=0.0))
    if not np.isfinite(peak):
        raise CalibrationError(f"{where}: {word} hold NaN or infinite entries; check the calibration samples")
    return np.asarray(values / peak if peak > 0.0 else values, np.float32)


def output_loss(weight: Array, params: QParams, hessian: Array, inverse: Array | None = None) -> float:
    """tr(E H Eᵀ) of E = Q(W)·inverse − W·inverse, the squared error that rounding causes in the outputs.

    Args:
        weight: float32, (out, in), as it is rounded.
        params: its grid.
        hessian: float32, (in, in), symmetric.
        inverse: float32, (in,), what the inputs are multiplied with; None for ones.
    """
    total = 0.0
    for rows in row_slabs(weight.shape, _SLAB):
        error = fake_quantize(weight[rows], rows_of(params, rows))
        np.subtract(error, weight[rows], out=error)
        if inverse is not None:
            np.multiply(error, inverse, out=error)
        # an error beyond float32 makes the sum infinite or NaN, and the grid is passed over
        # EᵀE is a symmetric product, half the work of EH; tr(E H Eᵀ) is its inner product with H
        with np.errstate(over="ignore", invalid="ignore"):
            total += float(np.vdot(error.T @ error, hessian))
    return total


def scale_for(magnitude: Array, exponent: float) -> Array:
    """The scales magnitude^α, normalised so that the largest and the smallest are reciprocal.

    Args:
        magnitude: (in,), mean |x| of each input. Inputs that were always zero count as middling.
        exponent: α.

    Returns:
        float32, (in,), positive; at α = 0 all ones.
    """
    sizes = np.asarray(magnitude, np.float64)
    alive = sizes > 0.0
    if not alive.any():
        return np.ones(sizes.shape, np.float32)
    sizes = np.where(alive, sizes, np.median(sizes[alive]))
    scales = np.maximum(sizes / sizes.max(), 1e-8) ** exponent
    return np.asarray(scales / np.sqrt(scales.max() * scales.min()), np.float32)


def awq_scales(
    weights: Sequence[Array],
    hessian: Array,
    magnitude: Array,
    spec: TensorSpec,
    config: AWQConfig | None = None,
) -> Array:
    """The scales of the inputs that layers share: each is to quantize W·s, and its inputs are to be divided by s.

    Args:
        weights: float32, each (out, in); all layers that read the input.
        hessian: (in, in), second moments of the input, up to a factor.
        magnitude: (in,), mean |x| of each input.
        spec: the grid of every layer.
        config: see `AWQConfig`; None takes the defaults.

    Returns:
        float32, (in,), positive. The summed output error is never above that of all ones, which α = 0 gives.

    Raises:
        CalibrationError: the statistics do not fit the weights or are not finite.
        ModelError: a weight is not finite.
        RecipeError: the groups do not lie along rows, or there is no weight.

    References:
        Lin et al., AWQ, arXiv:2306.00978, section 3.2.
    """
    config = config or AWQConfig()
    if not weights:
        raise RecipeError("awq_scales: no weight was given; pass every layer that shares the input")
    weights = [check_layout(weight, spec.granularity, "awq_scales") for weight in weights]
    inputs = weights[0].shape[1]
    for weight in weights:
        check_finite(weight, "awq_scales")
        if weight.shape[1] != inputs:
            raise RecipeError(
                f"awq_scales: weights with {inputs} and {weight.shape[1]} inputs do not share an input; split the group"
            )
    moments = check_moments(hessian, inputs, 2, "awq_scales")
    magnitudes = check_moments(magnitude, inputs, 1, "awq_scales")
    best, least = np.ones(inputs, np.float32), np.inf
    for step in range(config.steps):
        scales = scale_for(magnitudes, step / config.steps)
        loss = 0.0
        for weight in weights:
            scaled = weight * scales
            params = search_params(scaled, spec, config.grid)
            loss += output_loss(scaled, params, moments, 1.0 / scales)
        if loss < least:
            best, least = scales, loss
    return best


def awq_clip(weight: Array, statistic: Array, spec: TensorSpec, config: AWQConfig | None = None) -> tuple[Array, Array]:
    """The range of each group with the smallest output error, its own inputs taken alone.

    Args:
        weight: float32, (out, in), after scaling.
        statistic: second moments (in, in) of the inputs, after scaling, or their magnitudes (in,), which leaves their
            correlation out of account.
        spec: the grid.
        config: see `AWQConfig`; None takes the defaults.

    Returns:
        (low, high), shape of the scale, for `quantize_range`.

    Raises:
        CalibrationError: the statistic does not fit the weight or is not finite.
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows.

    References:
        Lin et al., AWQ, arXiv:2306.00978 (weight clipping, in the authors' implementation).
    """
    config = config or AWQConfig()
    weight = check_layout(weight, spec.granularity, "awq_clip")
    check_finite(weight, "awq_clip")
    moments = check_moments(statistic, weight.shape[1], 1 if statistic.ndim == 1 else 2, "awq_clip")
    if moments.ndim == 1:
        squares = moments * moments
        return search_by(weight, spec, config.clip, lambda params: grid_error(weight, params, squares))
    blocks = _diagonal_blocks(moments, group_size(weight.shape, spec.granularity))
    return search_by(weight, spec, config.clip, lambda params: _group_loss(weight, params, blocks))


def clipped(weight: Array, spec: TensorSpec, moment: Array, rows: int) -> QTensor:
    """Quantize a weight on ranges clipped by `awq_clip`: the second half of AWQ, whose scales are in it already.

    Args:
        weight: float32, (out, in), its inputs scaled.
        spec: the grid.
        moment: (in, in), a multiple of the sum of xxᵀ over the rows of the scaled input.
        rows: rows that were summed.
    """
    del rows
    return quantize_range(weight, *awq_clip(weight, moment, spec), spec)


def _diagonal_blocks(moments: Array, size: int) -> Array:
    """(blocks, size, size) along the diagonal of (in, in); the filling of an uneven last block is 0."""
    inputs = moments.shape[0]
    count = -(-inputs // size) if size else 0
    out = np.zeros((count, size, size), np.float32)
    for index in range(count):
        part = moments[index * size : (index + 1) * size, index * size : (index + 1) * size]
        out[index, : part.shape[0], : part.shape[1]] = part
    return out


def _group_loss(weight: Array, params: QParams, blocks: Array) -> Array:
    """E H eᵀ of each group's error e, in the shape of the scale."""
    count, size, _ = blocks.shape
    granularity = params.spec.granularity
    parts = []
    for rows in row_slabs(weight.shape, _SLAB):
        error = fake_quantize(weight[rows], rows_of(params, rows))
        np.subtract(error, weight[rows], out=error)
        if isinstance(granularity, PerBlock) and error.shape[1] % size:
            error = np.pad(error, ((0, 0), (0, -error.shape[1] % size)))
        cut = error.reshape(-1, count, size).transpose(1, 0, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            parts.append(np.einsum("brs,brs->rb", cut @ blocks, cut).astype(np.float64))
    losses = np.concatenate(parts)
    if isinstance(granularity, PerTensor):
        losses = losses.sum(keepdims=True)
    return as_scale(losses, weight.shape, granularity)
