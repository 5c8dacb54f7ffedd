"""A decoder's samples in pieces: a prompt, then one token after another, as the model is used with caches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec
from onnxq.errors import RecipeError

_NOT_TOKENS = ("mask", "type", "position", "segment", "cache", "past")


@dataclass(frozen=True)
class Roles:
    """What the inputs and outputs of a decoder are for.

    Attributes:
        ids: the input of token ids, (batch, length).
        positions: the input of their positions, of the same shape; None where the model counts by itself.
        mask: the input that says which of all tokens count, (batch, past and new); None where there is none.
        logits: the output that predicts the next token, (batch, length, tokens).
        caches: output by the input that it goes back into.
    """

    ids: str
    positions: str | None
    mask: str | None
    logits: str
    caches: Mapping[str, str]


def roles_of(inputs: Sequence[InputSpec], outputs: Sequence[InputSpec], caches: Mapping[str, str]) -> Roles:
    """Tell the inputs and outputs of a decoder by their names, types and ranks.

    Args:
        inputs: of the model.
        outputs: of the model.
        caches: output by input.

    Raises:
        RecipeError: there are no token ids, or no logits.
    """
    whole = [spec for spec in inputs if spec.name not in caches and spec.dtype.kind in "iu" and len(spec.shape) == 2]
    ids = [spec.name for spec in whole if not any(word in spec.name.lower() for word in _NOT_TOKENS)]
    named = [name for name in ids if name.lower().endswith(("input_ids", "tokens"))] or ids
    scores = [o.name for o in outputs if o.name not in caches.values() and o.dtype.kind == "f" and len(o.shape) == 3]
    logits = [name for name in scores if "logit" in name.lower()] or scores
    if len(named) != 1 or not logits:
        what = (
            "one input of token ids (input_ids)" if len(named) != 1 else "an output (batch, length, tokens) of logits"
        )
        listed = ", ".join(f"'{spec.name}'" for spec in (inputs if len(named) != 1 else outputs)) or "none"
        raise RecipeError(f"--kv-cache: the model is no decoder of text: {what} is needed, and there are {listed}")
    position = next((spec.name for spec in whole if "position" in spec.name.lower()), None)
    masked = [spec.name for spec in inputs if "mask" in spec.name.lower() and len(spec.shape) == 2]
    return Roles(named[0], position, masked[0] if masked else None, logits[0], dict(caches))


def in_pieces(feed: Feed, roles: Roles, lengths: Sequence[int]) -> Iterator[Feed]:
    """The feeds of consecutive pieces of a sample, without caches.

    Args:
        feed: a sample.
        roles: of its model.
        lengths: tokens of each piece; tokens behind them are left out.
    """
    count = feed[roles.ids].shape[1]
    before = 0 if roles.mask is None else feed[roles.mask].shape[1] - count
    start = 0
    for length in lengths:
        stop = start + length
        piece = {name: array for name, array in feed.items() if name not in roles.caches}
        for name in (roles.ids, roles.positions):
            if name is not None:
                piece[name] = feed[name][:, start:stop]
        if roles.mask is not None:
            piece[roles.mask] = feed[roles.mask][:, : before + stop]
        yield piece
        start = stop


def one_more(piece: Feed, roles: Roles, ids: Array) -> Feed:
    """The feed of the next token of each sample behind a piece."""
    further = {**piece, roles.ids: ids.astype(piece[roles.ids].dtype)[:, None]}
    if roles.positions is not None:
        further[roles.positions] = piece[roles.positions][:, -1:] + 1
    if roles.mask is not None:
        ones = np.ones((len(ids), 1), piece[roles.mask].dtype)
        further[roles.mask] = np.concatenate([piece[roles.mask], ones], axis=1)
    return further


def empty_caches(inputs: Collection[InputSpec], roles: Roles, batch: int) -> Feed:
    """Caches that hold no token yet."""
    found = {}
    for spec in inputs:
        if spec.name in roles.caches:
            dims = [dim if isinstance(dim, int) else (batch if axis == 0 else 0) for axis, dim in enumerate(spec.shape)]
            found[spec.name] = np.zeros(dims, spec.dtype)
    return found
