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

_COLUMNS = 64
"""Columns after whose changes the others are told, in one product."""

_SWEEPS = 3
"""Passes over the columns between two fits of the scales, at most."""

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


def refine_integers(start: RoundedWeight, hessian: Array, rounds: int) -> RoundedWeight:
    """Fit scales and integers in turn.

    Args:
        start: the integers to begin with.
        hessian: float32, (in, in), symmetric, positive definite.
        rounds: how often; it ends earlier where nothing gets better.

    Returns:
        Integers with an error of at most that of ``start``, row by row.
    """
    best, errors = start, start.pull(hessian)[1]
    for _ in range(rounds):
        before = best
        for step in (_with_scales, _descend):
            found = step(best, hessian)
            best, errors = best.better(found, errors, found.pull(hessian)[1])
        if best is before:
            break
    return best


def _descend(given: RoundedWeight, hessian: Array) -> RoundedWeight:
    """Coordinate descent: each column in turn takes the best level while all others stay."""
    spec = given.params.spec
    levels = given.levels.copy()
    scale = given.spread(given.params.scale)
    pull = given.error() @ hessian
    diagonal = np.maximum(np.diagonal(hessian), np.finfo(np.float32).tiny)
    count = levels.shape[1]
    for _ in range(_SWEEPS):
        changed = False
        for start in range(0, count, _COLUMNS):
            part = slice(start, min(start + _COLUMNS, count))
            block: Array = pull[:, part].copy()
            moved: Array = np.zeros((len(levels), part.stop - start), np.float32)
            inner = hessian[part, part]
            for column in range(part.stop - start):
                j = start + column
                wanted = levels[:, j] - block[:, column] / (diagonal[j] * scale[:, j])
                new = np.clip(np.rint(wanted), spec.qmin, spec.qmax)
                moved[:, column] = (new - levels[:, j]) * scale[:, j]
                levels[:, j] = new
                block += moved[:, column, None] * inner[column]
            if moved.any():
                changed = True
                pull += moved @ hessian[part]
        if not changed:
            break
    return RoundedWeight(given.weight, given.params, levels)


def _with_scales(given: RoundedWeight, hessian: Array) -> RoundedWeight:
    """The scales of least error for the integers: of each row the solution of A·s = b.

    A_ij = c_i H c_jᵀ and b_i = c_i H wᵀ with c_i the steps from zero in block i.
    """
    params = given.params
    steps = (given.levels - given.spread(params.zero_point)).astype(np.float64)
    exact = hessian.astype(np.float64)
    target = given.weight.astype(np.float64) @ exact
    rows, inputs = steps.shape
    if isinstance(params.spec.granularity, PerTensor):
        up, down = (steps * target).sum(), ((steps @ exact) * steps).sum()
        fitted = np.full(params.scale.shape, up / down if down > 0.0 else 1.0)
        return _scaled(given, fitted)
    size = group_size(given.weight.shape, params.spec.granularity)
    blocks = [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]
    system = np.empty((rows, len(blocks), len(blocks)))
    right = np.empty((rows, len(blocks)))
    for i, block in enumerate(blocks):
        through = steps[:, block] @ exact[block]
        right[:, i] = np.einsum("ri,ri->r", steps[:, block], target[:, block])
        for j, other in enumerate(blocks):
            system[:, i, j] = np.einsum("ri,ri->r", through[:, other], steps[:, other])
    diagonal = np.einsum("rii->ri", system)
    diagonal += np.maximum(diagonal, diagonal.mean(axis=1, keepdims=True)) * 1e-6 + 1e-30  # of a block of zeros too
    return _scaled(given, np.linalg.solve(system, right[..., None])[..., 0])


def _scaled(given: RoundedWeight, fitted: Array) -> RoundedWeight:
    """The same integers with other scales, those that are out of reach left as they are."""
    old = given.params.scale.astype(np.float64)
    ratio = fitted / old
    usable = np.isfinite(ratio) & (ratio >= 1.0 / _FARTHEST) & (ratio <= _FARTHEST)
    scale = np.where(usable, fitted, old).astype(np.float32)
    return RoundedWeight(given.weight, QParams(given.params.spec, scale, given.params.zero_point), given.levels)
