"""What becomes of a language model where it is used: tokens generated with the cache that each model keeps itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.text.language_run import LanguageModel
from onnxq.verify.tokens import divergence_of, log_probabilities

GENERATED = 32
"""Tokens generated behind each text."""

PROMPTS, PROMPT_TOKENS = 8, 128
"""Texts at most, and tokens of each."""


@dataclass(frozen=True)
class Generated:
    """How a quantized model follows what the float model generates.

    Attributes:
        tokens: tokens that the float model generated, each the most likely one.
        perplexity: exp of the mean negative log-likelihood of those tokens, of the float and the quantized model.
        divergence: mean Kullback–Leibler divergence from the float model's distribution, in nats.
        agreement: share of the tokens that the quantized model finds most likely as well.
    """

    tokens: int
    perplexity: dict[str, float]
    divergence: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """As plain Python values."""
        return asdict(self)


def compare_generated(
    reference: LanguageModel, actual: LanguageModel, rows: Sequence[Array], count: int = GENERATED
) -> Generated | None:
    """Let the float model generate, and the quantized model follow it on its own cache.

    Args:
        reference: the float model.
        actual: the quantized model.
        rows: token ids of prompts; the last `PROMPTS` are used, which ranges saw least of.
        count: tokens to generate behind each.

    Returns:
        None where the models keep no cache or give no logits.

    Raises:
        ModelError: a model cannot be run.
        CalibrationError: a model gives no cache for the next token.
    """
    if not reference.cached or not actual.cached:
        return None
    losses = [0.0, 0.0]
    divergence, agreed, total = 0.0, 0, 0
    for row in rows[-PROMPTS:]:
        expected = [step.logits for step in reference.steps(row[:PROMPT_TOKENS], count)]
        wanted = [_last(logits) for logits in expected if logits is not None]
        follow = [int(logits.argmax()) for logits in wanted]
        found = [_last(s.logits) for s in actual.steps(row[:PROMPT_TOKENS], count, follow) if s.logits is not None]
        if not wanted or len(wanted) != len(found):
            return None
        both = [log_probabilities(np.stack(logits)) for logits in (wanted, found)]
        for model, logs in enumerate(both):
            losses[model] -= float(logs[np.arange(len(follow)), follow].sum())
        divergence += divergence_of(*both)
        agreed += int(np.count_nonzero(both[1].argmax(axis=-1) == np.array(follow)))
        total += len(follow)
    if not total:
        return None
    means = [loss / total for loss in losses]
    perplexity = [math.exp(mean) if mean < 700.0 else math.inf for mean in means]
    return Generated(
        total, {"float": perplexity[0], "quantized": perplexity[1]}, max(divergence / total, 0.0), agreed / total
    )


def _last(logits: Array) -> Array:
    """Scores of the token after the last one, (classes,)."""
    last: Array = logits[0, -1]
    return last
