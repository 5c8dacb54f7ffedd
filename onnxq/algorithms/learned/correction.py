"""A weight corrected for what is wrong with its input already: layers before it are quantized, its target is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.gptq import damped
from onnxq.algorithms.learned.descent import RoundedWeight, refine_integers
from onnxq.algorithms.shrinkage import shrunk
from onnxq.core.dtypes import Array
from onnxq.core.spec import QTensor

DAMPINGS = (0.01, 0.1, 1.0)
"""What is tried as a share of the mean of the Hessian's diagonal."""

_ROWS = 512
"""Outputs by which it is judged how much of a correction holds on other samples, at most."""

_EXACT = 1024
"""Inputs up to which systems of equations are solved in double precision."""

_DAMPING = 0.01
_ROUNDS, _ENOUGH = 3, 0.02
"""Rounds of descent after GPTQ at most, and what the last one has to take from the error for another: at 4 bits the
first takes some 4 % and the second 1 %, and none after that half a percent."""


@dataclass(frozen=True, eq=False)
class Streams:
    """What a layer reads: x in the float model, x̂ in the one whose earlier layers are quantized.

    Attributes:
        moment: (in, in), Σ x̂x̂ᵀ.
        difference: (in, in), Σ (x − x̂)x̂ᵀ.
    """

    moment: Array
    difference: Array

    def with_rows_of(self, other: Streams) -> Streams:
        """The sums over the rows of both."""
        return Streams(self.moment + other.moment, self.difference + other.difference)


def correction(weights: Sequence[Array], fitted: Streams, held: Streams | None) -> Array:
    """What to add to a weight so that its outputs on x̂ come near to those of the float weight on x.

    ‖W·x − Ŵ·x̂‖² is, up to what no Ŵ changes, ‖(Ŵ − W·(1 + A))·x̂‖² with A = D·H⁻¹, H = Σ x̂x̂ᵀ, D = Σ (x − x̂)x̂ᵀ:
    rounding W·(1 + A) by H is rounding W by both streams. H is damped, and A is taken times a share: both are those
    that come nearest on rows that A was not fitted to. The best share of each damping is known, as the error is a
    parabola in it.

    Args:
        weights: (out, in), the layers that read the value.
        fitted: sums over the rows that A is fitted to.
        held: sums over other rows; None where there are none, and nothing is corrected then.

    Returns:
        float32, (in, in): a share of A, fitted to all rows; zeros where it makes nothing better.

    References:
        Li et al., GPTAQ, arXiv:2504.02692, whose objective is this one; solved here for all inputs at once.
    """
    inputs = fitted.moment.shape[0]
    nothing = np.zeros((inputs, inputs), np.float32)
    if held is None:
        return nothing
    rows = np.concatenate([weight[:: max(1, -(-len(weight) * len(weights) // _ROWS))] for weight in weights])
    rows = rows.astype(np.float64)
    pull, pulled = rows @ fitted.difference, rows @ held.difference
    best, share, chosen = 0.0, 0.0, DAMPINGS[0]
    for damping in DAMPINGS:
        step = _solved(fitted.moment, pull, damping)
        slope, bend = float(np.vdot(pulled, step)), float(np.vdot(step @ held.moment, step))
        if not bend > 0.0 or not np.isfinite(slope):
            continue
        length = min(max(slope / bend, 0.0), 1.0)
        gain = length * (2.0 * slope - length * bend)
        if gain > best:
            best, share, chosen = gain, length, damping
    if not share:
        return nothing
    every = fitted.with_rows_of(held)
    found = _solved(every.moment, every.difference, chosen)
    found *= share
    return found.astype(np.float32, copy=False)


def _solved(moment: Array, right: Array, damping: float) -> Array:
    """R·(H + λ)⁻¹.

    Of many inputs in single precision: the damping bounds the condition by a few hundred thousand, and directions that
    are inexact because of it are those in which there is next to no input.
    """
    dtype = np.float64 if len(moment) <= _EXACT else np.float32
    unit = float(np.trace(moment)) / len(moment) or 1.0  # single precision has no room for squares of small numbers
    raised, wanted = (np.multiply(array, 1.0 / unit, out=np.empty(array.shape, dtype), casting="same_kind")
                      for array in (moment, right))  # fmt: skip
    return np.asarray(np.linalg.solve(damped(raised, damping), wanted.T).T)


def refined(weight: Array, tensor: QTensor, moment: Array, rows: int) -> QTensor:
    """Better integers and scales for a weight that is rounded already, never worse by the moment.

    Args:
        weight: float32, (out, in).
        tensor: the weight, rounded.
        moment: (in, in), a multiple of the sum of xxᵀ over the rows.
        rows: rows that were summed.
    """
    if not weight.size:
        return tensor
    hessian = damped(np.array(shrunk(moment, rows), np.float32), _DAMPING)
    hessian *= len(hessian) / float(np.trace(hessian, dtype=np.float64))
    return refine_integers(RoundedWeight.of(tensor, weight), hessian, _ROUNDS, _ENOUGH).tensor()
