"""A language model as it is used: the passes that it is timed on, and what it generates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.data.text.language_inputs import may_be_cached, takes_text
from onnxq.data.text.language_run import (
    AFTER,
    ENCODER,
    FIRST,
    LanguageGraph,
    LanguageModel,
    joined_ids,
    vocabulary_of,
)
from onnxq.data.text.own_texts import own_texts
from onnxq.data.text.prompts import LONGEST, longest, read_config
from onnxq.errors import CalibrationError, ModelError, OnnxqError, RecipeError, there_are
from onnxq.pipeline.float_model import Prepared, is_path
from onnxq.recipe.values import CHAT, DECODE, PREFILL, WORKLOADS
from onnxq.runtime.session import Session, open_session
from onnxq.verify.language.generation import Generated, compare_generated
from onnxq.verify.language.workload import TOKENS_IN, TOKENS_OUT, Phase, Workload

_FEWEST = 4
"""Tokens of a prompt that is not worth a measurement any more."""

_PASSES = {PREFILL: (1, 0), DECODE: (0, 1)}
"""How often each phase counts, but for a chat, where that goes by the tokens of the answer."""


@dataclass(frozen=True)
class UsedAs:
    """A graph as a part of a language model.

    Attributes:
        model: the float model, of which the graph is a part or all.
        parts: which parts the graph is.
        rows: token ids of texts; empty where there are none.
        vocabulary: tokens that there are.
        most: tokens that the model has positions for.
    """

    model: LanguageModel
    parts: Sequence[str]
    rows: Sequence[Array] = ()
    vocabulary: int = 1
    most: int = LONGEST


def part_of(session: Session, label: str) -> LanguageGraph:
    """An open session as a graph of a language model."""
    return LanguageGraph(
        label, session.input_specs, session.output_specs, lambda feed: session.run(feed, _tensors(session))
    )


def _tensors(session: Session) -> list[str]:
    return [spec.name for spec in session.output_specs]


def used_alone(prepared: Prepared, rows: Sequence[Array], threads: int | None) -> UsedAs:
    """A graph that is a whole language model.

    Raises:
        CalibrationError: an input cannot be made from text.
        ModelError: the runtime cannot load it.
    """
    session = open_session(prepared.original, threads=threads, label=prepared.label)
    language = LanguageModel(part_of(session, prepared.label))
    source = prepared.source
    beside = Path(source).parent if source is not None and is_path(source) else None
    most = LONGEST if beside is None else longest(read_config(beside / "config.json"))
    vocabulary = vocabulary_of(session.output_specs, language.inputs[FIRST].logits)
    return UsedAs(language, (FIRST, AFTER), rows, vocabulary or 1, most)


def check_generate(count: int | None, calibration: object) -> None:
    """Raise RecipeError where texts are to be written, and that makes no sense."""
    if count is None:
        return
    if count < 1:
        raise RecipeError(f"--generate {count}: is a number of texts, 1 or more; 64 are usual")
    if calibration is not None:
        raise RecipeError(
            f"--generate {count}: the model writes its own samples, and --calibration gives others; leave one out"
        )


def texts_of(prepared: Prepared, count: int, seed: int, threads: int | None) -> list[Array]:
    """Texts that a model writes itself.

    Raises:
        CalibrationError: it is no language model.
        ModelError: the runtime cannot load it.
    """
    if not takes_text(prepared.inputs):
        listed = ", ".join(f"'{spec.name}'" for spec in prepared.inputs) or "none"
        raise CalibrationError(
            f"--generate: {prepared.label} is no language model: none of its inputs, {listed}, takes token ids; pass "
            "--calibration"
        )
    used = used_alone(prepared, (), threads)
    return own_texts(used.model, count, used.most, seed)


def said_of_texts(rows: Sequence[Array]) -> str:
    """What to tell a user of them."""
    return f"samples: {len(rows)} texts of {len(rows[0])} tokens that the model wrote itself"


def workload_of(
    asked: str | None, used: UsedAs | None, prepared: Prepared, rows: Sequence[Array], threads: int | None
) -> tuple[Workload | None, UsedAs | None]:
    """What a model is timed on, if it is a language model with a cache.

    Args:
        asked: what the user wants to be weighed; None takes a chat, where the model has a cache.
        used: how the graph is used, where that is known already; None looks at the graph alone.
        prepared: the float model.
        rows: token ids of texts.
        threads: threads an operator may use.

    Returns:
        The workload and how the model is used; None for models without a cache.

    Raises:
        RecipeError: the user asks for a workload that there is none of, or of a model without a cache.
    """
    if asked is not None and asked not in WORKLOADS:
        raise RecipeError(f"--workload {asked}: {there_are(asked, WORKLOADS)}")
    failure = "it takes no token ids"
    with suppress(ModelError):
        try:
            if used is None and takes_text(prepared.inputs) and may_be_cached(prepared.inputs, prepared.outputs):
                used = used_alone(prepared, rows, threads)
            if used is not None and used.model.cached:
                return _phases(used, asked or CHAT), used
            failure = "it keeps no cache from one pass to the next"
        except CalibrationError as error:
            failure = str(error)
    if asked is not None:
        raise RecipeError(f"--workload {asked}: is of language models with a cache, and for this model {failure}")
    return None, used


def _phases(used: UsedAs, name: str) -> Workload | None:
    """The passes of a workload; shorter ones where the model takes no longer ones."""
    into, out = TOKENS_IN, TOKENS_OUT
    while into + out // 2 + 1 > used.most and into > _FEWEST:
        into, out = into // 2, out // 2
    failure: OnnxqError | None = None
    while into >= _FEWEST:
        try:
            return Workload(name, _passes(used, name, into, out))
        except (ModelError, CalibrationError) as error:
            failure = failure or error
            into, out = into // 2, out // 2
    raise CalibrationError(f"it runs on no prompt: {failure}")


def _passes(used: UsedAs, name: str, into: int, out: int) -> list[Phase]:
    counts = _PASSES.get(name, (1, out))
    both = FIRST in used.parts and AFTER in used.parts
    ids = joined_ids(used.rows, into + out // 2, used.vocabulary)
    phases = []
    if ENCODER in used.parts or FIRST in used.parts:
        part = ENCODER if ENCODER in used.parts else FIRST
        feed, tokens = _fed(used.model, part, ids[:into], 0, 1)
        phases.append(Phase(PREFILL, feed, counts[0] if both else 1, tokens))
    if AFTER in used.parts:
        seq2seq = ENCODER in used.model.parts
        feed, _ = _fed(used.model, AFTER, ids[:into] if seq2seq else ids, 1, out // 2)
        past = out // 2 if seq2seq else len(ids)
        phases.append(Phase(DECODE, feed, counts[1] if both else 1, 1, past))
    return phases


def _fed(model: LanguageModel, part: str, ids: Array, count: int, prefix: int) -> tuple[Feed, int]:
    """What a part is fed at its last pass over a prompt, and how many tokens that are."""
    last = [step for step in model.steps(ids, count, follow=[int(ids[-1])], prefix=prefix) if step.part == part][-1]
    return last.feed, len(last.ids)


def generated(used: UsedAs, quantized: LanguageModel) -> Generated | None:
    """How a quantized model follows what float generates behind the texts; None without texts or a cache.

    Raises:
        ModelError: a model cannot be run.
    """
    return compare_generated(used.model, quantized, used.rows) if used.rows else None
