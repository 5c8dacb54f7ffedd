"""What an output holds, from the graph's word and what the float model gives, and the measures that fit that kind."""

from __future__ import annotations

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.attention_mask import kept_positions
from onnxq.data.feeds import Feed
from onnxq.graph.reading.output_facts import LINEAR, MIXED, RELU, SIGMOID, TANH, UNKNOWN, OutputFact
from onnxq.verify import loss
from onnxq.verify.kinds.measures import (
    THRESHOLDS,
    ClassMeasure,
    ElementMeasure,
    ProbabilityMeasure,
    ReconstructionMeasure,
    ValueMeasure,
    VectorMeasure,
)
from onnxq.verify.kinds.texts import TextMeasure
from onnxq.verify.loss import Judged

_SURE = 0.3
"""Mean probability of the best class from which scores that nothing normalizes are a classifier's for certain."""

_LEAST_CLASSES = 4
"""Classes of positions; with fewer, channels may as well be colours or coordinates."""

_LONG = 1000
"""Elements along one axis from which an output of one channel is a signal in time."""

_IMAGE = 32
ANCHORS = 16
"""Positions from which scores and coordinates that stand side by side are those of a detector."""


def normalized_axis(output: Array) -> int | None:
    """The axis along which an output sums to 1 without a negative element; None where none does. The last one wins."""
    if output.ndim < 1 or not output.size or float(output.min()) < 0.0:
        return None
    for axis in range(output.ndim - 1, -1, -1):
        if output.shape[axis] < 2:
            continue
        sums = output.sum(axis=axis, dtype=np.float64)
        if np.abs(sums - 1.0).max() < 1e-2 and not (output == 1.0).all(axis=None):
            return axis
    return None


def are_probabilities(output: Array) -> bool:
    """All elements are in 0…1."""
    return bool(output.size) and float(output.min()) >= 0.0 and float(output.max()) <= 1.0


