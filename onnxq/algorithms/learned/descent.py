"""Better integers for a layer's weight, one at a time, and the scales that go with them.

The objective is tr(E H Eᵀ), E = Ŵ − W. For one integer, all others fixed, it is a parabola whose best level is known;
for the scales of a row, all integers fixed, it is a system of linear equations with one unknown a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.algorithms.groups import group_size
from onnxq.core.affine import expand_blocks, to_storage
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, PerTensor, QParams, QTensor

_COLUMNS = 128
"""Columns after whose changes the others are told, in one product."""

_FEWEST_ROWS, _MOST_ROWS, _SYSTEM_BYTES = 128, 1024, 1 << 27
"""Rows that are taken together, and bytes of their systems of equations."""

_FARTHEST = 2.0
"""How many times larger or smaller one fit may make a scale."""


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A weight and the integers that stand for it.

    Attributes:
        weight: float32, (out, in).
        params: scales and zero points, rank 2.
        levels: float32, (out, in): whole numbers, zero point included.
    """

    weight: Array
    params: QParams
    levels: Array

    @classmethod
    def of(cls, tensor: QTensor, weight: Array) -> RoundedWeight:
        """The integers of a quantized weight."""
        return cls(weight, tensor.params, tensor.values.astype(np.float32))

    def tensor(self) -> QTensor:
        """In the form in which weights are handed on."""
        return QTensor(to_storage(np.ascontiguousarray(self.levels), self.params.spec.dtype), self.params)

    def spread(self, parameter: Array) -> Array:
        """A scale or zero point for each element, float32."""
        granularity = self.params.spec.granularity
        size = granularity.size if isinstance(granularity, PerBlock) else None
        return np.asarray(expand_blocks(parameter, self.weight.shape, size), np.float32)

    def error(self) -> Array:
        """Ŵ − W, float32."""
        steps = self.levels - self.spread(self.params.zero_point)
        return np.asarray(steps * self.spread(self.params.scale) - self.weight, np.float32)

    def pull(self, hessian: Array) -> tuple[Array, Array]:
        """Half the gradient by Ŵ, (out, in), and the objective of each row, (out,)."""
        error = self.error()
        pull = error @ hessian
        return pull, np.einsum("ri,ri->r", pull, error, dtype=np.float64)

    def better(self, other: RoundedWeight, mine: Array, theirs: Array) -> tuple[RoundedWeight, Array]:
        """Of each row the integers with the smaller error; of a weight with one scale, those of the whole.

        Args:
            other: of the same weight.
            mine: (out,), errors of these.
            theirs: (out,), errors of the other ones.

        Returns:
            The integers, and their errors.
        """
        if isinstance(self.params.spec.granularity, PerTensor):
            return (other, theirs) if theirs.sum() < mine.sum() else (self, mine)
        smaller = theirs < mine
        if not smaller.any():
            return self, mine
        rows = smaller[:, None]
        params = QParams(
            self.params.spec,
            np.where(rows, other.params.scale, self.params.scale),
            np.where(rows, other.params.zero_point, self.params.zero_point),
        )
        return RoundedWeight(self.weight, params, np.where(rows, other.levels, self.levels)), np.where(
            smaller, theirs, mine
        )


def refine_integers(start: RoundedWeight, hessian: Array, rounds: int, enough: float = 0.0) -> RoundedWeight:
    """Fit scales and integers in turn.

    A round costs about 2.5 products of the weight and the Hessian, in float32.

    Args:
        start: the integers to begin with.
        hessian: float32, (in, in), symmetric, positive definite.
        rounds: how often.
        enough: it ends earlier where a round takes a smaller share than this from the error.

    Returns:
        Integers with an error of at most that of ``start``, row by row.
    """
    levels, scale = np.empty_like(start.levels), np.array(start.params.scale)
    for rows in _slabs(start):
        part = _Descent(start, rows, hessian)
        part.run(rounds, enough)
        levels[rows] = part.levels
        scale[rows if len(scale) == len(levels) else slice(None)] = part.scale.T
    return RoundedWeight(start.weight, QParams(start.params.spec, scale, start.params.zero_point), levels)


