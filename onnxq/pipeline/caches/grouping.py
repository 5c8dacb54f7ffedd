"""Before anything is quantized: attention that can have integer caches, or the reason why the model has none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import numpy as np

from onnxq.core.cache_grids import BITS
from onnxq.core.dtypes import Array
from onnxq.data.attention_mask import at_tokens
from onnxq.data.decoding import Roles, in_pieces, roles_of
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError, RecipeError
from onnxq.graph import walk
from onnxq.graph.attention.cache_ports import Cache, add_caches, caches_of
from onnxq.graph.attention.grouped import group
from onnxq.graph.attention.plain_attention import RunFacts, factors_of, find_sites
from onnxq.graph.edit import copy_of
from onnxq.graph.types import Model
from onnxq.graph.views.outputs import with_outputs
from onnxq.pipeline.float_model import Prepared
from onnxq.pipeline.job import Data
from onnxq.runtime.fuse import TOLERANCE, farthest_apart
from onnxq.runtime.loops.decoder_loop import Decoder
from onnxq.runtime.probe import probe
from onnxq.runtime.session import session_of
from onnxq.runtime.synthetic import runnable_feed

_LOOKED_FOR = "com.microsoft.GroupQueryAttention, or scores, a causal mask, Softmax and a mixture by MatMul"
_OLDER = 3
"""Tokens that a cache holds when masks and outputs are looked at once more."""

_ATTENTIONS = ("MultiHeadAttention", "Attention", "DecoderMaskedMultiHeadAttention", "PagedAttention")


def group_attention(prepared: Prepared, data: Data | None, form: str, threads: int | None) -> None:
    """Write the attention of the prepared model as GroupQueryAttention where it is in plain operators.

    Args:
        prepared: its model is replaced where something was written.
        data: samples; None makes one up.
        form: "float", or a key of `BITS`.
        threads: threads an operator may use.

    Raises:
        RecipeError: there are no samples to find scales from, or the model is no decoder.
        ModelError: there is no attention that could have such caches; the message says what was looked for.
    """
    if form in BITS and data is None:
        raise RecipeError(
            f"--kv-cache {form}: the scales of caches come from samples and there are none; pass --calibration, or "
            "--kv-cache float, which needs none"
        )
    model = prepared.model
    feed = data.first if data is not None else runnable_feed(session_of(model, threads=threads))
    fused, sizes = _grouped(model, feed, threads)
    caches = caches_of(fused or model, sizes)
    if not caches:
        raise ModelError(f"--kv-cache {form}: no attention that can have such caches: {_what_there_is(model)}")
    refuse(caches, form)
    prepared.head_sizes = {cache.node: cache.size for cache in caches}
    with_caches = (fused or model).clone()
    whole = add_caches(with_caches, sizes)
    if whole != caches:
        _check_going_on(model, with_caches, whole, feed, threads)
    if fused is not None:
        prepared.model = fused
        prepared.sources = {
            node.name or "": prepared.sources.get(node.name or "", (node.name or "",))
            for node in walk.all_nodes(fused.graph)
        }


def refuse(caches: list[Cache], form: str) -> None:
    """Raise RecipeError where caches cannot have a form."""
    done = next((cache for cache in caches if cache.integer), None)
    if done is not None:
        raise RecipeError(
            f"--kv-cache {form}: the caches of '{done.node}' hold integers already; pass the model whose caches are "
            "float"
        )
    odd = next((cache for cache in caches if cache.size % 2), None)
    if form == "int4" and odd is not None:
        raise RecipeError(
            f"--kv-cache int4: heads of {odd.size} numbers ('{odd.node}') do not fill bytes of two; use --kv-cache int8"
        )


def _what_there_is(model: Model) -> str:
    there = Counter(node.op_type for node in walk.all_nodes(model.graph) if node.op_type in (*_ATTENTIONS, "Softmax"))
    found = ", ".join(f"{count} {name}" for name, count in sorted(there.items())) or "neither"
    return f"looked for {_LOOKED_FOR}, and found {found}; onnxruntime has integer caches for GroupQueryAttention alone"


def _grouped(model: Model, feed: Feed, threads: int | None) -> tuple[Model | None, dict[str, int]]:
    """A copy with plain attention written as one operator, or None where none is causal; sizes of its heads."""
    feeds, found = _variations(feed), probe(model, feed, threads=threads)
    shapes = {name: info.shape for name, info in found.items()}
    factors = _single_numbers(model, factors_of(model, shapes), feeds, threads)
    seen = RunFacts(shapes, factors)
    names = {site.mask_name for site in find_sites(model, seen) if site.mask is not None}
    if not names:
        return None, {}
    masks, kept = _observed(model, names, feeds, threads)
    fused = copy_of(model)
    sizes = group(fused, masks, seen)
    if not sizes:
        return None, {}
    ours, theirs = session_of(model, threads=threads), session_of(fused, threads=threads)
    for varied in kept:
        apart = farthest_apart(at_tokens(ours.run(varied), varied), at_tokens(theirs.run(varied), varied))
        if not apart <= TOLERANCE:
            raise ModelError(
                f"--kv-cache: with its attention written as GroupQueryAttention the model's outputs differ by "
                f"{apart:.1e}, more than {TOLERANCE:.0e}; export it with that operator (onnxruntime-genai's builder)"
            )
    return fused, sizes


def _observed(
    model: Model, names: Collection[str], feeds: list[Feed], threads: int | None
) -> tuple[dict[str, list[Array]], list[Feed]]:
    """Contents of values in each run, constants once; and the feeds that the model ran on."""
    augmented = with_outputs(model, names)
    session = session_of(augmented.model, threads=threads)
    seen: dict[str, list[Array]] = {name: [] for name in augmented.outputs}
    kept = []
    for feed in feeds:
        try:
            arrays = session.run(feed, augmented.outputs)
        except ModelError:
            continue  # a model of fixed lengths
        kept.append(feed)
        for name, array in zip(augmented.outputs, arrays, strict=True):
            seen[name].append(np.asarray(array))
    for name in augmented.constants:
        array = walk.const_array(model.graph.initializers[name])
        if array is not None:
            seen[name] = [array]
    return seen, kept


def _single_numbers(model: Model, names: list[str], feeds: list[Feed], threads: int | None) -> dict[str, float]:
    """Those of the values that hold one and the same number in every run."""
    seen, _ = _observed(model, names, feeds, threads)
    numbers = {name: {float(array.reshape(())) for array in arrays} for name, arrays in seen.items()}
    return {name: found.pop() for name, found in numbers.items() if len(found) == 1}


def _variations(feed: Feed) -> list[Feed]:
    """The sample, its first half, and the sample after itself where it has caches: masks must hold for them all."""
    found = [feed]
    ids = [name for name, array in feed.items() if array.ndim == 2 and array.dtype.kind in "iu"]
    lengths = {feed[name].shape[1] for name in ids}
    if not ids or min(lengths) < 2:
        return found
    new, short = min(lengths), min(lengths) // 2
    shorter = {
        name: array[:, : array.shape[1] - (new - short)] if name in ids or _is_mask(name, array) else array
        for name, array in feed.items()
    }
    batch = feed[ids[0]].shape[0]
    pasts = [n for n, a in feed.items() if a.ndim == 4 and a.shape[0] == batch and re.search("past|cache", n.lower())]
    if not pasts:
        return [*found, shorter]
    draw = np.random.default_rng(0).standard_normal
    longer = dict(shorter)
    for name in pasts:
        shape = feed[name].shape
        longer[name] = draw((batch, shape[1], shape[2] + _OLDER, shape[3])).astype(feed[name].dtype)
    for name, array in shorter.items():
        if _is_mask(name, array):
            longer[name] = np.concatenate([np.ones((batch, _OLDER), array.dtype), array], axis=1)
        elif name in ids and "position" in name.lower():
            longer[name] = array + _OLDER
    return [*found, shorter, {name: array[:1] for name, array in longer.items()}]


def _is_mask(name: str, array: Array) -> bool:
    return "mask" in name.lower() and array.ndim == 2


def roles_in(model: Model, caches: list[Cache], threads: int | None) -> Roles:
    """What the inputs and outputs of a decoder with caches are for."""
    session = session_of(model, threads=threads)
    return roles_of(session.input_specs, session.output_specs, {k: v for each in caches for k, v in each.pairs.items()})


def _check_going_on(model: Model, added: Model, caches: list[Cache], feed: Feed, threads: int | None) -> None:
    """Make sure that a model with caches of its own gives in two pieces what it gave in one."""
    session = session_of(added, threads=threads)
    pairs = {past: present for cache in caches for past, present in cache.pairs.items()}
    roles = roles_of(session.input_specs, session.output_specs, pairs)
    one = {
        name: array[:1] if array.ndim and array.shape[0] == feed[roles.ids].shape[0] else array
        for name, array in feed.items()
    }
    length = one[roles.ids].shape[1]
    pieces = [length - length // 3, *([1] * (length // 3))][:4]
    (cut,) = in_pieces(one, roles, [sum(pieces)])
    expected = session_of(model, threads=threads).run(cut, [roles.logits])
    found, _ = Decoder(session, roles).run(one, pieces)
    apart = farthest_apart(expected, [found])
    if not apart <= TOLERANCE:
        raise ModelError(
            "--kv-cache: the model has no caches, and with some of its own it gives other outputs token by token than "
            f"at once (they differ by {apart:.1e}): something in it counts tokens in a way that is not known; export "
            "it with past_key_values"
        )
