"""Padding tokens: positions that a mask among the inputs takes out of the model's sight stay out of the statistics.

Sentences of a batch are filled up to one length with tokens that mean nothing, and a mask says which those are. What
the model computes at their positions goes nowhere, but would widen the ranges of everything it passes on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.attention_mask import is_mask_name, mask_in
from onnxq.data.feeds import Feed
from onnxq.graph import walk
from onnxq.graph.types import Model


@dataclass(frozen=True)
class Masks:
    """The inputs of a model that can be masks of tokens.

    Attributes:
        fixed: by name, whether the second axis has one length whatever the sample.
        dims: lengths of each value's axes as far as the model fixes them; empty where there is no such input.
    """

    fixed: dict[str, bool]
    dims: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> Masks:
        """Inputs that are named as masks and hold one number for each of (N, S)."""
        fixed = {}
        for value in model.graph.inputs:
            dims = walk.dims(value)
            if value.name and is_mask_name(value.name) and dims is not None and len(dims) == 2:
                fixed[value.name] = dims[1] is not None
        if not fixed:
            return cls({})
        known = ((value.name or "", walk.dims(value)) for value in walk.all_values(model.graph))
        return cls(fixed, {name: dims for name, dims in known if dims is not None})

    def in_feed(self, feed: Feed) -> Padding:
        """What a feed masks: arrays of zeros and ones, as opposed to numbers that are added to logits."""
        found = []
        for name in self.fixed:
            array = feed.get(name)
            mask = None if array is None else mask_in(name, array)
            if mask is not None:
                found.append((name, mask))
        return Padding(self, tuple(found))


@dataclass(frozen=True)
class Padding:
    """The masks of one feed.

    Attributes:
        masks: the inputs they come from.
        arrays: (name, bool (N, S)) of each; True where there is a token.
    """

    masks: Masks
    arrays: tuple[tuple[str, Array], ...]

    def tokens(self, name: str, array: Array) -> Array:
        """The elements of an array that belong to tokens.

        Positions are looked for along the one axis behind the first that is as long as the mask; where several are, or
        none, or where masks disagree, the array comes back as it is. So does one whose axis has a fixed length in the
        model while the mask's varies: it only happens to be as long.

        Args:
            name: of the value.
            array: (N, …, S, …), of three axes at least.

        Returns:
            The array itself, or (tokens, …) without the padding.
        """
        if array.ndim < 3 or not self.arrays:
            return array
        dims = self.masks.dims.get(name, ())
        chosen: tuple[int, Array] | None = None
        for input_name, mask in self.arrays:
            items, length = mask.shape
            axes = [axis for axis in range(1, array.ndim) if array.shape[axis] == length]
            if array.shape[0] != items or len(axes) != 1:
                continue
            if not self.masks.fixed[input_name] and len(dims) == array.ndim and dims[axes[0]] is not None:
                continue
            if chosen is not None and not np.array_equal(chosen[1], mask):
                return array
            chosen = (axes[0], mask)
        if chosen is None or chosen[1].all():
            return array
        axis, mask = chosen
        return np.moveaxis(array, axis, 1)[mask]

    def rows(self, name: str, array: Array) -> Array:
        """The same, where an array of (N · S, channels) has a row for each position too."""
        masks = [mask for _, mask in self.arrays if array.ndim == 2 and mask.size == len(array) > len(mask)]
        if len(masks) == 1:
            return array[masks[0].reshape(-1)]
        return self.tokens(name, array)
