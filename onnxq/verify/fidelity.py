"""How far one output is from its reference, summed up over a stream of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.verify.loss import Judged

_LEVELS = 64
"""Samples whose noise is kept one by one, at most."""

Level = tuple[float, float]
"""Power of the signal and of the noise in one sample."""


@dataclass(frozen=True)
class OutputComparison:
    """One output of a quantized model against the float model's, over all samples.

    Attributes:
        sqnr_db: signal to quantization noise ratio over all elements that are finite in the float output, in dB; inf
            where they are equal, −inf where there is noise without signal or a non-finite element. None for outputs
            that are no real numbers, and where no element of the float output is finite.
        cosine: of the angle between the outputs as vectors, over the same elements; None likewise.
        max_abs_error: largest difference, in units of the output; inf where an element is finite only in float.
        mean_abs_error: mean difference, of the elements that are finite in both.
        top1_agreement: share of decisions among classes that stay; None where the output holds no scores of classes.
        agreement: share of equal elements, for integers, booleans and strings; None for real numbers.
        finite: no element is finite in the float model and not in the quantized one.
        nonfinite_float: elements that are not finite in the float model; they count in no other measure.
        nonfinite_quantized: elements that are not finite in the quantized model but are in the float model.
        nonfinite_lost: elements that are not finite in the float model but are in the quantized one.
        samples: feeds compared.
        mismatched: feeds for which the two models gave different shapes or types, so that nothing was compared.
        kind: what the output holds (`onnxq.verify.loss.Judged`), and what it is judged by.
        measure: what ``value`` is.
        value: the measure of its kind.
        loss: expected share of decisions that change, 0 to 1.
        loss_error: the standard error that is in ``loss``.
        levels: power of signal and noise by sample, of the first 64; (0, 0) where a sample could not be compared.
    """

    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float | None
    top1_agreement: float | None
    agreement: float | None
    finite: bool
    nonfinite_float: int
    nonfinite_quantized: int
    samples: int
    mismatched: int
    nonfinite_lost: int = 0
    kind: str | None = None
    measure: str | None = None
    value: float | None = None
    loss: float | None = None
    loss_error: float = 0.0
    mean_abs_error: float | None = None
    levels: tuple[Level, ...] = ()

    @property
    def judged(self) -> Judged | None:
        """The measure of its kind; None where nothing was compared."""
        if self.kind is None or self.measure is None or self.value is None or self.loss is None:
            return None
        return Judged(self.kind, self.measure, self.value, self.loss, self.loss_error)

    def with_judgement(self, judged: Judged | None, agreement: float | None) -> OutputComparison:
        """The same with what it is judged by, and the share of its decisions among classes that stay."""
        if judged is None:
            return self
        return replace(self, top1_agreement=agreement, **asdict(judged))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, but for single samples; SQNR may be infinite."""
        plain = asdict(self)
        del plain["levels"]
        return plain


def apart(one: Sequence[Level], other: Sequence[Level], least_db: float) -> tuple[float, float] | None:
    """SQNR of two models on the samples that both saw, in dB, if the first is worse and not by chance; None otherwise.

    Two models that differ in how halves are rounded come to differ as much as either does from float, where the noise
    is that of a few decisions close to a tie: one is better here and the other there. What computes something else is
    better nowhere.

    Args:
        one: power of signal and noise by sample.
        other: likewise; samples in the same order.
        least_db: by how much the first is worse on all samples together; half of that is what better means.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a[0] and b[0]]
    if not pairs:
        return None
    first, second = (decibels(sum(s for s, _ in part), sum(n for _, n in part)) for part in zip(*pairs, strict=True))
    better = any(decibels(*a) > decibels(*b) + least_db / 2 for a, b in pairs)
    return (first, second) if first < second - least_db and not better else None


class Fidelity:
    """Accumulates an `OutputComparison`; memory does not depend on the number of samples."""

    def __init__(self) -> None:
        """Start with no sample."""
        self.is_real = False
        self.samples = self.mismatched = 0
        self._signal = self._noise = self._dot = self._other = 0.0
        self._worst = self._summed = 0.0
        self._compared = 0
        self._equal = _Share()
        self._levels: list[Level] = []
        self._nonfinite = [0, 0]
        self._lost = 0

    def update(self, reference: Array, actual: Array) -> None:
        """Add one sample's output of both models; sums are in float64."""
        if reference.shape != actual.shape or _is_real(reference) != _is_real(actual):
            self.mismatched += 1
            self._keep(0.0, 0.0)
            return
        self.samples += 1
        if not _is_real(reference):
            self._equal.add(reference == actual)
            return
        self.is_real = True
        left, right = (np.asarray(array, np.float64).ravel() for array in (reference, actual))
        seen, given = np.isfinite(left), np.isfinite(right)
        if not seen.all() or not given.all():
            self._nonfinite[0] += int(np.count_nonzero(~seen))
            self._nonfinite[1] += int(np.count_nonzero(seen & ~given))
            self._lost += int(np.count_nonzero(~seen & given))
            left, right = left[seen & given], right[seen & given]
        self._compared += left.size
        error = right - left
        signal, noise = float(left @ left), float(error @ error)
        self._signal += signal
        self._noise += noise
        self._keep(signal, noise)
        self._dot += float(left @ right)
        self._other += float(right @ right)
        sizes = np.abs(error)
        self._worst = max(self._worst, float(sizes.max(initial=0.0)))
        self._summed += float(sizes.sum())

    def _keep(self, signal: float, noise: float) -> None:
        if len(self._levels) < _LEVELS:
            self._levels.append((signal, noise))

    def result(self) -> OutputComparison:
        """All so far."""
        broken = self._nonfinite[1] > 0
        known = self.is_real and (broken or self._compared > 0 or self._nonfinite[0] == 0)
        return OutputComparison(
            sqnr_db=self._sqnr() if known else None,
            cosine=self._cosine() if known else None,
            max_abs_error=(math.inf if broken else self._worst) if self.is_real else None,
            top1_agreement=None,
            agreement=self._equal.value,
            finite=not broken,
            nonfinite_float=self._nonfinite[0],
            nonfinite_quantized=self._nonfinite[1],
            samples=self.samples,
            mismatched=self.mismatched,
            nonfinite_lost=self._lost,
            mean_abs_error=self._summed / self._compared if self.is_real and self._compared else None,
            levels=tuple(self._levels) if known and not broken else (),
        )

    def _sqnr(self) -> float:
        if self._nonfinite[1]:
            return -math.inf
        return decibels(self._signal, self._noise)

    def _cosine(self) -> float:
        if self._nonfinite[1]:
            return 0.0
        if self._signal == 0.0 or self._other == 0.0:
            return 1.0 if self._signal == self._other else 0.0
        return min(1.0, max(-1.0, self._dot / math.sqrt(self._signal) / math.sqrt(self._other)))


class _Share:
    """Share of true elements."""

    def __init__(self) -> None:
        self._true = self._all = 0

    def add(self, hits: Array) -> None:
        """Count booleans."""
        hits = np.asarray(hits)
        self._true += int(np.count_nonzero(hits))
        self._all += hits.size

    @property
    def value(self) -> float | None:
        """The share; None where nothing was counted."""
        return self._true / self._all if self._all else None


def _is_real(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: what ``--metric`` takes.
        quantized: of the quantized model.
        reference: of the float model; None where the figure compares the two.
    """

    name: str
    quantized: float
    reference: float | None = None
