"""What each input of a language model takes: tokens, a mask, positions, a cache; found by names, types and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Dim, Feed, InputSpec
from onnxq.data.state_pairs import state_pairs
from onnxq.errors import CalibrationError

TOKENS, MASK, POSITIONS, TYPES, BRANCH, COUNT = "tokens", "mask", "positions", "types", "branch", "count"
CACHE, ENCODED, ENCODED_MASK = "cache", "encoded", "encoded mask"

_NAMED = {
    "input_ids": TOKENS, "decoder_input_ids": TOKENS, "tokens": TOKENS, "token_ids": TOKENS,
    "attention_mask": MASK, "input_mask": MASK, "decoder_attention_mask": MASK,
    "position_ids": POSITIONS, "cache_position": POSITIONS,
    "token_type_ids": TYPES, "segment_ids": TYPES,
    "use_cache_branch": BRANCH, "num_logits_to_keep": COUNT,
    "encoder_hidden_states": ENCODED, "encoder_outputs": ENCODED, "encoder_attention_mask": ENCODED_MASK,
}  # fmt: skip
"""Inputs by the names that exporters give them."""

_CACHE_RANK = 4


_CACHE_WORDS = re.compile(r"past|cache|key|value|(^|[^a-z])(k|v|kv)([^a-z]|$)", re.IGNORECASE)


class UnknownCacheError(CalibrationError):
    """An input looks like a cache, and nothing says which output it is."""


@dataclass(frozen=True)
class LanguageInputs:
    """How a graph takes text.

    Attributes:
        specs: its inputs, in their order.
        roles: what each input is, by name.
        caches: the input that a cache goes back into, by name of the output.
        logits: the output that scores the next token, or the first that is no cache.
        crossed: caches of the encoder's keys and values, which the graph does not give anew.
        grows: the axis of each cache along which its tokens lie, by name of the input.
        width: length of the other axes of caches that the graph leaves open, as some do with the size of a head.
    """

    specs: Sequence[InputSpec]
    roles: Mapping[str, str]
    caches: Mapping[str, str]
    logits: str
    crossed: tuple[str, ...] = field(default=())
    grows: Mapping[str, int] = field(default_factory=dict)
    width: int = 0

    def with_role(self, role: str) -> InputSpec | None:
        """The first input of a role; None where there is none."""
        return next((spec for spec in self.specs if self.roles[spec.name] == role), None)

    @property
    def cached(self) -> bool:
        """Whether it takes the cache of what came before."""
        return any(role == CACHE for role in self.roles.values())

    @property
    def open_width(self) -> bool:
        """Whether a cache has an open axis besides those of the batch and of its tokens."""
        caches = [spec for spec in self.specs if self.roles[spec.name] == CACHE]
        return any(
            not isinstance(dim, int) and axis not in (0, self.grows[spec.name])
            for spec in caches
            for axis, dim in enumerate(spec.shape)
        )

    @property
    def length(self) -> int | None:
        """Tokens of a sample where the graph fixes them."""
        spec = self.with_role(TOKENS)
        return spec.shape[1] if spec is not None and len(spec.shape) == 2 and isinstance(spec.shape[1], int) else None

    def feed(self, ids: Array, past: int, caches: Feed, encoded: Feed | None = None) -> Feed:
        """What a forward pass over some tokens takes.

        Args:
            ids: token ids, (S,); a graph of fixed length gets them cut or filled up, with a mask of 0 there.
            past: tokens that the caches hold.
            caches: by name of the input; those that are missing are empty.
            encoded: what the encoder gave, by role (`ENCODED` and `ENCODED_MASK`).
        """
        held = len(ids) if self.length is None else self.length
        kept = ids[:held]
        batch = self._batch()
        rows = {
            TOKENS: _filled(kept, held),
            MASK: np.concatenate([np.ones(past, np.int64), _filled(np.ones(len(kept), np.int64), held)]),
            POSITIONS: np.arange(past, past + held),
            TYPES: np.zeros(held, np.int64),
        }
        found: Feed = {}
        for spec in self.specs:
            role = self.roles[spec.name]
            if role == CACHE:
                found[spec.name] = caches[spec.name] if spec.name in caches else self._empty(spec, batch)
            elif role in rows:
                row = rows[role].astype(spec.dtype)
                one_axis = len(spec.shape) == 1
                found[spec.name] = row if one_axis else np.repeat(row[None], batch, axis=0)
            elif role == BRANCH:
                found[spec.name] = np.full((1,) * len(spec.shape), bool(caches), spec.dtype)
            elif role == COUNT:
                found[spec.name] = np.zeros((1,) * len(spec.shape), spec.dtype)
            else:
                found[spec.name] = (encoded or {})[role].astype(spec.dtype)
        return found

    def _batch(self) -> int:
        spec = self.with_role(TOKENS)
        first = spec.shape[0] if spec is not None and len(spec.shape) == 2 else 1
        return first if isinstance(first, int) else 1

    def _empty(self, spec: InputSpec, batch: int) -> Array:
        """A cache without a token; a graph whose cache has a fixed length gets one of zeros."""
        open_axes = {0: batch, self.grows[spec.name]: 0}
        shape = [
            dim if isinstance(dim, int) else open_axes.get(axis, self.width) for axis, dim in enumerate(spec.shape)
        ]
        return np.zeros(shape, spec.dtype)


def _filled(row: Array, length: int) -> Array:
    return np.concatenate([row, np.zeros(length - len(row), row.dtype)])


def takes_text(inputs: Sequence[InputSpec]) -> bool:
    """Whether a model has an input for token ids."""
    return any(_NAMED.get(spec.name) == TOKENS for spec in inputs) or _only_tokens(inputs) is not None


def may_be_cached(inputs: Sequence[InputSpec], outputs: Sequence[InputSpec]) -> bool:
    """Whether outputs go back into inputs, as a cache does."""
    return bool(state_pairs(inputs, outputs))


def language_inputs(
    inputs: Sequence[InputSpec],
    outputs: Sequence[InputSpec],
    where: str,
    *,
    before: Sequence[InputSpec] = (),
) -> LanguageInputs:
    """Find out what each input of a graph takes.

    Args:
        inputs: of the graph.
        outputs: of the graph.
        where: what messages call it.
        before: outputs of the graph that runs before it, whose caches it takes too.

    Raises:
        CalibrationError: there is no input for token ids, or one that cannot be made from text.
    """
    caches = state_pairs(inputs, outputs)
    taken = set(caches.values()) | set(state_pairs(inputs, before).values())
    tokens = next((spec for spec in inputs if _NAMED.get(spec.name) == TOKENS), None) or _only_tokens(inputs)
    if tokens is None:
        listed = ", ".join(f"'{spec.name}'" for spec in inputs) or "none"
        raise CalibrationError(
            f"{where}: has no input for token ids, such as input_ids; its inputs are {listed}; pass samples as an .npz"
        )
    roles = {}
    for spec in inputs:
        if spec.name in taken:
            roles[spec.name] = CACHE
        elif spec.name == tokens.name:
            roles[spec.name] = TOKENS
        elif spec.name in _NAMED:
            roles[spec.name] = _NAMED[spec.name]
        else:
            cache = len(spec.shape) == _CACHE_RANK and bool(_CACHE_WORDS.search(spec.name))
            kind = "a cache that no output gives anew" if cache else "nothing that text gives"
            given = ", ".join(f"'{output.name}'" for output in outputs[:3]) + (" …" if len(outputs) > 3 else "")
            raise (UnknownCacheError if cache else CalibrationError)(
                f"{where}: input '{spec.name}' is {kind}; a cache is known by its names, such as "
                f"past_key_values.0.key and present.0.key, and the outputs are {given}; rename it, or pass samples as "
                "an .npz"
            )
    logits = next((o.name for o in outputs if o.name == "logits"), None)
    logits = logits or next((o.name for o in outputs if o.name not in caches), outputs[0].name if outputs else "")
    crossed = tuple(name for name in taken if name not in caches.values())
    makers = {name: output for output, name in {**state_pairs(inputs, before), **caches}.items()}
    shapes = {spec.name: spec.shape for spec in (*before, *outputs)}
    grows = {spec.name: _growing(spec.shape, shapes[makers[spec.name]]) for spec in inputs if spec.name in taken}
    return LanguageInputs(list(inputs), roles, caches, logits, crossed, grows)


def _growing(past: Sequence[Dim], present: Sequence[Dim]) -> int:
    """The axis of tokens: open, not the batch, and of another name in the cache that goes out where there are names."""
    open_axes = [axis for axis, dim in enumerate(past) if axis and not isinstance(dim, int)]
    renamed = [axis for axis in open_axes if axis < len(present) and past[axis] and past[axis] != present[axis]]
    usual = 2 if len(past) == _CACHE_RANK else 1
    found = renamed or open_axes
    return usual if usual in found or not found else found[0]


def _only_tokens(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """The only integer input of two axes; a model whose exporter gave names of its own has one."""
    found = [spec for spec in inputs if spec.dtype.kind == "i" and len(spec.shape) == 2 and spec.name not in _NAMED]
    return found[0] if len(found) == 1 else None
