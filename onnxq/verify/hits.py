"""How often the largest element is at the label."""

from __future__ import annotations

import numpy as np

from onnxq.core.dtypes import Array

_MANY = 10
"""Labels of which a model that was trained for them hits one at least."""


class Hits:
    """Counts how often the largest element is at the label."""

    def __init__(self, labels: Array) -> None:
        self._labels = labels.argmax(-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.reshape(-1)
        self._used = 0
        self._right = [0, 0]
        self._fits = True

    def add(self, expected: Array, got: Array) -> None:
        """Compare one batch of both models with its labels."""
        items = expected.shape[0]
        labels = self._labels[self._used : self._used + items]
        self._used += items
        scores = [array.reshape(items, -1) if array.ndim == 2 else array for array in (expected, got)]
        if len(labels) != items or any(array.ndim != 2 or array.shape[0] != items for array in scores):
            self._fits = False
            return
        for model, array in enumerate(scores):
            self._right[model] += int(np.count_nonzero(array.argmax(-1) == labels))

    @property
    def complete(self) -> bool:
        """Every batch had its labels, and none were left."""
        return self._fits and self._used == len(self._labels) > 0

    def doubts(self, classes: bool) -> list[str]:
        """What makes the labels doubtful.

        Args:
            classes: whether an output holds scores of classes.
        """
        if not classes or not self.complete:
            return ["labels: they do not match an output of class scores item by item, so accuracy is not given"]
        if self._used >= _MANY and not self._right[0]:
            return [f"labels: the float model hits none of {self._used}; are they its classes, numbered as it does?"]
        return []

    @property
    def accuracy(self) -> dict[str, float] | None:
        """Shares of hits of both models."""
        if not self.complete:
            return None
        return {"float": self._right[0] / self._used, "quantized": self._right[1] / self._used}
