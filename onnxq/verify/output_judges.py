"""All outputs of two models on their way through the samples."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.graph.reading.output_facts import SIGMOID, OutputFact
from onnxq.verify.kinds.output_kinds import ANCHORS, OutputJudge, is_real, normalized_axis
from onnxq.verify.loss import Judged


class OutputJudges:
    """All outputs of a model, by name."""

    def __init__(self, facts: Mapping[str, OutputFact], *, labelled: bool = False) -> None:
        """Start with no sample; outputs that ``facts`` does not name are judged by what they give."""
        self._facts, self._labelled = facts, labelled
        self._judges: dict[str, OutputJudge] = {}

    def add(self, feed: Feed, expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Add a sample: what both models gave, by the float model's names; only tensors."""
        begun = [name for name in expected if name not in self._judges]
        if begun:
            self._begin(begun, feed, expected)
        for name, output in expected.items():
            self._judges[name].add(output, got[name], feed, self._rows(name, expected))

    def others_follow(self) -> None:
        """Samples from here on made the ranges."""
        for judge in self._judges.values():
            judge.others_follow()

    def _begin(self, names: list[str], feed: Feed, expected: Mapping[str, Array]) -> None:
        scores = {
            name
            for name, output in expected.items()
            if is_real(output)
            and output.ndim
            and (normalized_axis(output) is not None or self._fact(name).activation == SIGMOID)
            and not self._fact(name).state_of
        }
        for name in names:
            judge = self._judges[name] = OutputJudge(self._fact(name))
            judge.begin(expected[name], feed, beside_scores=bool(scores - {name}), labelled=self._labelled)

    def _fact(self, name: str) -> OutputFact:
        return self._facts.get(name, OutputFact())

    def _rows(self, name: str, expected: Mapping[str, Array]) -> Array | None:
        """Where another output of the same positions finds something, for an output of real numbers."""
        output = expected[name]
        if self._judges[name].scores or output.ndim < 2 or not is_real(output):
            return None
        boxes = output.ndim == 3 and output.shape[1] >= ANCHORS
        if not boxes and not (output.ndim == 2 and output.shape[1] == 4):
            return None
        found: Array | None = None
        for other, scores in expected.items():
            if other != name and self._judges[other].scores and scores.shape[:-1] == output.shape[:-1]:
                here = self._judges[other].found(scores)
                found = here if found is None or here is None else found | here
        return found

    def judged(self) -> dict[str, Judged | None]:
        """The figures of each output."""
        return {name: judge.judged() for name, judge in self._judges.items()}

    @property
    def may_be_classes(self) -> str | None:
        """The first output that may hold scores of classes; None where none does."""
        return next((name for name, judge in self._judges.items() if judge.may_be_classes), None)

    def agreements(self) -> dict[str, float | None]:
        """Of each output, the share of its decisions among classes that stay; None where it holds none."""
        return {name: judge.agreement for name, judge in self._judges.items()}

    @property
    def possible_agreement(self) -> float | None:
        """The share of decisions that stay, of the first output that may hold scores of classes."""
        name = self.may_be_classes
        return None if name is None else self._judges[name].possible_agreement
