"""Sums over samples from which spreads, errors and their certainty follow; memory does not depend on how many."""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array


class Noise:
    """Mean square of errors, and how well so many samples tell it: errors of one sample depend on each other."""

    def __init__(self) -> None:
        self.samples = 0
        self._sum, self._count = 0.0, 0
        self._squares, self._products, self._counts = 0.0, 0.0, 0.0
        self._unseen, self._first = 0.0, 0

    def add(self, error: Array) -> None:
        """Add the errors of one sample."""
        found = float(np.vdot(error, error))
        self.samples += 1
        self._sum += found
        self._count += error.size
        self._squares += found * found
        self._products += found * error.size
        self._counts += float(error.size) ** 2

    def others_follow(self) -> None:
        """Samples from here on made the ranges; their errors are not to hide those of the others."""
        self._unseen, self._first = self._mean, self.samples

    @property
    def mean(self) -> float:
        """Mean square; of the samples that made no ranges if that is larger by two standard errors."""
        if not self._first or self.samples <= self._first:
            return self._mean
        apart = self.uncertainty * self._mean * math.sqrt(self.samples / self._first)
        return max(self._mean, self._unseen - 2 * apart)

    @property
    def _mean(self) -> float:
        return self._sum / max(self._count, 1)

    @property
    def uncertainty(self) -> float:
        """Standard error of the mean square, as a share of it, from its differences between samples; 0 of one sample.

        That of a ratio of two sums (Cochran 1977, section 6.3): samples may differ in length.
        """
        if self.samples < 2 or not 0.0 < self._sum < math.inf:
            return 0.0
        mean = self._mean
        apart = self._squares - 2 * mean * self._products + mean * mean * self._counts
        return math.sqrt(max(apart, 0.0) * self.samples / (self.samples - 1)) / self._sum


class ColumnMoments:
    """Mean and variance of columns, merged as Chan, Golub and LeVeque (1979) do."""

    def __init__(self) -> None:
        self.rows = 0
        self._mean: Array = np.zeros(1)
        self._squares: Array = np.zeros(1)

    def add(self, values: Array) -> None:
        """Add rows, (rows, columns)."""
        count = len(values)
        if not count or (self.rows and values.shape[1] != len(self._mean)):
            return
        mean = values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        apart = mean - self._mean
        total = self.rows + count
        if self.rows:
            squares = squares + self._squares + apart**2 * (self.rows * count / total)
            mean = self._mean + apart * (count / total)
        self.rows, self._mean, self._squares = total, mean, squares

    @property
    def variance(self) -> float:
        """Mean of the columns' variances."""
        return float(self._squares.mean() / max(self.rows - 1, 1))

    @property
    def power(self) -> float:
        """Mean square."""
        return float((self._squares / max(self.rows, 1) + self._mean**2).mean())
