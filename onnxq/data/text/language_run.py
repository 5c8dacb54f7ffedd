"""A language model run as it is used: the prompt in one pass, then token by token with the cache that it gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec
from onnxq.data.state_pairs import state_pairs
from onnxq.data.text.language_inputs import ENCODED, ENCODED_MASK, LanguageInputs, language_inputs
from onnxq.errors import CalibrationError, ModelError

RunGraph: TypeAlias = Callable[[Feed], Sequence[Any]]
"""Runs a graph on a feed and gives all its outputs, in their order."""

ENCODER, FIRST, AFTER = "encoder", "first", "after"
"""Parts of a model: the encoder, the decoder's first pass, its passes with a cache; one graph may be two of them."""


_WIDTHS = (64, 128, 96, 80, 256, 32, 112, 48, 192, 160, 16, 72, 40, 512, 24, 8, 120, 144, 576, 4, 2, 1)
"""Sizes of a head that are tried where a graph leaves it open, the most common first."""


@dataclass(frozen=True)
class LanguageGraph:
    """One graph of a language model.

    Attributes:
        name: what messages call it.
        inputs: what it takes.
        outputs: what it gives.
        run: runs it.
    """

    name: str
    inputs: Sequence[InputSpec]
    outputs: Sequence[InputSpec]
    run: RunGraph


@dataclass(frozen=True)
class GraphPass:
    """One pass of one graph.

    Attributes:
        part: `ENCODER`, `FIRST` or `AFTER`.
        feed: what the graph was given.
        ids: the tokens of the pass, (S,).
        logits: what the decoder gave for them, (1, S, classes) or (1, 1, classes); None of an encoder.
    """

    part: str
    feed: Feed
    ids: Array
    logits: Array | None


