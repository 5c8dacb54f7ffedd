"""Which positions of a sample are padding, by the attention mask in the feed: what lies there should teach nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed

_RANK = 2


def is_mask_name(name: str) -> bool:
    """Whether an input of this name can be an attention mask: the name ends in "mask", but for numbers and marks.

    Names with "padding" are of masks that mean the opposite: 1 for what is to be left out.
    """
    lowered = name.lower()
    return re.search(r"mask[^a-z]*$", lowered) is not None and "padding" not in lowered


def mask_in(name: str, array: Array) -> Array | None:
    """The positions of an attention mask that hold tokens.

    An attention mask is an input of (N, S) such as ``attention_mask`` or ``input_mask`` (see `is_mask_name`) whose
    elements are all 0 or 1, with 0 for padding. One that is all 0 does not count.

    Returns:
        bool, (N, S), True where there is a token; None where the input is no such mask.
    """
    if not is_mask_name(name) or array.ndim != _RANK or array.dtype.kind not in "iubf":
        return None
    kept: Array = array != 0
    return kept if kept.any() and ((array == 1) == kept).all() else None


def kept_positions(feed: Feed) -> Array | None:
    """The positions that are no padding, by the first attention mask in the feed (see `mask_in`).

    Returns:
        bool, (N, S); None where no input is such a mask, or nothing is padding.
    """
    for name, array in feed.items():
        kept = mask_in(name, array)
        if kept is not None:
            return None if kept.all() else kept
    return None


def at_tokens(outputs: Sequence[Any], feed: Feed) -> list[Any]:
    """Outputs of a decoder with zeros at padding.

    Where all keys are hidden from a query, every form of attention gives something else, and nothing reads it.

    Args:
        outputs: (batch, length, …), and caches of (batch, heads, tokens, size); others stay as they are.
        feed: what they were made of.
    """
    kept = kept_positions(feed)
    if kept is None:
        return list(outputs)
    found = []
    for given in outputs:
        output = given
        if isinstance(output, np.ndarray) and output.ndim == 3 and output.shape[1] <= kept.shape[1]:
            new = kept[:, kept.shape[1] - output.shape[1] :]
            output = np.where(new[:, :, None], output, output.dtype.type(0)) if len(new) == len(output) else output
        elif isinstance(output, np.ndarray) and output.ndim == 4 and kept.shape == (output.shape[0], output.shape[2]):
            output = np.where(kept[:, None, :, None], output, output.dtype.type(0))
        found.append(output)
    return found
