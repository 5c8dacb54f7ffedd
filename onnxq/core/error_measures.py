"""How far a tensor is from its reference.

All measures are computed in float64. Where both tensors hold the same value, also the same infinity or NaN, they
agree; a value that is finite in the reference and not in the other is an infinite error.
"""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import VerificationError


def _pair(reference: Array, actual: Array) -> tuple[Array, Array]:
    """Both as flat float64, without the elements on which they agree in not being finite."""
    reference, actual = np.asarray(reference), np.asarray(actual)
    if reference.shape != actual.shape:
        raise VerificationError(
            f"compare: shapes {reference.shape} and {actual.shape} differ; the outputs must have one shape"
        )
    left, right = reference.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    finite = np.isfinite(left)
    if not finite.all():
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        right = np.where(finite | same, right, np.inf)
        keep = finite | ~same
        left, right = np.where(finite, left, 0.0)[keep], right[keep]
    return left, right


def _error(reference: Array, actual: Array) -> Array:
    error = np.abs(actual - reference)
    return np.where(np.isnan(error), np.inf, error)


def decibels(signal: float, noise: float) -> float:
    """10·log10(signal / noise) of two powers.

    Returns:
        +inf where there is no noise, −inf where there is some and no signal, or it is not finite.
    """
    if noise == 0.0:
        return math.inf
    if not (signal > 0.0 and math.isfinite(noise)):
        return -math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise))


def sqnr_db(reference: Array, actual: Array) -> float:
    """Signal to quantization noise ratio, 10·log10(Σ reference² / Σ (reference − actual)²), in dB.

    Returns:
        +inf where the tensors are equal, −inf where there is noise and no signal or the noise is not finite.

    Raises:
        VerificationError: the shapes differ.
    """
    left, right = _pair(reference, actual)
    peak = float(np.max(np.abs(left), initial=0.0))
    error = _error(left, right)
    worst = float(np.max(error, initial=0.0))
    if worst == 0.0:
        return math.inf
    if peak == 0.0 or not math.isfinite(worst):
        return -math.inf
    # squares of values scaled to their peak cannot overflow or vanish
    signal, noise = float(np.sum((left / peak) ** 2)), float(np.sum((error / worst) ** 2))
    return 10.0 * (math.log10(signal) - math.log10(noise)) + 20.0 * (math.log10(peak) - math.log10(worst))


def mse(reference: Array, actual: Array) -> float:
    """Mean squared error, units of the tensor squared; 0 for empty tensors, inf where an error is not finite."""
    error = _error(*_pair(reference, actual))
    with np.errstate(over="ignore", under="ignore"):
        return float(np.mean(error**2)) if error.size else 0.0


def cosine(reference: Array, actual: Array) -> float:
    """Cosine of the angle between the tensors as vectors.

    Returns:
        −1 to 1; 1 where they are equal, also when both are zero; 0 where one is zero or not finite.
    """
    left, right = _pair(reference, actual)
    if not np.isfinite(right).all():
        return 0.0
    peaks = float(np.max(np.abs(left), initial=0.0)), float(np.max(np.abs(right), initial=0.0))
    if 0.0 in peaks:
        return 1.0 if peaks == (0.0, 0.0) else 0.0
    left, right = left / peaks[0], right / peaks[1]
    value = float(np.dot(left, right)) / math.sqrt(float(np.dot(left, left)) * float(np.dot(right, right)))
    return min(1.0, max(-1.0, value))


def top1_agreement(reference: Array, actual: Array, axis: int = -1) -> float:
    """Share of positions at which both tensors have their largest element at the same place along ``axis``.

    A position at which only the actual tensor holds NaN disagrees.

    Returns:
        0 to 1; 1 for empty tensors.

    Raises:
        VerificationError: the shapes differ or the tensors have no such axis.
    """
    reference, actual = np.asarray(reference), np.asarray(actual)
    if reference.shape != actual.shape:
        raise VerificationError(
            f"top1_agreement: shapes {reference.shape} and {actual.shape} differ; the outputs must have one shape"
        )
    if not -reference.ndim <= axis < reference.ndim:
        raise VerificationError(f"top1_agreement: axis {axis} is outside outputs of rank {reference.ndim}")
    if reference.size == 0:
        return 1.0
    same = np.argmax(reference, axis) == np.argmax(actual, axis)
    if actual.dtype.kind == "f":
        same &= np.isnan(reference).any(axis) == np.isnan(actual).any(axis)
    return float(np.mean(same))