class LanguageModel:
    """Graphs that together take text.

    Attributes:
        parts: by `ENCODER`, `FIRST` and `AFTER`; a model without a cache has no `AFTER`, an encoder alone has one
            part, `FIRST`.
        inputs: how each part takes text.
    """

    def __init__(
        self,
        first: LanguageGraph,
        after: LanguageGraph | None = None,
        encoder: LanguageGraph | None = None,
        start: int = 0,
    ) -> None:
        """Find out what the graphs take.

        Args:
            first: runs the prompt.
            after: runs what comes after it, with a cache; None where ``first`` does so itself, or nothing does.
            encoder: runs the prompt of an encoder–decoder; ``first`` then begins with ``start``.
            start: token id that a decoder behind an encoder begins with.

        Raises:
            CalibrationError: an input of a graph cannot be made from text.
        """
        self.parts = {FIRST: first}
        self.inputs = {FIRST: language_inputs(first.inputs, first.outputs, first.name)}
        if after is not None:
            self.parts[AFTER] = after
            self.inputs[AFTER] = language_inputs(after.inputs, after.outputs, after.name, before=first.outputs)
        elif self.inputs[FIRST].cached:
            self.parts[AFTER], self.inputs[AFTER] = first, self.inputs[FIRST]
        if encoder is not None:
            self.parts[ENCODER] = encoder
            self.inputs[ENCODER] = language_inputs(encoder.inputs, encoder.outputs, encoder.name)
        elif self.inputs[FIRST].open_width:
            self._fit()
        self._start = start

    @property
    def cached(self) -> bool:
        """Whether tokens are decoded with a cache."""
        return AFTER in self.parts

    def steps(
        self, ids: Array, count: int, follow: Sequence[int] | None = None, prefix: int = 1
    ) -> Iterator[GraphPass]:
        """Run a prompt, and then token by token what the model finds most likely.

        Args:
            ids: token ids of the prompt, (S,).
            count: tokens to decode with the cache; none are where there is no cache.
            follow: tokens to decode instead of the most likely ones.
            prefix: tokens that a decoder behind an encoder begins with, the start token in all of them.

        Raises:
            ModelError: a graph cannot be run.
            CalibrationError: a graph gives no cache for the next pass, or no logits.
        """
        encoded: Feed = {}
        if ENCODER in self.parts:
            feed = self.inputs[ENCODER].feed(ids, 0, {})
            hidden = np.asarray(self.parts[ENCODER].run(feed)[0])
            yield GraphPass(ENCODER, feed, ids, None)
            encoded = {ENCODED: hidden, ENCODED_MASK: np.ones(hidden.shape[:2], np.int64)}
            ids = np.full(max(prefix, 1), self._start, np.int64)
        feed = self.inputs[FIRST].feed(ids, 0, {}, encoded)
        outputs = self._outputs(FIRST, feed)
        step = self._step(FIRST, feed, ids, outputs)
        yield step
        if not self.cached or self.inputs[FIRST].length is not None:
            return
        caches: Feed = {}
        before, past = self.parts[FIRST].outputs, len(ids)
        for index in range(count):
            caches = self._carried(before, outputs, caches)
            ids = np.array([self._next(step) if follow is None else follow[index]], np.int64)
            feed = self.inputs[AFTER].feed(ids, past, caches, encoded)
            outputs = self._outputs(AFTER, feed)
            step = self._step(AFTER, feed, ids, outputs)
            yield step
            before, past = self.parts[AFTER].outputs, past + 1

    def _fit(self) -> None:
        """Find the length of axes of the cache that the graph leaves open: the first on which it runs."""
        failure: ModelError | None = None
        for width in _WIDTHS:
            inputs = replace(self.inputs[FIRST], width=width)
            try:
                self.parts[FIRST].run(inputs.feed(np.zeros(1, np.int64), 0, {}))
            except ModelError as error:
                failure = failure or error
                continue
            same = self.inputs.get(AFTER) is self.inputs[FIRST]
            self.inputs[FIRST] = inputs
            if same:
                self.inputs[AFTER] = inputs
            return
        raise CalibrationError(f"{self.parts[FIRST].name}: runs with no cache that text could start with: {failure}")

    def _outputs(self, part: str, feed: Feed) -> dict[str, Array]:
        graph = self.parts[part]
        names = [spec.name for spec in graph.outputs]
        return dict(zip(names, graph.run(feed), strict=True))

    def _step(self, part: str, feed: Feed, ids: Array, outputs: dict[str, Array]) -> GraphPass:
        logits = outputs.get(self.inputs[part].logits)
        return GraphPass(part, feed, ids, logits if isinstance(logits, np.ndarray) and logits.ndim == 3 else None)

    def _next(self, step: GraphPass) -> int:
        if step.logits is None:
            raise CalibrationError(f"{self.parts[step.part].name}: gives no logits of (batch, tokens, classes)")
        return int(step.logits[0, -1].argmax())

    def _carried(self, before: Sequence[InputSpec], outputs: dict[str, Array], caches: Feed) -> Feed:
        """Caches for the next pass: what the last one gave; what it gives only once, or empty, stays."""
        given = _pairs(self.inputs[AFTER], before)
        found = dict(caches)
        for output, name in given.items():
            array = outputs.get(output)
            if isinstance(array, np.ndarray) and (array.size or name not in found):
                found[name] = array
        missing = [spec.name for spec in self.inputs[AFTER].specs if self._lacks(spec.name, found)]
        if missing:
            raise CalibrationError(
                f"{self.parts[AFTER].name}: no output gives the cache '{missing[0]}' for the next token; "
                "a cache is known by its names, such as past_key_values.0.key and present.0.key"
            )
        return found

    def _lacks(self, name: str, caches: Feed) -> bool:
        return self.inputs[AFTER].roles[name] == "cache" and name not in caches


def _pairs(inputs: LanguageInputs, outputs: Sequence[InputSpec]) -> dict[str, str]:
    """The input that each output of the pass before goes into."""
    return state_pairs(inputs.specs, outputs)


def joined_ids(rows: Sequence[Array], length: int, vocabulary: int) -> Array:
    """Token ids of a given length: those of the texts one after another, again where they end, else drawn ones.

    Args:
        rows: token ids of texts; may be empty.
        length: tokens wanted.
        vocabulary: tokens that there are.
    """
    if rows:
        return np.resize(np.concatenate(list(rows)), length)
    return np.random.default_rng(0).integers(0, max(vocabulary, 1), length)


def vocabulary_of(outputs: Sequence[InputSpec], logits: str) -> int | None:
    """Tokens that a graph knows, by the last axis of its logits; None where that is open."""
    dims = next((spec.shape for spec in outputs if spec.name == logits), ())
    return dims[-1] if len(dims) == 3 and isinstance(dims[-1], int) else None
