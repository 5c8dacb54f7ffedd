"""Decoders run as they are used: a prompt, then token after token, on the caches that they gave before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.core.cache_grids import CacheGrid
from onnxq.core.dtypes import Array
from onnxq.data.attention_mask import at_tokens
from onnxq.data.decoding import Roles, empty_caches, in_pieces, one_more
from onnxq.data.feeds import Feed, InputSpec
from onnxq.runtime.session import Session


class Decoder:
    """A decoder with its caches.

    Attributes:
        roles: what its inputs and outputs are for.
        specs: its inputs.
    """

    def __init__(self, session: Session, roles: Roles, grids: Mapping[str, CacheGrid] | None = None) -> None:
        """Take an open decoder; ``grids`` say how its caches are stored, by input, where they hold integers."""
        self.roles = roles
        self._session = session
        self.specs = session.input_specs
        self._grids = grids or {}
        self._fetch = [roles.logits, *roles.caches.values()]

    def start(self, feed: Feed) -> Feed:
        """The caches that a sample begins with: those that it holds, stored as this decoder stores them, else none."""
        caches = empty_caches(self.specs, self.roles, feed[self.roles.ids].shape[0])
        for name in caches:
            if name in feed:
                caches[name] = self._grids[name].quantize(feed[name]) if name in self._grids else feed[name]
        return caches

    def step(self, piece: Feed, caches: Feed) -> tuple[Array, Feed]:
        """Run one piece; (its logits, the caches after it)."""
        logits, *after = self._session.run({**piece, **caches}, self._fetch)
        return logits, dict(zip(self.roles.caches, after, strict=True))

    def run(self, feed: Feed, lengths: Sequence[int]) -> tuple[Array, Feed]:
        """Run a sample in pieces, each on the caches of the one before.

        Returns:
            Logits of all their tokens, (batch, length, tokens), and the caches at the end.
        """
        caches, found = self.start(feed), []
        for piece in in_pieces(feed, self.roles, lengths):
            logits, caches = self.step(piece, caches)
            found.append(logits)
        return np.concatenate(found, axis=1), caches

    def go_on(self, feed: Feed, steps: int) -> Feed:
        """Run a whole sample as a prompt, then choose the likeliest token a number of times; the caches at the end."""
        caches = self.start(feed)
        (piece,) = in_pieces(feed, self.roles, [feed[self.roles.ids].shape[1]])
        for _ in range(steps + 1):
            logits, caches = self.step(piece, caches)
            piece = one_more(piece, self.roles, logits[:, -1].argmax(axis=-1))
        return caches


class CacheRows:
    """Some rows and the largest magnitudes of what caches hold, over samples; memory is bounded."""

    def __init__(self, rows: int, samples: int) -> None:
        """Keep about ``rows`` tokens of each cache, evenly over ``samples`` calls of `add`."""
        self._share = -(-rows // max(samples, 1))
        self._rows: dict[str, list[Array]] = {}
        self.peaks: dict[str, Array] = {}

    def add(self, caches: Feed, kept: Array | None = None) -> None:
        """Add the caches of one sample.

        Args:
            caches: float, (batch, heads, tokens, size), by name.
            kept: (batch, tokens), False for padding; None where there is none.
        """
        for name, cache in caches.items():
            flat = np.swapaxes(cache, 1, 2).astype(np.float32)
            flat = (
                flat[kept] if kept is not None and kept.shape == flat.shape[:2] else flat.reshape(-1, *flat.shape[2:])
            )
            flat = flat[np.isfinite(flat).all(axis=(1, 2))]
            if not len(flat):
                continue
            peak = np.abs(flat).max(axis=0)
            self.peaks[name] = np.maximum(self.peaks[name], peak) if name in self.peaks else peak
            places = np.linspace(0, len(flat) - 1, min(self._share, len(flat))).astype(int)
            self._rows.setdefault(name, []).append(flat[places])

    def rows(self, name: str) -> Array | None:
        """float32, (rows, heads, size); None where nothing was seen of the cache."""
        return np.concatenate(self._rows[name]) if name in self._rows else None


class Looped(Session):
    """A decoder as a session whose one output is its logits: a prompt at once, then its last tokens one by one.

    So it is compared and timed by what compares and times sessions, on feeds without caches or with those of float.

    Attributes:
        steps: tokens that were run one by one in the last run.
    """

    MOST_STEPS = 32

    def __init__(self, decoder: Decoder, label: str) -> None:
        self.label = label
        self.keep, self.source, self.optimize, self.threads = None, None, True, None
        self.output_names = [decoder.roles.logits]
        self.output_dtypes = {decoder.roles.logits: np.dtype(np.float32)}
        self.steps = 0
        self._decoder = decoder

    @property
    def input_specs(self) -> list[InputSpec]:
        """Those of the decoder; caches may be missing."""
        return self._decoder.specs

    @property
    def output_specs(self) -> list[InputSpec]:
        """The logits."""
        return [InputSpec(self._decoder.roles.logits, np.dtype(np.float32), (None, None, None))]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None, *, seconds: float | None = None) -> list[Any]:
        """The logits of all tokens of a sample, from its own caches on; the second half, or 32, come one by one."""
        count = feed[self._decoder.roles.ids].shape[1]
        self.steps = min(self.MOST_STEPS, count // 2)
        logits, _ = self._decoder.run(feed, [count - self.steps, *([1] * self.steps)])
        return at_tokens([logits], feed)


class AtTokens(Session):
    """An open session whose outputs are zeros at padding (see `onnxq.data.attention_mask.at_tokens`)."""

    def __init__(self, session: Session) -> None:
        self.label = session.label
        self.keep, self.source, self.optimize, self.threads = session, None, session.optimize, session.threads
        self.output_names, self.output_dtypes = session.output_names, session.output_dtypes
        self._inner = session

    @property
    def input_specs(self) -> list[InputSpec]:
        """Those of the session."""
        return self._inner.input_specs

    @property
    def output_specs(self) -> list[InputSpec]:
        """Those of the session."""
        return self._inner.output_specs

    def run(self, feed: Feed, outputs: Sequence[str] | None = None, *, seconds: float | None = None) -> list[Any]:
        """Run the session once."""
        return at_tokens(self._inner.run(feed, outputs, seconds=seconds), feed)
