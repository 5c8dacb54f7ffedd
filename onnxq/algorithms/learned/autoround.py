"""SignRound: learn how each weight is rounded, and how far each range reaches, by the signs of gradients.

With E = Ŵ − W the squared error of the layer's output is tr(E H Eᵀ), H the second moment of its inputs, so that its
gradient by Ŵ is 2·E·H: the samples are needed no more once H is there. Rows are learned independently, and each keeps
the best that it had.

Where inputs are strongly correlated, the best integer is often not one of the two neighbours that SignRound chooses
from. What it finds is therefore compared, row by row, with what GPTQ finds, and the better one is improved one integer
at a time, in turn with the scales, which have a closed form. Neither can make the error larger.

References:
    Cheng et al., Optimize Weight Rounding via Signed Gradient Descent, arXiv:2309.05516, algorithm 1; Behdin et al.,
    QuantEase, arXiv:2309.01885, section 3 (coordinate descent over the integers of a layer).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.gptq import check_hessian, damped, gptq
from onnxq.algorithms.groups import check_finite, check_layout, group_size
from onnxq.algorithms.learned.descent import RoundedWeight, refine_integers
from onnxq.algorithms.shrinkage import shrunk
from onnxq.core.affine import expand_blocks, params_from_range, reduce_range
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError


@dataclass(frozen=True)
class AutoRoundConfig:
    """How SignRound learns.

    Attributes:
        iterations: steps; 0 rounds to nearest.
        rate: length of the first step, in steps of the grid for roundings and as a share for ranges; it falls to zero
            along a line. None takes 1 ÷ iterations, with which a rounding can just get from one end to the other.
        narrowest: share of its extrema that a range keeps at least.
        damping: added to the diagonal of H, as a share of its mean.
        rounds: passes of coordinate descent and scales afterwards, over the better of this and GPTQ; 0 for SignRound
            alone.
    """

    iterations: int = 200
    rate: float | None = None
    narrowest: float = 0.5
    damping: float = 0.01
    rounds: int = 6

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.rounds < 0 or not 0.0 < self.narrowest <= 1.0:
            raise RecipeError(
                f"AutoRoundConfig: iterations {self.iterations}, rounds {self.rounds}, narrowest {self.narrowest} make "
                "no search; use 0 or more of both, and a share above 0; 200, 6 and 0.5 are usual"
            )


def autoround(weight: Array, moment: Array, spec: TensorSpec, config: AutoRoundConfig | None = None) -> QTensor:
    """Quantize a weight with learned roundings and ranges.

    Args:
        weight: float32, (out, in).
        moment: floating point, (in, in), symmetric: a multiple of E[xxᵀ].
        spec: the grid; `PerBlock` along axis 1, `PerAxis` 0 or `PerTensor`.
        config: see `AutoRoundConfig`; None takes the defaults.

    Returns:
        QTensor; values (out, in), scale of rank 2. Its output error is at most that of rounding to nearest and, unless
        ``rounds`` is 0, at most that of GPTQ, up to damping.

    Raises:
        CalibrationError: the moment does not fit or is not finite.
        ModelError: the weight is not finite.
        RecipeError: the groups do not lie along rows.
    """
    config = config or AutoRoundConfig()
    weight = check_layout(weight, spec.granularity, "autoround")
    check_finite(weight, "autoround")
    check_hessian(moment, weight.shape[1], "autoround")
    if not weight.size:
        return QTensor(np.empty(weight.shape, spec.dtype.numpy), params_from_range(*_extrema(weight, spec), spec))
    raised = damped(np.array((moment + moment.T) * 0.5, np.float64), config.damping)
    hessian = (raised * (len(raised) / np.trace(raised))).astype(np.float32)
    found = _sign_round(weight, hessian, spec, config)
    if not config.rounds:
        return found.tensor()
    try:
        other = RoundedWeight.of(gptq(weight, moment, spec), weight)
        found, _ = found.better(other, found.pull(hessian)[1], other.pull(hessian)[1])
    except CalibrationError:
        pass  # H has no factor: what has been learned stands alone
    return refine_integers(found, hessian, config.rounds).tensor()


def _extrema(weight: Array, spec: TensorSpec) -> tuple[Array, Array]:
    low, high = reduce_range(weight, spec.granularity)
    return np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))


def _sign_round(weight: Array, hessian: Array, spec: TensorSpec, config: AutoRoundConfig) -> RoundedWeight:
    """Algorithm 1 of the paper on the layer's own objective: the best of all iterations, row by row."""
    low, high = _extrema(weight, spec)
    offset = np.zeros_like(weight)
    above, below = np.ones_like(high), np.ones_like(low)
    first = config.rate if config.rate is not None else 1.0 / max(config.iterations, 1)
    best, least = None, np.array([np.inf])
    for iteration in range(config.iterations + 1):
        params = params_from_range(low * below, high * above, spec)
        scale, zero = (_spread(array, weight.shape, spec) for array in (params.scale, params.zero_point))
        with np.errstate(over="ignore", invalid="ignore"):
            raw = np.rint(weight / scale + offset) + zero
        now = RoundedWeight(weight, params, np.clip(raw, spec.qmin, spec.qmax))
        gradient, errors = now.pull(hessian)
        best, least = (now, errors) if best is None else best.better(now, least, errors)
        if iteration == config.iterations:
            break
        step = np.float32(first * (1.0 - iteration / config.iterations))
        inside = (raw >= spec.qmin) & (raw <= spec.qmax)
        by_scale = gradient * (now.levels - zero - np.where(inside, weight / scale, 0.0))
        by_zero = np.where(inside, 0.0, -scale * gradient)
        offset = np.clip(offset - step * np.sign(gradient * scale * inside), -0.5, 0.5).astype(np.float32)
        slopes = _by_ends(_summed(by_scale, spec), _summed(by_zero, spec), params, low * below, (low, high))
        below = np.clip(below - step * np.sign(slopes[0]), config.narrowest, 1.0)
        above = np.clip(above - step * np.sign(slopes[1]), config.narrowest, 1.0)
    assert best is not None
    return best