def _slabs(start: RoundedWeight) -> list[slice]:
    """Rows that are taken together: as many as are worth a product, and whose systems of equations fit in memory."""
    outputs, inputs = start.weight.shape
    if isinstance(start.params.spec.granularity, PerTensor):
        return [slice(0, outputs)]
    blocks = -(-inputs // group_size(start.weight.shape, start.params.spec.granularity))
    count = max(_FEWEST_ROWS, min(_MOST_ROWS, _SYSTEM_BYTES // (8 * blocks**2)))
    return [slice(first, min(first + count, outputs)) for first in range(0, outputs, count)]


class _Descent:
    """Some rows of a weight on their way. Arrays are (in, rows): a column of the weight is contiguous.

    ``pull`` is H·Eᵀ, half the gradient; it is kept up to date rather than computed anew.
    """

    def __init__(self, start: RoundedWeight, rows: slice, hessian: Array) -> None:
        self.rows, self.hessian, self.spec = rows, hessian, start.params.spec
        self.size = group_size(start.weight.shape, self.spec.granularity)
        self.whole = isinstance(self.spec.granularity, PerTensor)
        self.first = np.arange(0, start.weight.shape[1], self.size)
        self.scale, self.zero = (
            np.ascontiguousarray((array if self.whole else array[rows]).T, np.float32)
            for array in (start.params.scale, start.params.zero_point)
        )
        self.weight = np.ascontiguousarray(start.weight[rows].T)
        self.steps = np.ascontiguousarray(start.levels[rows].T) - self._spread(self.zero)
        self.error = self.steps * self._spread(self.scale) - self.weight
        self.pull = hessian @ self.error
        self.costs = self._costs(self.pull, self.error)

    def _spread(self, parameter: Array) -> Array:
        """A parameter for each element."""
        if len(parameter) == 1:
            return parameter
        return np.repeat(parameter, self.size, axis=0)[: self.hessian.shape[0]]

    def run(self, rounds: int, enough: float) -> None:
        """Fit scales and integers in turn."""
        for _ in range(rounds):
            before = float(self.costs.sum())
            self._fit_scales()
            self._descend()
            if not before - float(self.costs.sum()) > enough * before:
                break

    @property
    def levels(self) -> Array:
        """float32, (rows, in): whole numbers, zero point included."""
        return np.asarray((self.steps + self._spread(self.zero)).T)

    @staticmethod
    def _costs(pull: Array, error: Array) -> Array:
        """The objective of each row, float64."""
        return np.asarray(np.einsum("ir,ir->r", pull, error, dtype=np.float64))

    def _fit_scales(self) -> None:
        """The scales of least error for the integers: of each row the solution of A·δ = −g, δ the change.

        A_ij = c_i H c_jᵀ with c_i the steps from zero in block i, and g_i = c_i·pull.
        """
        slope = np.add.reduceat(self.steps * self.pull, self.first, axis=0).astype(np.float64)
        if self.whole:
            down = float(np.vdot(self.steps, self.hessian @ self.steps))
            fitted = self.scale - (float(slope.sum()) / down if down > 0.0 else 0.0)
        else:
            system = self._system()
            diagonal = np.einsum("rii->ri", system)  # of a block of zeros too
            diagonal += np.maximum(diagonal, diagonal.mean(axis=1, keepdims=True)) * 1e-6 + 1e-30
            fitted = self.scale - np.linalg.solve(system, slope.T[..., None])[..., 0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = fitted / self.scale.astype(np.float64)
        usable = np.isfinite(ratio) & (ratio >= 1.0 / _FARTHEST) & (ratio <= _FARTHEST)
        scale = np.where(usable, fitted, self.scale).astype(np.float32)
        error = self.steps * self._spread(scale) - self.weight
        pull = self.hessian @ error
        costs = self._costs(pull, error)
        better = np.full(costs.shape, costs.sum() < self.costs.sum()) if self.whole else costs < self.costs
        if better.all():
            self.scale, self.error, self.pull, self.costs = scale, error, pull, costs
        elif better.any():
            self.costs = np.where(better, costs, self.costs)
            for mine, other in ((self.scale, scale), (self.error, error), (self.pull, pull)):
                np.copyto(mine, other, where=better)

    def _system(self) -> Array:
        """A of every row, float64, (rows, blocks, blocks)."""
        blocks = len(self.first)
        system = np.empty((self.steps.shape[1], blocks, blocks))
        for i, start in enumerate(self.first):
            block = slice(start, start + self.size)
            through = self.hessian[start:, block] @ self.steps[block]
            through *= self.steps[start:]
            row = np.add.reduceat(through, self.first[i:] - start, axis=0)
            system[:, i, i:] = row.T
            system[:, i:, i] = row.T
        return system

    def _descend(self) -> None:
        """Coordinate descent: each column in turn takes the best level while all others stay."""
        diagonal = np.maximum(np.diagonal(self.hessian), np.finfo(np.float32).tiny)
        qmin, qmax = np.float32(self.spec.qmin), np.float32(self.spec.qmax)
        count = len(self.steps)
        for start in range(0, count, _COLUMNS):
            part = slice(start, min(start + _COLUMNS, count))
            moved = np.zeros((part.stop - start, self.steps.shape[1]), np.float32)
            inner = self.hessian[part, part]
            for column in range(part.stop - start):
                j = start + column
                index = min(j // self.size, len(self.scale) - 1)
                scale, zero = self.scale[index], self.zero[index]
                pull = self.pull[j]
                if column:
                    pull = pull + inner[column, :column] @ moved[:column]
                new = self.steps[j] - pull / (diagonal[j] * scale)
                new += zero
                np.rint(new, out=new)
                np.clip(new, qmin, qmax, out=new)
                new -= zero
                np.subtract(new, self.steps[j], out=moved[column])
                moved[column] *= scale
                self.steps[j] = new
            if moved.any():
                self.error[part] += moved
                self.pull += self.hessian[:, part] @ moved
        self.costs = self._costs(self.pull, self.error)
