"""The smallest element of each channel of inner values, over calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.graph.views.outputs import Model, with_outputs
from onnxq.runtime.session import session_of


def channel_minima(
    model: Model, axes: Mapping[str, int], feeds: Iterable[Feed], *, threads: int | None = None
) -> dict[str, Array]:
    """Run samples and keep the smallest element of each channel, in memory that does not depend on their number.

    Args:
        model: unchanged.
        axes: axis of the channels by name of the value.
        feeds: samples.
        threads: threads an operator may use.

    Returns:
        (channels,) by name; NaN where a channel held one.

    Raises:
        ModelError: the model cannot be run on a sample.
    """
    augmented = with_outputs(model, axes)
    names = augmented.outputs
    if not names:
        return {}
    session = session_of(augmented.model, threads=threads)
    found: dict[str, Array] = {}
    for feed in feeds:
        for name, array in zip(names, session.run(feed, names), strict=True):
            others = tuple(i for i in range(array.ndim) if i != axes[name] % array.ndim)
            low = array.min(axis=others) if array.size else None
            if low is not None:
                found[name] = low if name not in found else np.minimum(found[name], low)
    return found
