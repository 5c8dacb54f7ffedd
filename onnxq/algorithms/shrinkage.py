"""How much of a second moment from few samples is chance, and what is left of it without that."""

from __future__ import annotations

import numpy as np

from onnxq.algorithms.groups import row_slabs
from onnxq.core.dtypes import Array

MOSTLY_CHANCE = 0.5
"""Share of chance from which a shrunk second moment rounds weights better than the one that was seen. Below it the
samples show real correlations, even where they are fewer than the channels, and shrinking would blur these."""


def chance_in(moment: Array, rows: int) -> float:
    """Share ρ of ``(1 − ρ)·S + ρ·tr(S)/p·I`` that estimates the true second moment best, S being the one seen.

    Near 1 for few rows of channels that have little to do with each other, near 0 for many rows, and for rows in a
    subspace of few dimensions.

    Args:
        moment: floating point, (p, p), symmetric: a multiple of the sum of xxᵀ over the rows.
        rows: rows that were summed.

    References:
        Chen, Wiesel, Eldar, Hero, Shrinkage Algorithms for MMSE Covariance Estimation, arXiv:0907.4698, equation 23
        (the oracle approximating shrinkage estimator).
    """
    p, trace = moment.shape[0], float(np.trace(moment, dtype=np.float64))
    if rows < 1 or p < 2 or not trace > 0.0:
        return 0.0
    squares = 0.0
    for part in row_slabs(moment.shape):
        scaled = np.asarray(moment[part], np.float64) / trace
        squares += float(np.vdot(scaled, scaled))
    spread = (rows + 1 - 2 / p) * (squares - 1 / p)
    return 1.0 if spread <= 0.0 else min(1.0, ((1 - 2 / p) * squares + 1.0) / spread)


def shrunk(moment: Array, rows: int) -> Array:
    """The second moment, shrunk towards a multiple of the identity where most of what it shows is chance.

    Args:
        moment: floating point, (p, p), symmetric: a multiple of the sum of xxᵀ over the rows.
        rows: rows that were summed.

    Returns:
        ``moment`` itself where at most half of it is chance, else a new array.
    """
    share = chance_in(moment, rows)
    if share <= MOSTLY_CHANCE:
        return moment
    found = np.asarray(moment * moment.dtype.type(1.0 - share))
    found[np.diag_indices_from(found)] += share * float(np.trace(moment, dtype=np.float64)) / moment.shape[0]
    return found
