"""Text as calibration data: what the passes of a language model over the text are fed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.dtypes import Array
from onnxq.data.carried_states import Recurrence
from onnxq.data.feeds import Feed, InputSpec
from onnxq.data.sources import Source, SpoolSource
from onnxq.data.text.language_run import AFTER, FIRST, LanguageGraph, LanguageModel
from onnxq.data.text.prompts import Prompts, is_text, open_prompts
from onnxq.errors import CalibrationError, ModelError

DECODED = 4
"""Tokens that are decoded with the cache behind each text."""


@dataclass(frozen=True)
class TextSamples:
    """Texts, and which passes over them are samples of a graph.

    Attributes:
        rows: token ids of each text.
        model: the graphs that run the texts; None for a graph that does so alone.
        parts: which of the model's parts the graph is.
    """

    rows: Sequence[Array]
    model: LanguageModel | None = None
    parts: Collection[str] = (FIRST, AFTER)

    def source(self, inputs: Sequence[InputSpec], recurrence: Recurrence | None) -> tuple[Source, dict[str, str]]:
        """The feeds of a graph, and the input that each of its caches goes back into.

        Args:
            inputs: of the graph.
            recurrence: its outputs, and what runs it.

        Raises:
            CalibrationError: an input cannot be made from text.
        """
        model = self.model
        if model is None:
            if recurrence is None:
                raise CalibrationError("text: this use of samples cannot run the model; pass samples as an .npz")
            model = alone("model", inputs, recurrence)
        part = next(part for part in self.parts if part in model.parts)
        return SpoolSource(self._feeds(model), inputs), dict(model.inputs[part].caches)

    def _feeds(self, model: LanguageModel) -> Iterator[Feed]:
        for index, row in enumerate(self.rows):
            try:
                for step in model.steps(row, DECODED if AFTER in self.parts else 0):
                    if step.part in self.parts:
                        yield step.feed
            except ModelError as error:
                raise CalibrationError(f"text {index}, {len(row)} tokens: {error}") from error


def alone(label: str, inputs: Sequence[InputSpec], recurrence: Recurrence) -> LanguageModel:
    """A language model of one graph.

    Raises:
        CalibrationError: an input cannot be made from text.
    """
    names = [spec.name for spec in recurrence.outputs]
    return LanguageModel(LanguageGraph(label, inputs, recurrence.outputs, lambda feed: recurrence.run(feed, names)))


def as_samples(calibration: object, model: Path | None, tokenizer: Path | None) -> object:
    """Calibration data as it is, but a file of text with its tokens.

    Args:
        calibration: as for `onnxq.data.readers.open_reader`.
        model: the file beside which, or above which, a tokenizer.json is looked for; None for one in memory.
        tokenizer: the tokenizer that the user names.

    Raises:
        CalibrationError: the text or its tokenizer cannot be used, or a tokenizer is named for what is no text.
        MissingExtraError: the library tokenizers is not installed.
    """
    if not is_text(calibration) or not isinstance(calibration, str | Path):
        if tokenizer is not None:
            raise CalibrationError(f"--tokenizer {tokenizer}: only goes with a text; pass --calibration prompts.txt")
        return calibration
    return TextSamples(prompts_of(calibration, model, tokenizer).ids())


def prompts_of(calibration: str | Path, model: Path | None, tokenizer: Path | None) -> Prompts:
    """The text file, with the tokenizer beside a model or in the folder above it; errors as of `as_samples`."""
    beside = [] if model is None else [model.parent, model.resolve().parent.parent]
    return open_prompts(calibration, beside, tokenizer)
