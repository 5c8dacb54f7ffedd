"""Sums of float arrays that do not depend on the order of their terms: fixed-point numbers of 97 bits in two floats."""

from __future__ import annotations

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError

_COARSE = 2.0**-6
_FINE = 2.0**-50
_TO_COARSE = 1.5 * 2.0**52 * _COARSE
_TO_FINE = 1.5 * 2.0**52 * _FINE
"""Adding and subtracting such a number rounds a float64 to whole steps, half to even, in two passes over memory."""

_CHUNK = 1 << 14
"""Elements that are split at a time: what comes in between stays in the cache."""

_CARRY_AFTER = 512
"""Terms after which what the fine part has gathered goes to the coarse one; it would be exact for twice as many."""


class ExactSum:
    """Element-wise sums over terms, each rounded to steps of 2⁻⁵⁰ and then added without any error.

    A term is split into whole steps of 2⁻⁶ and the rest; whole steps below 2⁵³ add exactly in float64. So the sum has
    the same bits in whatever order and grouping its terms come, as long as it stays below 2⁴⁷ (1.4e14); beyond that it
    is as exact as any float64 sum.

    Attributes:
        high: float64, (size,), whole steps of 2⁻⁶.
        low: float64, (size,), whole steps of 2⁻⁵⁰; after `carry` in [0, 2⁻⁶).
    """

    __slots__ = ("_terms", "high", "low")

    def __init__(self, high: Array, low: Array) -> None:
        """Start with what was summed before; the arrays are changed in place."""
        self.high = high
        self.low = low
        self._terms = 0

    @classmethod
    def zeros(cls, size: int) -> ExactSum:
        """Sums without terms."""
        return cls(np.zeros(size), np.zeros(size))

    def add(self, terms: Array, start: int = 0) -> None:
        """Add terms to the elements from ``start`` on.

        Args:
            terms: finite floating point of any shape, in the order of the elements.
            start: index of the first element.
        """
        flat = terms.reshape(-1)
        for first in range(0, flat.size, _CHUNK):
            rest = flat[first : first + _CHUNK].astype(np.float64)
            part = slice(start + first, start + first + rest.size)
            coarse = rest + _TO_COARSE
            coarse -= _TO_COARSE
            rest -= coarse
            rest += _TO_FINE
            rest -= _TO_FINE
            self.high[part] += coarse
            self.low[part] += rest

    def add_rows(self, rows: Array) -> None:
        """Add several terms to every element, as `add` and `count_term` do with one after the other.

        Args:
            rows: finite floating point, (terms, size), of at most 512 terms.
        """
        coarse = rows + _TO_COARSE
        coarse -= _TO_COARSE
        fine = rows - coarse
        fine += _TO_FINE
        fine -= _TO_FINE
        self.high += coarse.sum(axis=0)
        self.low += fine.sum(axis=0)
        self.count_term(len(rows))

    def count_term(self, terms: int = 1) -> None:
        """Note that every element has got a term, or several, and carry where it is time to."""
        self._terms += terms
        if self._terms >= _CARRY_AFTER:
            self.carry()

    def carry(self) -> None:
        """Bring the two parts into the one form that a sum has."""
        if self._terms:
            # floor, not the nearest: with ties broken either way one sum would have two forms
            whole = np.floor(self.low * (1 / _COARSE)) * _COARSE
            self.high += whole
            self.low -= whole
            self._terms = 0

    def merge(self, other: ExactSum) -> ExactSum:
        """The sum of both; neither changes its value."""
        if self.high.size != other.high.size:
            raise CalibrationError(f"merge: sums of {self.high.size} and of {other.high.size} elements")
        self.carry()
        other.carry()
        joined = ExactSum(self.high + other.high, self.low + other.low)
        joined._terms = 1
        joined.carry()
        return joined

    def copy(self) -> ExactSum:
        """A sum of its own."""
        self.carry()
        return ExactSum(self.high.copy(), self.low.copy())

    def equals(self, other: ExactSum) -> bool:
        """Whether all bits are the same."""
        self.carry()
        other.carry()
        return np.array_equal(self.high, other.high) and np.array_equal(self.low, other.low)
