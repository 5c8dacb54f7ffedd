"""All outputs of two models on their way through the samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.graph.reading.output_facts import SIGMOID, OutputFact
from onnxq.verify.kinds.output_kinds import ANCHORS, OutputJudge, is_real, normalized_axis
from onnxq.verify.loss import Judged


def _says_something(output: Array) -> bool:
    """Whether an output has anything that can be compared; an empty one is as good as equal."""
    return not output.size or bool(np.isfinite(output).any())


class OutputJudges:
    """All outputs of a model, by name."""

    def __init__(self, facts: Mapping[str, OutputFact], *, labelled: bool = False) -> None:
        """Start with no sample; outputs that ``facts`` does not name are judged by what they give."""
        self._facts, self._labelled = facts, labelled
        self._judges: dict[str, OutputJudge] = {}
        self._silent: set[str] = set()

    def add(self, feed: Feed, expected: Mapping[str, Array], got: Mapping[str, Array]) -> None:
        """Add a sample: what both models gave, by the float model's names; only tensors."""
        told = [name for name, output in expected.items() if not is_real(output) or _says_something(output)]
        self._silent |= expected.keys() - told
        begun = [name for name in told if name not in self._judges]
        if begun:
            self._begin(begun, feed, expected)
        for name in told:
            self._judges[name].add(expected[name], got[name], feed, self._rows(name, expected))

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
            judge = self._judges.get(other)
            if other != name and judge is not None and judge.scores and scores.shape[:-1] == output.shape[:-1]:
                here = judge.found(scores)
                found = here if found is None or here is None else found | here
        return found

    def judged(self) -> dict[str, Judged | None]:
        """The figures of each output; None of those that had no finite number in float."""
        silent: dict[str, Judged | None] = dict.fromkeys(self._silent)
        return silent | {name: judge.judged() for name, judge in self._judges.items()}

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
