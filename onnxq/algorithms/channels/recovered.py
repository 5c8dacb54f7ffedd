"""Find out by what factors channels were scaled, from weights before and after: equalization and its like, undone.

Where channels are divided by s between layers, a weight W becomes W·s_in / s_out. Factors are the least-squares gains
of rows and columns, of all layers together that write or read a channel; rounding is noise that averages out.

References:
    Nagel et al., arXiv:1906.04721, section 4.1, whose scales these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array

LEAST = 1.03
"""Factors that all lie closer to 1 than this are those of rounding: nothing was scaled."""

_SWEEPS = 24
"""Passes over all layers; each halves what neighbours disagree about."""

_ACROSS = 256
"""Inputs that a row's gain is taken over, and outputs that a column's is, evenly spaced."""


@dataclass(frozen=True, eq=False)
class ChangedWeight:
    """A layer's weight before and after.

    Attributes:
        before: (groups, outputs of each, inputs of each, kernel).
        after: likewise.
        outputs: int, (groups, outputs of each), numbers of the factors that its outputs were divided by; 0 is none.
        inputs: int, (groups, inputs of each), numbers of those of its inputs.
    """

    before: Array
    after: Array
    outputs: Array
    inputs: Array


@dataclass(frozen=True, eq=False)
class _Side:
    """Sums over the kernel, (groups, channels, across): of products, of squares before and after."""

    products: Array
    before: Array
    after: Array
    numbers: Array
    across: Array

    @classmethod
    def of(cls, link: ChangedWeight, *, rows: bool) -> _Side:
        arrays = [link.before, link.after]
        numbers, across = link.outputs, link.inputs
        if not rows:
            arrays, numbers, across = [np.swapaxes(a, 1, 2) for a in arrays], across, numbers
        chosen = np.unique(np.linspace(0, across.shape[1] - 1, min(across.shape[1], _ACROSS)).astype(int))
        before, after = (np.asarray(array[:, :, chosen], np.float32) for array in arrays)
        sums = [np.einsum("goik,goik->goi", a, b) for a, b in ((before, after), (before, before), (after, after))]
        return cls(sums[0], sums[1], sums[2], numbers, across[:, chosen])

    def gains(self, across: Array) -> tuple[Array, Array]:
        """(log of the gain, its precision) of each channel, where ``across`` are the factors along the other side."""
        factors = across[:, None, :]
        power = (self.before * np.square(factors)).sum(axis=2, dtype=np.float64)
        gain = (self.products * factors).sum(axis=2, dtype=np.float64) / np.where(power > 0, power, 1.0)
        heard = (power > 0) & (gain > 0)
        signal = np.square(gain) * power
        lost = np.maximum(self.after.sum(axis=2, dtype=np.float64) - signal, 1e-8 * signal)
        logs = np.log(np.where(heard, gain, 1.0))
        return logs, np.where(heard, signal / np.where(lost > 0, lost, 1.0) * self.before.shape[2], 0.0)


class _Mean:
    """A mean of logarithms by their precision, for each factor."""

    def __init__(self, count: int) -> None:
        self.sums, self.weights = np.zeros(count), np.zeros(count)

    def add(self, numbers: Array, logs: Array, weights: Array) -> None:
        np.add.at(self.sums, numbers.reshape(-1), (logs * weights).reshape(-1))
        np.add.at(self.weights, numbers.reshape(-1), weights.reshape(-1))

    def value(self, otherwise: Array) -> Array:
        known = self.weights > 0
        found = np.where(known, self.sums / np.where(known, self.weights, 1.0), otherwise)
        found[0] = 0.0
        return np.asarray(found)


def recovered_scales(links: Sequence[ChangedWeight], count: int) -> Array:
    """What the channels of each factor were divided by.

    Args:
        links: in the order of the graph.
        count: of the factors, number 0 included, which is 1.

    Returns:
        float64, (count,), positive; ones where nothing was scaled.
    """
    rows = [_Side.of(link, rows=True) for link in links]
    columns = [_Side.of(link, rows=False) for link in links]
    logs = np.zeros(count)
    first = _Mean(count)
    for row in rows:  # what was scaled by far is found on the way from the inputs
        found, weights = row.gains(np.exp(logs[row.across]))
        first.add(row.numbers, -found, weights)
        logs = first.value(logs)
    for _ in range(_SWEEPS):
        mean = _Mean(count)
        for row, column in zip(rows, columns, strict=True):
            found, weights = row.gains(np.exp(logs[row.across]))
            mean.add(row.numbers, -found, weights)
            found, weights = column.gains(np.exp(-logs[column.across]))
            mean.add(column.numbers, found, weights)
        logs = 0.5 * (logs + mean.value(logs))
    return np.exp(logs) if np.abs(logs).max(initial=0.0) > np.log(LEAST) else np.ones(count)
