"""Texts that a language model writes itself: samples for those who have none.

References:
    Liu et al., LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, arXiv:2305.17888, section 2.1:
    a first token drawn at random, a few that are the most likely ones, and the rest drawn from the model's own
    distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.data.state_pairs import state_pairs
from onnxq.data.text.language_inputs import CACHE, MASK, POSITIONS, TOKENS, TYPES, LanguageInputs
from onnxq.data.text.language_run import AFTER, ENCODER, FIRST, LanguageModel
from onnxq.errors import CalibrationError, ModelError

TOKENS_WRITTEN = 128
"""Tokens of a text, where the model has positions for so many."""

_GREEDY = 4
"""Tokens behind the first that are the most likely ones: they find a beginning that the model knows."""
_TOGETHER = 16
"""Texts that are written at the same time, where the graph takes several."""
_CLOSE = 1e-3


def own_texts(model: LanguageModel, count: int, most: int = TOKENS_WRITTEN, seed: int = 0) -> list[Array]:
    """Let a language model write texts.

    The same seed gives the same texts, whatever their number.

    Args:
        model: graphs that give logits over tokens.
        count: texts to write, 1 or more.
        most: tokens that the model has positions for; `TOKENS_WRITTEN` are written at most.
        seed: of everything that is drawn.

    Returns:
        Token ids of each text, int64, (tokens,).

    Raises:
        CalibrationError: the model is no language model, or a pass of it fails.
    """
    name = model.parts[FIRST].name
    if ENCODER in model.parts:
        raise CalibrationError(
            f"--generate: {name}: a decoder behind an encoder writes about a text; pass --calibration"
        )
    writer = _Writer(model, min(most, TOKENS_WRITTEN, model.inputs[FIRST].length or most))
    try:
        vocabulary = writer.vocabulary()
        size = writer.together(min(count, _TOGETHER))
        rows: list[Array] = []
        for start in range(0, count, size):
            drawn = [np.random.default_rng([seed, index]) for index in range(start, start + size)]
            rows += list(writer.write(drawn, vocabulary))
    except ModelError as error:
        raise CalibrationError(f"--generate: {name} cannot write a text: {error}") from error
    return rows[:count]


class _Writer:
    """Passes of a model over several texts of one length."""

    def __init__(self, model: LanguageModel, length: int) -> None:
        self.model, self.length = model, length
        self.steps = AFTER in model.parts and model.inputs[FIRST].length is None  # token by token, with a cache

    def vocabulary(self) -> int:
        """How many tokens there are.

        Raises:
            CalibrationError: there are no logits over tokens, or they depend on later tokens.
        """
        name = self.model.parts[FIRST].name
        ids = np.arange(1, 9, dtype=np.int64)[None, : max(self.length, 2)]
        logits, _ = self._pass(FIRST, ids, 0, {})
        if logits is None or logits.shape[-1] < 2 or logits.shape[1] < ids.shape[1]:
            raise CalibrationError(
                f"--generate: {name} is no language model that could write: it gives no logits of (batch, tokens, "
                "classes); pass --calibration"
            )
        fewer = ids.copy()
        fewer[:, ids.shape[1] // 2 :] = 0
        other, _ = self._pass(FIRST, fewer, 0, {})
        assert other is not None
        half = ids.shape[1] // 2
        apart = np.abs(other[:, :half] - logits[:, :half]).max(initial=0.0)
        if not apart <= _CLOSE * max(float(np.abs(logits).max()), 1.0):
            raise CalibrationError(
                f"--generate: {name} is no language model that could write: what it gives for a token depends on later "
                "ones; pass --calibration"
            )
        return int(logits.shape[-1])

    def together(self, wanted: int) -> int:
        """How many texts the graph takes at a time."""
        spec = self.model.inputs[FIRST].with_role(TOKENS)
        fixed = spec.shape[0] if spec is not None and len(spec.shape) == 2 else 1
        if isinstance(fixed, int):
            return max(fixed, 1)
        try:
            logits, _ = self._pass(FIRST, np.zeros((wanted, 2), np.int64), 0, {})
        except ModelError:
            return 1
        return wanted if logits is not None and logits.shape[0] == wanted else 1

    def write(self, drawn: Sequence[np.random.Generator], vocabulary: int) -> Array:
        """One text for each generator, (texts, tokens)."""
        ids = np.array([[rng.integers(vocabulary)] for rng in drawn], np.int64)
        caches: Feed = {}
        part, new, past = FIRST, ids, 0
        while ids.shape[1] < self.length:
            logits, outputs = self._pass(part, new, past, caches)
            assert logits is not None
            last = logits[:, min(new.shape[1], logits.shape[1]) - 1].astype(np.float64)
            if ids.shape[1] > _GREEDY:  # Gumbel's way of drawing from a softmax
                last = last + np.stack([rng.gumbel(size=last.shape[-1]) for rng in drawn])
            ids = np.concatenate([ids, last.argmax(axis=-1)[:, None]], axis=1)
            if self.steps:
                caches = self._carried(part, outputs, caches)
                part, new, past = AFTER, ids[:, -1:], ids.shape[1] - 1
            else:
                new = ids
        return ids

    def _pass(self, part: str, ids: Array, past: int, caches: Feed) -> tuple[Array | None, dict[str, Array]]:
        """Logits (texts, tokens, classes), None where there are none, and all outputs by name."""
        inputs, graph = self.model.inputs[part], self.model.parts[part]
        feed = _batched(inputs, ids, past, caches)
        outputs = dict(zip([spec.name for spec in graph.outputs], graph.run(feed), strict=True))
        logits = outputs.get(inputs.logits)
        given = isinstance(logits, np.ndarray) and logits.ndim == 3 and logits.dtype.kind == "f"
        return (np.asarray(logits, np.float32) if given else None), outputs

    def _carried(self, part: str, outputs: dict[str, Array], caches: Feed) -> Feed:
        """The caches of the next pass; what was given only once stays."""
        found = dict(caches)
        for output, name in state_pairs(self.model.inputs[AFTER].specs, self.model.parts[part].outputs).items():
            array = outputs.get(output)
            if isinstance(array, np.ndarray) and (array.size or name not in found):
                found[name] = array
        return found


def _batched(inputs: LanguageInputs, ids: Array, past: int, caches: Feed) -> Feed:
    """What a pass over several texts takes, (texts, tokens)."""
    feed, count = inputs.feed(ids[0], past, caches), len(ids)
    for spec in inputs.specs:
        role, array = inputs.roles[spec.name], feed[spec.name]
        if role == TOKENS and array.ndim == 2:
            wide = np.zeros((count, array.shape[1]), array.dtype)
            wide[:, : min(ids.shape[1], array.shape[1])] = ids[:, : array.shape[1]]
            feed[spec.name] = wide
        elif (role == CACHE and spec.name not in caches and array.shape[0] != count) or (
            role in (MASK, POSITIONS, TYPES) and array.ndim == 2 and array.shape[0] != count
        ):
            feed[spec.name] = np.repeat(array[:1], count, axis=0)
    return feed
