"""Which positions of a sample are padding, by the attention mask in the feed: what lies there should teach nothing."""

from __future__ import annotations

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed

_RANK = 2


def kept_positions(feed: Feed) -> Array | None:
    """The positions that are no padding.

    An attention mask is an input of (N, S) whose name ends in "mask", such as ``attention_mask`` or ``input_mask``, and
    whose elements are all 0 or 1, with 0 for padding. Names with "padding", whose masks mean the opposite, and masks
    that are all 0 do not count.

    Returns:
        bool, (N, S); None where no input is such a mask, or nothing is padding.
    """
    for name, array in feed.items():
        lowered = name.lower()
        if not lowered.endswith("mask") or "padding" in lowered or array.ndim != _RANK or array.size == 0:
            continue
        if array.dtype.kind not in "iubf":
            continue
        kept = array != 0
        if ((array == 1) == kept).all() and kept.any():
            return None if kept.all() else kept
    return None
