"""What the outputs of two models are compared by, a class for each kind; each sums up a stream in bounded memory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.verify import loss
from onnxq.verify.kinds.flips import Flips, best_and_next, log_odds, log_probabilities, margin_of
from onnxq.verify.kinds.moments import ColumnMoments, Noise
from onnxq.verify.loss import Judged

THRESHOLDS = (0.3, 0.5, 0.7)
"""Where decisions on probabilities are taken to fall, since no model says: from a detector's to a verifier's."""

UNSURE = 0.1
"""Decisions on probabilities, and symbols of a text, count in full from this much difference on: 55 % against 45 %."""

COMMON, RARE = 0.5, 0.9
"""A class that more positions than the first have is a background, before which something is found or not.

From the second on that is the whole decision, as with a detector, and it counts as one on a probability.
"""

OF_CLASSES, OF_RESULTS = 0.2, 0.5
"""However unsure float was, each change counts this much: one decision in twenty may change among classes, and one in
fifty where the decision itself is the result: what a threshold lets through, how a word reads.
"""

_FAR = 0.05
"""Probabilities below this share of a threshold are no decisions that a threshold is near to."""

_VECTORS = 96
"""Embeddings of which the similarities are compared."""

_COLUMNS = 16
"""Outputs of so few columns hold quantities of their own, each with its own spread; longer ones are one field."""

_FEW = 4
"""With fewer rows there is no spread between them; the size of the values stands for it."""


class ClassMeasure:
    """Decisions among classes: the largest score wins.

    Attributes:
        counts: decisions of both models by class, (2, classes).
        peak: mean probability of the class that float chooses.
    """

    def __init__(self, axis: int, *, normalized: bool) -> None:
        """Start with no sample.

        Args:
            axis: of the classes.
            normalized: the scores are probabilities.
        """
        self.axis, self._normalized = axis, normalized
        self.counts = np.zeros((2, 0), np.int64)
        self._flips = Flips()
        self._peaks = 0.0

    def add(self, expected: Array, got: Array, kept: Array | None = None) -> None:
        """Add one sample.

        Args:
            expected: scores of the float model.
            got: those of the quantized model, of the same shape.
            kept: booleans by position, without the axis of the classes; None keeps all.
        """
        pair = [np.moveaxis(array, self.axis, -1) for array in (expected, got)]
        rows = [array[kept] if kept is not None else array.reshape(-1, array.shape[-1]) for array in pair]
        left, right = (log_probabilities(array, normalized=self._normalized) for array in rows)
        if not left.size:
            return
        chosen, margins = best_and_next(left)
        index = np.arange(len(left))
        often = int(np.bincount(chosen).max())
        found = len(left) - often if often > COMMON * len(left) else len(left)  # before what may be a background
        self._flips.add(margins, margin_of(right, chosen, index), found)
        self._peaks += float(np.exp(np.nan_to_num(left[index, chosen], nan=-np.inf)).sum())
        classes = left.shape[-1]
        if self.counts.shape[1] < classes:
            self.counts = np.pad(self.counts, ((0, 0), (0, classes - self.counts.shape[1])))
        for model, found in enumerate((chosen, right.argmax(axis=-1))):
            self.counts[model] += np.bincount(found, minlength=self.counts.shape[1])

    def others_follow(self) -> None:
        """Samples from here on made the ranges."""
        self._flips.others_follow()

    @property
    def decisions(self) -> int:
        """How many were added."""
        return self._flips.decisions

    @property
    def peak(self) -> float:
        """Mean probability of the class that float chooses."""
        return self._peaks / max(self._flips.decisions, 1)

    @property
    def common(self) -> tuple[int, float]:
        """The class that float chooses most often, and the share in which it does."""
        counts = self.counts[0]
        if not counts.sum():
            return 0, 1.0
        return int(counts.argmax()), float(counts.max() / counts.sum())

    @property
    def varied(self) -> bool:
        """Float does not choose one class nearly always: only then can agreement say something."""
        return self._flips.decisions > 1 and self.common[1] <= 0.95

    def judged(self, kind: str) -> Judged:
        """The figures: of items, each counts; of positions, those with something before a common background."""
        background, often = self.common
        total = self._flips.decisions
        price, least, among = 1.0, OF_CLASSES, total
        if kind == loss.POSITIONS and often > COMMON and total:  # no sample may be left to compare
            found = int((self.counts.sum(axis=1) - self.counts[:, background]).sum())
            share = min(1.0, (often - COMMON) / (RARE - COMMON))
            price, least = UNSURE**share, OF_CLASSES + (OF_RESULTS - OF_CLASSES) * share
            among = min(total, found) or total
        changed = self._flips.changed / max(among, 1)
        weighted, error = (part / max(among, 1) for part in bound_of(self._flips, price, least))
        return Judged(kind, "changed decisions", min(changed, 1.0), min(weighted, 1.0), error)


def bound_of(flips: Flips, full_price: float, least: float) -> tuple[float, float]:
    """Decisions that change, each at its price but at the least one in any case; and the standard error of that."""
    plain, error = flips.bound()
    return max(flips.bound(full_price), (least * plain, least * error))


class ProbabilityMeasure:
    """Decisions by thresholds, each probability for itself."""

    def __init__(self) -> None:
        """Start with no sample."""
        self._flips = [Flips() for _ in THRESHOLDS]
        self._above = np.zeros((len(THRESHOLDS), 2), np.int64)
        self._all = 0
        self._size = ValueMeasure()

    def add(self, expected: Array, got: Array) -> None:
        """Add one sample: probabilities of both models, of one shape."""
        left, right = expected.ravel(), got.ravel()
        self._size.add(left, right)
        self._all += left.size
        odds = [log_odds(array) for array in (left, right)]
        for index, threshold in enumerate(THRESHOLDS):
            above = [int(np.count_nonzero(array > threshold)) for array in (left, right)]
            self._above[index] += above
            near = (left > _FAR * threshold) | (right > _FAR * threshold)
            cut = math.log(threshold / (1 - threshold))
            margins = odds[0][near] - cut
            self._flips[index].add(np.abs(margins), np.sign(margins) * (odds[1][near] - cut), sum(above))

    def others_follow(self) -> None:
        """Samples from here on made the ranges."""
        self._size.others_follow()
        for flips in self._flips:
            flips.others_follow()

    def judged(self) -> Judged:
        """The figures, over all thresholds: of what either model finds, or of all where most are found."""
        among = sum(min(self._all, int(above.sum())) for above in self._above)
        if not among:  # nothing was found by either; how far the probabilities are is all that can be said
            found = self._size.judged()
            return replace(found, kind=loss.PROBABILITIES)
        changed = sum(flips.changed for flips in self._flips) / among
        bounds = [bound_of(flips, UNSURE, OF_RESULTS) for flips in self._flips]
        # the same probabilities at three thresholds: their errors go together
        weighted, error = (sum(part) / among for part in zip(*bounds, strict=True))
        return Judged(loss.PROBABILITIES, "changed decisions", min(changed, 1.0), min(weighted, 1.0), error)


class ValueMeasure:
    """Real numbers: their error against their spread."""

    def __init__(self) -> None:
        """Start with no sample."""
        self._noise, self._chosen = Noise(), Noise()
        self._moments: list[ColumnMoments] = [ColumnMoments(), ColumnMoments()]
        self._broken = False

    def add(self, expected: Array, got: Array, rows: Array | None = None) -> None:
        """Add one sample.

        Args:
            expected: of the float model.
            got: of the quantized model, of the same shape.
            rows: booleans without the last axis: where there is something that the numbers describe; None is all.
        """
        left, right = (np.asarray(array, np.float64) for array in (expected, got))
        finite = np.isfinite(left)
        self._broken |= not np.isfinite(right[finite]).all()
        left, right = np.where(finite, left, 0.0), np.where(finite & np.isfinite(right), right, 0.0)
        error = right - left
        self._noise.add(error)
        if rows is not None and rows.any():
            self._chosen.add(error[rows])
        self._moments[0].add(left.reshape(-1, 1))
        if 2 <= left.ndim <= 3 and left.shape[-1] <= _COLUMNS:
            self._moments[1].add(left.reshape(-1, left.shape[-1]))

    def others_follow(self) -> None:
        """Samples from here on made the ranges."""
        self._noise.others_follow()
        self._chosen.others_follow()

    @property
    def ratio(self) -> float:
        """Standard deviation of the error ÷ that of the values; inf where there is an error and no value differs."""
        if self._broken:
            return math.inf
        power = self._power.mean
        if power == 0.0:
            return 0.0
        field, columns = self._moments
        spread = columns.variance if columns.rows >= _FEW else field.variance if field.rows >= _FEW else 0.0
        spread = spread or field.power
        return math.sqrt(power / spread) if spread > 0 else math.inf

    @property
    def _power(self) -> Noise:
        """The errors that count."""
        return self._chosen if self._chosen.samples else self._noise

    def judged(self, kind: str = loss.VALUES) -> Judged:
        """The figures."""
        ratio = self.ratio
        found = loss.by_noise(ratio * math.sqrt(1.0 + self._power.uncertainty))
        error = found - loss.by_noise(ratio)
        if kind == loss.SIGNAL:
            noise = math.inf if ratio == 0 else -20 * math.log10(ratio) if math.isfinite(ratio) else -math.inf
            return Judged(kind, "SNR", noise, found, error)
        return Judged(kind, "relative error", ratio, found, error)


class ReconstructionMeasure:
    """Outputs that imitate an input: how far they miss it, item by item, which tells the usual from the unusual."""

    _ENOUGH = 8

    def __init__(self) -> None:
        """Start with no sample."""
        self._misses, self._inputs = ColumnMoments(), ColumnMoments()
        self._apart, self._residual, self._elements = 0.0, 0.0, 0

    def add(self, given: Array, expected: Array, got: Array) -> None:
        """Add one sample: the input and what both models made of it, (items, elements)."""
        wide = [np.nan_to_num(np.asarray(array, np.float64)) for array in (given, expected, got)]
        before, after = (((array - wide[0]) ** 2).mean(axis=1) for array in wide[1:])
        self._misses.add(before[:, None])
        self._inputs.add(wide[0].reshape(-1, 1))
        self._apart += float(((after - before) ** 2).sum())
        self._residual += float(before.sum()) * given.shape[1]
        self._elements += given.size

    def judged(self) -> Judged | None:
        """The figures; None where the output is no imitation, or of too few items."""
        spread, size = self._misses.variance, self._inputs.variance
        imitates = self._residual < 0.25 * size * self._elements
        if self._misses.rows < self._ENOUGH or not imitates or spread <= 0:
            return None
        ratio = math.sqrt(self._apart / self._misses.rows / spread)
        return Judged(loss.VALUES, "relative error of what is missed", ratio, loss.by_similarity(ratio))


class VectorMeasure:
    """Embeddings: whether neighbours stay neighbours."""

    def __init__(self) -> None:
        """Start with no sample."""
        self._kept: list[tuple[Array, Array]] = []
        self._cosines, self._vectors = 0.0, 0
        self._unseen = 0

    def others_follow(self) -> None:
        """Samples from here on made the ranges."""
        self._unseen = len(self._kept)

    def add(self, expected: Array, got: Array, kept: Array | None = None) -> None:
        """Add one sample: vectors along the last axis; of the others, those that ``kept`` holds."""
        pair = [array[kept] if kept is not None else array.reshape(-1, array.shape[-1]) for array in (expected, got)]
        left, right = (_unit(array) for array in pair)
        nothing = ~(left.any(axis=-1) | right.any(axis=-1))
        self._cosines += float((left * right).sum()) + int(np.count_nonzero(nothing))
        self._vectors += len(left)
        step = max(1, len(left) // 4)  # a sample of many positions leaves room for others
        self._kept.extend(zip(left[::step], right[::step], strict=True) if len(self._kept) < _VECTORS else ())

    def judged(self) -> Judged:
        """The figures: by the similarities of pairs, or by the angle where there are too few vectors for pairs."""
        cosine = self._cosines / self._vectors if self._vectors else 1.0
        if len(self._kept) < _FEW:
            return Judged(loss.EMBEDDING, "cosine", cosine, loss.by_angle(cosine))
        left, right = (np.stack([pair[model] for pair in self._kept]) for model in (0, 1))
        pairs = np.triu_indices(len(left), 1)
        before, apart = left @ left.T, (right @ right.T - left @ left.T) ** 2
        spread, error = float(before[pairs].std()), math.sqrt(float(apart[pairs].mean()))
        ratio = error / spread if spread > 0 else math.inf if error > 0 else 0.0
        few = loss.by_similarity(ratio)
        if 0.0 < ratio < math.inf:  # a pair belongs to two vectors, so that it is vectors that are independent
            each = apart.sum(axis=1)
            if self._unseen:
                apart = float(each.std(ddof=1)) / math.sqrt(self._unseen)
                ratio *= math.sqrt(max(float((each[: self._unseen].mean() - 2 * apart) / each.mean()), 1.0))
            ratio *= math.sqrt(1.0 + 2 * float(each.std(ddof=1)) / math.sqrt(len(each)) / float(each.mean()))
        found = loss.by_similarity(ratio)
        return Judged(loss.EMBEDDING, "cosine", cosine, found, found - few)


def _unit(vectors: Array) -> Array:
    """Vectors of length 1; those of length 0 stay, and what is not finite counts as 0."""
    vectors = np.nan_to_num(vectors.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0.0)
    vectors = vectors / np.where(largest > 0, largest, 1.0)
    length = np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.where(length > 0, length, 1.0))


class ElementMeasure:
    """Integers, booleans and text: what is not the same; a value that most elements have is a background."""

    _MOST = 4096

    def __init__(self) -> None:
        """Start with no sample."""
        self._changed = self._all = 0
        self._seen: dict[object, int] = {}

    def add(self, expected: Array, got: Array) -> None:
        """Add one sample of both models, of one shape."""
        self._changed += int(np.count_nonzero(expected != got))
        self._all += expected.size
        for array in (expected, got):
            values, counts = np.unique(array, return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                if value in self._seen or len(self._seen) < self._MOST:
                    self._seen[value] = self._seen.get(value, 0) + count

    def judged(self) -> Judged:
        """The figures."""
        common = max(self._seen.values(), default=0)
        among = min(self._all, 2 * self._all - common) if common > COMMON * 2 * self._all else self._all
        changed = self._changed / max(among, 1)
        sure = max(self._changed - math.sqrt(self._changed), 0.0) / max(among, 1)
        return Judged(loss.ELEMENTS, "changed elements", min(changed, 1.0), min(sure, 1.0))