def _by_ends(
    by_scale: Array, by_zero: Array, params: QParams, low: Array, ends: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Gradients by the shares of the lower and of the upper end, from those by scale and zero point.

    An affine grid has scale = (high − low) / steps and zero point = qmin − low / scale, rounded straight through. A
    symmetric one has a scale that goes with both ends, which then share one factor.
    """
    spec = params.spec
    if spec.symmetric:
        both = by_scale * params.scale
        return both, both
    steps = float(spec.qmax - spec.qmin)
    scale = params.scale.astype(np.float64)
    wider = by_scale + by_zero * low / scale**2  # what a larger scale does, the zero point that follows included
    return (-wider / steps - by_zero / scale) * ends[0], wider / steps * ends[1]


def _summed(values: Array, spec: TensorSpec) -> Array:
    """Sums over the elements that share a scale, in the shape of the scale."""
    if isinstance(spec.granularity, PerTensor):
        return np.asarray(values.sum(keepdims=True))
    size = group_size(values.shape, spec.granularity)
    return np.asarray(np.add.reduceat(values, np.arange(0, values.shape[1], size), axis=1))


def _spread(parameter: Array, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    size = spec.granularity.size if isinstance(spec.granularity, PerBlock) else None
    return np.asarray(expand_blocks(parameter, shape, size), np.float32)


def autoround_of_moment(weight: Array, spec: TensorSpec, moment: Array, rows: int) -> QTensor:
    """Quantize with `autoround`, by second moments of which what is chance is taken out (`onnxq.algorithms.shrinkage`).

    Args:
        weight: float32, (out, in).
        spec: as for `autoround`.
        moment: (in, in), a multiple of the sum of xxᵀ over the rows.
        rows: rows that were summed.

    Raises:
        CalibrationError: as for `autoround`.
    """
    return autoround(weight, shrunk(moment, rows), spec)