class OutputJudge:
    """One output of two models on its way through the samples.

    Attributes:
        scores: it holds probabilities, so that outputs of the same positions may be what belongs to them.
    """

    def __init__(self, fact: OutputFact) -> None:
        """Start with no sample.

        Args:
            fact: what the graph says.
        """
        self._fact = fact
        self._kind = ""
        self.scores = False
        self._columns: Array | None = None
        self._channel = -1
        self._classes: ClassMeasure | None = None
        self._texts: TextMeasure | None = None
        self._probabilities: ProbabilityMeasure | None = None
        self._vectors: VectorMeasure | None = None
        self._elements: ElementMeasure | None = None
        self._values = ValueMeasure()
        self._rebuilt = ReconstructionMeasure()
        self._samples = 0
        self._otherwise = 0.0
        self._broken = self._labelled = self._doubtful = False

    # The kind.

    def begin(self, output: Array, feed: Feed, *, beside_scores: bool, labelled: bool) -> None:
        """Settle what can be from the first output of the float model.

        Args:
            output: of the first sample.
            feed: that sample.
            beside_scores: another output of the model holds probabilities, so that one which nothing normalizes holds
                no scores.
            labelled: the data has labels, which stand for one class an item.
        """
        fact, self._labelled = self._fact, labelled
        if not is_real(output):
            self._kind, self._elements = loss.ELEMENTS, ElementMeasure()
        elif fact.state_of:
            self._kind = loss.STATE
        elif fact.embedding and output.ndim >= 2:
            self._kind, self._vectors = loss.EMBEDDING, VectorMeasure()
        elif (axis := normalized_axis(output)) is not None:
            self._begin_classes(output, feed, axis, normalized=True)
        elif (
            fact.activation in (SIGMOID, UNKNOWN, MIXED)
            and are_probabilities(output)
            and not self._is_image(output, feed)
            and not (labelled and self._class_axis(output) is not None)
        ):
            self._kind, self._probabilities = loss.PROBABILITIES, ProbabilityMeasure()
        elif fact.activation in (MIXED, UNKNOWN) and (found := _detector_columns(output)) is not None:
            self._kind, self._probabilities = loss.DETECTION, ProbabilityMeasure()
            self._channel, self._columns = found
        elif (axis := self._class_axis(output)) is not None:
            self._doubtful = not labelled and (fact.like_input or beside_scores)
            if not self._doubtful or output.ndim == 2:
                self._begin_classes(output, feed, axis, normalized=False)
        if not self._kind:
            self._kind = loss.SIGNAL if self._is_signal(output, feed) else loss.VALUES
        self.scores = self._probabilities is not None or (self._classes is not None and self._kind != loss.VALUES)

    def _class_axis(self, output: Array) -> int | None:
        """The axis of classes of an output that nothing normalizes, if it may hold any."""
        fact = self._fact
        if output.ndim < 2 or fact.activation not in (LINEAR, RELU, UNKNOWN):
            return None
        if output.ndim == 2:
            return 1 if output.shape[1] >= 2 else None
        axis = fact.class_axis if fact.class_axis is not None else -1
        axis %= output.ndim
        if fact.class_axis is None and output.ndim > 3:
            return None
        return axis if output.shape[axis] >= _LEAST_CLASSES and output.shape[axis] != 4 else None

    def _begin_classes(self, output: Array, feed: Feed, axis: int, *, normalized: bool) -> None:
        others = [length for index, length in enumerate(output.shape) if index != axis]
        items = next((array.shape[0] for array in feed.values() if array.ndim), 1)
        positions = int(np.prod(others)) > max(items, others[0] if len(others) == 1 else 1)
        self._classes = ClassMeasure(axis, normalized=normalized)
        if normalized:
            self._kind = loss.POSITIONS if positions else loss.CLASSES
        else:
            self._maybe = loss.POSITIONS if positions else loss.CLASSES
        if output.ndim == 3 and axis == 2 and all(array.dtype.kind == "f" for array in feed.values() if array.ndim > 1):
            self._texts = TextMeasure(normalized=normalized)
            self._batch_axis = 1 if output.shape[1] == items != output.shape[0] else 0
            if output.shape[1] == 1:
                self._batch_axis = 1

    _maybe = ""
    _batch_axis = 0

    def _is_image(self, output: Array, feed: Feed) -> bool:
        """Three or four channels over the place of an input image, or its very shape."""
        if output.ndim != 4:
            return False
        return any(
            array.ndim == 4
            and array.shape[2:] == output.shape[2:]
            and 3 <= output.shape[1] <= 4
            and array.dtype.kind == "f"
            for array in feed.values()
        )

    def _is_signal(self, output: Array, feed: Feed) -> bool:
        longest = max(output.shape, default=0)
        if output.ndim == 4 and min(output.shape[2:]) >= _IMAGE and output.shape[1] <= 4:
            return True
        if output.ndim >= 2 and longest >= _LONG and output.size == longest * output.shape[0]:
            return True
        return self._fact.activation == TANH and longest >= _LONG

    # The samples.

    def add(self, expected: Array, got: Array, feed: Feed, rows: Array | None) -> None:
        """Add one sample.

        Args:
            expected: of the float model.
            got: of the quantized model.
            feed: what went in.
            rows: booleans without the last axis: where another output finds something; None where none says.
        """
        self._samples += 1
        if expected.shape != got.shape or is_real(expected) != is_real(got):
            self._otherwise += _share_apart(expected, got)
            return
        if not expected.size:
            return
        if self._elements is not None:
            self._elements.add(expected, got)
            return
        kept = kept_positions(feed)
        kept = kept if kept is not None and kept.shape == expected.shape[:2] and expected.ndim == 3 else None
        self._broken |= not np.isfinite(got[np.isfinite(expected)]).all()
        if self._vectors is not None:
            self._vectors.add(expected, got, kept)
        if self._kind == loss.DETECTION and self._columns is not None:
            self._add_detection(expected, got)
            return
        if self._probabilities is not None:
            self._probabilities.add(expected, got)
        if self._classes is not None:
            self._classes.add(expected, got, kept if self._classes.axis == expected.ndim - 1 else None)
        if self._texts is not None:
            self._texts.add(expected, got, self._batch_axis)
        if self._kind not in (loss.CLASSES, loss.POSITIONS, loss.PROBABILITIES):
            if kept is not None and rows is None:
                expected, got = expected[kept], got[kept]
            self._values.add(expected, got, rows)
        if self._kind == loss.VALUES and self._fact.like_input and expected.ndim == 2:
            given = next((array for array in feed.values() if array.shape == expected.shape and is_real(array)), None)
            if given is not None:
                self._rebuilt.add(given, expected, got)

    def others_follow(self) -> None:
        """Samples from here on made the ranges: they tell how often decisions are close, and less of the noise."""
        for measure in (self._classes, self._texts, self._probabilities, self._vectors, self._values):
            if measure is not None:
                measure.others_follow()

    def _add_detection(self, expected: Array, got: Array) -> None:
        assert self._columns is not None and self._probabilities is not None
        left, right = (np.moveaxis(array, self._channel, -1) for array in (expected, got))
        if left.shape[-1] != len(self._columns):
            self._values.add(expected, got)
            return
        scores = left[..., self._columns]
        self._probabilities.add(scores, right[..., self._columns])
        boxes = ~self._columns
        self._values.add(left[..., boxes], right[..., boxes], scores.max(axis=-1) > THRESHOLDS[0])

    def found(self, output: Array) -> Array | None:
        """Where the float model finds something: booleans without the last axis; None where the output says nothing."""
        if self._kind == loss.PROBABILITIES and output.ndim >= 2:
            return np.asarray(output.max(axis=-1) > THRESHOLDS[0])
        if (
            self._classes is not None
            and self._kind in (loss.POSITIONS, loss.CLASSES)
            and self._classes.axis == output.ndim - 1
        ):
            background = 0 if output.shape[-1] == 2 else self._classes.common[0]
            return np.asarray(output.argmax(axis=-1) != background)
        return None

    # The result.

    @property
    def may_be_classes(self) -> bool:
        """It may hold scores of classes."""
        return self._classes is not None

    @property
    def agreement(self) -> float | None:
        """Share of decisions among classes that stay; None where there are none.

        Scores that nothing normalizes may be something else: agreement counts only if float does not always choose
        alike.
        """
        classes = self._classes
        if classes is None or self._doubtful or not classes.decisions:
            return None
        if self._maybe and not (classes.varied or self._labelled):
            return None
        found = self.judged()
        if found is None or found.kind not in (loss.CLASSES, loss.POSITIONS, loss.TEXT):
            return None
        return self.possible_agreement

    @property
    def possible_agreement(self) -> float | None:
        """The same if the output holds scores of classes."""
        if self._classes is None or not self._classes.decisions:
            return None
        return 1.0 - self._classes.judged(self._maybe or self._kind).value

    def judged(self) -> Judged | None:
        """The figures; None before the first sample."""
        if not self._samples:
            return None
        found = self._of_kind()
        if self._broken:
            found = Judged(found.kind, found.measure, found.value, 1.0)
        if self._otherwise:
            share = min(1.0, self._otherwise / self._samples)
            if share > found.loss:  # what could be compared says less
                found = Judged(found.kind, "difference in length", share, share)
        return found

    def _of_kind(self) -> Judged:
        if self._elements is not None:
            return self._elements.judged()
        if self._vectors is not None:
            return self._vectors.judged()
        if self._kind == loss.DETECTION and self._probabilities is not None:
            return loss.mixed([self._probabilities.judged(), self._values.judged()], loss.DETECTION)
        if self._probabilities is not None:
            return self._probabilities.judged()
        if self._classes is not None and not self._doubtful:
            found = self._of_classes(self._classes)
            if found is not None:
                return found
        rebuilt = self._rebuilt.judged()
        found = self._values.judged(self._kind)
        return found if rebuilt is None else loss.mixed([found, rebuilt], loss.VALUES)

    def _of_classes(self, classes: ClassMeasure) -> Judged | None:
        """Decisions among classes; None where scores that nothing normalizes turn out to be none."""
        if not self._maybe:
            if self._texts is not None and self._texts.fits:
                return self._texts.judged()
            return classes.judged(self._kind)
        sure = classes.peak >= max(_SURE, 1.5 / max(classes.counts.shape[1], 2))
        if self._labelled and self._maybe == loss.CLASSES:
            return classes.judged(self._maybe)
        if not classes.varied or (self._maybe == loss.POSITIONS and not sure):
            return None
        if self._texts is not None and self._texts.fits and sure:
            return self._texts.judged()
        found = classes.judged(self._maybe)
        if sure:
            return found
        # They may be scores or not, so that they have to hold as both.
        return loss.mixed([found, self._values.judged()], self._maybe)


def is_real(array: Array) -> bool:
    """Elements are real numbers."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _detector_columns(output: Array) -> tuple[int, Array] | None:
    """(axis, booleans) of channels that hold probabilities beside others that hold coordinates; None where none do."""
    if output.ndim != 3 or output.size == 0:
        return None
    axis = 2 if output.shape[2] < output.shape[1] else 1
    if output.shape[3 - axis] < ANCHORS:
        return None
    others = (0, 3 - axis)
    inside = (output.min(axis=others) >= 0.0) & (output.max(axis=others) <= 1.0)
    return (axis, inside) if inside.any() and np.count_nonzero(~inside) >= 4 else None


def _share_apart(expected: Array, got: Array) -> float:
    """Share of a list that is there in one model only, for outputs whose length depends on what is found; else all."""
    if expected.ndim != got.ndim:
        return 1.0
    differ = [(a, b) for a, b in zip(expected.shape, got.shape, strict=True) if a != b]
    return max((abs(a - b) / max(a, b) for a, b in differ), default=1.0)
