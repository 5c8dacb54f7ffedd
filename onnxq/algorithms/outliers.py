"""LLM.int8(): which input channels of a layer are too large to share a grid with the others.

References:
    Dettmers et al., LLM.int8(), arXiv:2208.07339, section 3.2.
"""

from __future__ import annotations

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError

MAGNITUDE = 6.0
"""The paper's threshold: every feature that reached it in its models is systematic, and keeping these loses nothing."""


def outlier_channels(highest: Array, magnitude: float = MAGNITUDE) -> Array:
    """The channels whose magnitude reaches a threshold.

    Args:
        highest: (channels,), largest magnitude of each over the calibration samples.
        magnitude: the threshold, in units of the activation.

    Returns:
        int64, ascending; empty where there is none.

    Raises:
        RecipeError: the threshold is not positive.
    """
    if not magnitude > 0:
        raise RecipeError(f"--outliers: {magnitude} is no magnitude; {MAGNITUDE:g} is the usual choice")
    return np.flatnonzero(highest >= magnitude).astype(np.int64)


def without_rows(weight: Array, rows: Array, *, transposed: bool = False) -> Array:
    """A copy of a weight, (in, out), in which some input rows are zero; ``transposed``: (out, in)."""
    rest: Array = weight.copy()
    if transposed:
        rest[:, rows] = 0
    else:
        rest[rows] = 0
    return rest


__all__ = ["MAGNITUDE", "outlier_channels", "without_rows"]
