"""Language models: perplexity and agreement over tokens, without padding."""

from __future__ import annotations

import math

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.attention_mask import kept_positions
from onnxq.data.feeds import Feed

_ROWS = 256
"""Positions whose probabilities are computed at once."""

_NOT_TOKENS = ("mask", "type", "position", "segment", "cache", "past")


def token_ids(feed: Feed) -> Array | None:
    """The token ids of a feed: the integer input (N, S) that is no mask, position or segment; None unless one is.

    An input whose name ends in "input_ids" or "tokens" wins over others.
    """
    found = {
        name: array
        for name, array in feed.items()
        if array.ndim == 2 and array.dtype.kind in "iu" and not any(word in name.lower() for word in _NOT_TOKENS)
    }
    named = [array for name, array in found.items() if name.lower().endswith(("input_ids", "tokens"))]
    if len(named) == 1:
        return named[0]
    return next(iter(found.values())) if len(found) == 1 else None


def targets_of(feed: Feed, labels: Array | None) -> Array | None:
    """What each position is to predict, (N, S); −1 where nothing is asked.

    Labels that repeat the token ids are shifted by one, as training scripts for causal language models do; other
    labels stand for their own position; negative ones ask nothing. Without labels each position is to predict the
    next token. Padding is neither asked nor does it predict (`onnxq.data.attention_mask`).

    Args:
        feed: the sample.
        labels: integers, (N, S); None where there are none.
    """
    ids = token_ids(feed)
    if labels is None and ids is None:
        return None
    kept = kept_positions(feed)
    shifted = labels is None or (ids is not None and ids.shape == labels.shape and bool(_repeats(labels, ids)))
    given = ids if labels is None else labels
    assert given is not None
    targets = np.full(given.shape, -1, np.int64)
    if shifted:
        targets[:, :-1] = given[:, 1:]
    else:
        targets[:] = given
    if kept is not None and kept.shape == targets.shape:
        targets[~kept] = -1
        if shifted:
            targets[:, :-1][~kept[:, 1:]] = -1
    return np.where(targets < 0, -1, targets)


def _repeats(labels: Array, ids: Array) -> bool:
    return bool(((labels == ids) | (labels < 0)).all() and (labels >= 0).any())


class Tokens:
    """Sums over tokens of both models; memory does not depend on the number of samples."""

    def __init__(self, labelled: bool) -> None:
        """Start with no sample; ``labelled``: the data has labels for tokens."""
        self._labelled = labelled
        self._loss = [0.0, 0.0]
        self._hits = [0, 0]
        self._agreed = 0
        self._divergence = 0.0
        self._tokens = 0
        self._classes = 0
        self.fits = True

    def add(self, feed: Feed, labels: Array | None, expected: Array, got: Array) -> None:
        """Add one sample.

        Args:
            feed: the sample.
            labels: its labels, (N, S), or None.
            expected: logits of the float model, (N, S, classes).
            got: those of the quantized model.
        """
        targets = targets_of(feed, labels)
        fits = (
            targets is not None
            and expected.ndim == 3
            and expected.shape == got.shape
            and expected.shape[:2] == targets.shape
            and int(targets.max(initial=-1)) < expected.shape[-1]
        )
        if not fits or targets is None:
            self.fits = False
            return
        asked = targets >= 0
        wanted = targets[asked]
        choices = []
        logits = expected[asked], got[asked]
        for start in range(0, len(wanted), _ROWS):
            part = slice(start, start + _ROWS)
            both = [log_probabilities(array[part]) for array in logits]
            for model, logs in enumerate(both):
                self._loss[model] -= float(_finite(logs[np.arange(len(logs)), wanted[part]]).sum())
            self._divergence += divergence_of(*both)
        for model, array in enumerate(logits):
            choices.append(array.argmax(axis=-1))
            self._hits[model] += int(np.count_nonzero(choices[model] == wanted))
        self._agreed += int(np.count_nonzero(choices[0] == choices[1]))
        self._tokens += wanted.size
        self._classes = expected.shape[-1]

    @property
    def known(self) -> bool:
        """Every sample fitted, and there was a token.

        Without labels the float model has to predict better than chance: an output that only looks like logits (hidden
        states of a model with few tokens) does not.
        """
        if not self.fits or not self._tokens:
            return False
        return self._labelled or self._loss[0] / self._tokens < math.log(self._classes)

    @property
    def perplexity(self) -> dict[str, float] | None:
        """Exp of the mean negative log-likelihood of a token, of both models."""
        if not self.known:
            return None
        means = [loss / self._tokens for loss in self._loss]
        both = [math.exp(mean) if mean < 700.0 else math.inf for mean in means]
        return {"float": both[0], "quantized": both[1]}

    @property
    def agreement(self) -> float | None:
        """Share of tokens for which both models find the same one most likely."""
        return self._agreed / self._tokens if self.known else None

    @property
    def divergence(self) -> float | None:
        """Mean Kullback–Leibler divergence of the quantized model's distribution from the float model's, in nats."""
        return self._divergence / self._tokens if self.known else None

    @property
    def accuracy(self) -> dict[str, float] | None:
        """Share of tokens that are the most likely, of both models; None without labels."""
        if not self.known or not self._labelled:
            return None
        return {"float": self._hits[0] / self._tokens, "quantized": self._hits[1] / self._tokens}


def log_probabilities(logits: Array) -> Array:
    """Of each row, in float64; NaN where logits are not finite."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        wide -= wide.max(axis=-1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def _finite(logs: Array) -> Array:
    """NaN stands for no probability at all."""
    return np.where(np.isnan(logs), -np.inf, logs)


def divergence_of(reference: Array, actual: Array) -> float:
    """Σ p·(log p − log q) over rows and classes; classes without probability in the reference count nothing."""
    chance = np.exp(reference)
    with np.errstate(invalid="ignore"):
        terms = np.where(chance > 0, chance * (reference - _finite(actual)), 0.0)
    return float(terms.sum())
