"""After everything else: scales for caches from what the model stores, caches as integers, and the proof in a loop."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxq.core.cache_grids import BITS, CacheGrid, at_other_positions, fit_grid
from onnxq.core.dtypes import Array
from onnxq.data.decoding import Roles, in_pieces
from onnxq.data.feeds import Feed
from onnxq.errors import CalibrationError, VerificationError
from onnxq.graph.attention.cache_ports import Cache, add_caches, caches_of, rotary_tables, round_caches, store
from onnxq.graph.edit import copy_of
from onnxq.graph.types import Model
from onnxq.pipeline.build import build
from onnxq.pipeline.caches.grouping import roles_in
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.gate import judge
from onnxq.pipeline.job import Job, contents
from onnxq.runtime.loops.decoder_loop import CacheRows, Decoder, Looped
from onnxq.runtime.session import open_session, session_of
from onnxq.runtime.synthetic import runnable_feed
from onnxq.verify.benchmark import benchmark
from onnxq.verify.compare import Comparison, Patience, compare_all
from onnxq.verify.loads import check

_ROWS = 2048
"""Tokens of each cache that ranges are searched on, about."""

_ROW_BYTES = 256 << 20
"""What these may take, all caches together."""

_FEEDS = 32
"""Samples that are run for them at most."""

_STEPS = 8
"""Tokens that the model appends to each of these by itself."""

_LOOPED = 16
"""Held-out samples that are run in a loop at most."""

_PLAIN_SECONDS = 0.5
"""As in `onnxq.pipeline.gate`: without optimizations large models run for many seconds."""

_OLDEST_RUNTIME = "1.27"


@dataclass
class Stored:
    """Caches as they are now.

    Attributes:
        model: the model with them.
        facts: for the report.
        grids: how they are stored, by input; empty where they are float.
        caches: the caches of each attention.
        notes: what the user should know.
    """

    model: Model
    facts: dict[str, Any]
    grids: dict[str, CacheGrid]
    caches: list[Cache]
    notes: list[str] = field(default_factory=list)


def store_caches(job: Job, chosen: Candidate) -> None:
    """Give the chosen model caches in the recipe's form, and judge it with them.

    Args:
        job: holds the samples and the float model.
        chosen: its model, its contents, its verdict and its warnings are replaced.

    Raises:
        CalibrationError: a cache stayed empty in all samples.
    """
    form = job.recipe.kv_cache
    if form is None or chosen.caches:
        return
    before = chosen.model
    if before is None:  # float won; its caches are to change all the same
        before = build(replace(job, recipe=job.recipe.override(preset="float"))).quantized
    with job.clock.step("caches"):
        model = copy_of(before)
        stored = _stored(job, model, form)
        chosen.model = stored.model
        chosen.content = contents(stored.model, job.stack)
        chosen.caches = stored.facts
        chosen.warnings += stored.notes
    with job.clock.step("verify"):
        _verify(job, chosen, stored)


def _stored(job: Job, model: Model, form: str) -> Stored:
    had = {value.name for value in model.graph.inputs}
    caches = add_caches(model, _sizes(job, model))
    added = [cache for cache in caches if cache.past_key not in had]
    facts: dict[str, Any] = {"form": form, "added": bool(added), "layers": []}
    per_token = sum(2 * cache.heads * cache.size for cache in caches)
    facts["bytes_a_token"] = {"before": 4 * per_token, "after": per_token * BITS.get(form, 32) // 8}
    found = Stored(model, facts, {}, caches)
    if added:
        found.notes.append(
            f"the model had no caches: it takes {', '.join(caches[0].pairs)}, … and gives "
            f"{', '.join(caches[0].pairs.values())}, … besides now ({2 * len(caches)} inputs and outputs more)"
        )
    if form not in BITS:
        return found
    found.grids |= _fitted(job, model, caches, form)
    for cache in caches:
        key, value = found.grids[cache.past_key], found.grids[cache.past_value]
        facts["layers"].append(
            {
                "node": cache.node, "key_db": key.error_db, "value_db": value.error_db,
                "key_scales": key.shared, "value_scales": value.shared,
            }
        )  # fmt: skip
    store(model, {c.node: (found.grids[c.past_key], found.grids[c.past_value]) for c in caches})
    kind = "int8" if form == "int8" else "uint8, two numbers in a byte"
    found.notes.append(
        f"caches change type: {len(found.grids)} inputs such as '{caches[0].past_key}' and as many outputs such as "
        f"'{caches[0].present_key}' are {kind}; feed outputs back as they are, and begin with caches of no token "
        f"(onnxruntime {_OLDEST_RUNTIME} or newer)"
    )
    return found


def _fitted(job: Job, model: Model, caches: list[Cache], form: str) -> dict[str, CacheGrid]:
    """Grids for what a model stores over samples, by cache."""
    rows, tables = _collect(job, model, caches), rotary_tables(model)
    found: dict[str, CacheGrid] = {}
    for cache in caches:
        for name, tensor in ((cache.past_key, False), (cache.past_value, True)):
            seen = rows.rows(name)
            if seen is None:
                raise CalibrationError(
                    f"--kv-cache {form}: cache '{name}' stayed empty in all samples; pass longer ones"
                )
            peaks = rows.peaks[name]
            if name in tables:
                seen = np.concatenate([seen, at_other_positions(seen, tables[name])])
                peaks = np.maximum(peaks, np.abs(seen).max(axis=0))
            found[name] = fit_grid(seen, peaks, BITS[form], tensor=tensor)
    return found


def with_stored_caches(job: Job, model: Model) -> Model:
    """A copy for training, whose attention rounds keys and values as caches in the recipe's form will.

    Nodes and their order are those of the model; what caches go in and out by stays float.
    """
    form = job.recipe.kv_cache
    assert form is not None
    cached = copy_of(model)
    caches = add_caches(cached, _sizes(job, cached))
    grids = _fitted(job, cached, caches, form)
    found = model.clone()
    round_caches(found, {c.node: (grids[c.past_key], grids[c.past_value]) for c in caches})
    return found


def _sizes(job: Job, model: Model) -> dict[str, int]:
    """Numbers that a head of keys holds, by attention; where the graph leaves that open, as samples have it."""
    known = {node: size for node, size in job.prepared.head_sizes.items() if size}
    first = {} if job.data is None else job.data.first
    for cache in caches_of(model, known):
        if not cache.size and cache.past_key in first:
            known[cache.node] = int(first[cache.past_key].shape[-1])
    return known


def _collect(job: Job, model: Model, caches: list[Cache]) -> CacheRows:
    """What the model stores over samples, as prompts, and over tokens that it appends by itself."""
    assert job.data is not None
    session = session_of(model, threads=job.threads)
    roles = roles_in(model, caches, job.threads)
    decoder = Decoder(session, roles)
    count = job.data.calibration.count_feeds()
    places = set(np.linspace(0, count - 1, min(count, _FEEDS)).astype(int).tolist())
    width = sum(2 * cache.heads * cache.size * 4 for cache in caches)
    rows = CacheRows(max(min(_ROWS, _ROW_BYTES // width), 64), len(places))
    for index, feed in enumerate(job.data.calibration):
        if index not in places:
            continue
        held = decoder.go_on(feed, _STEPS)
        tokens = next(iter(held.values())).shape[2]
        rows.add(held, _kept(feed, roles, tokens))
    return rows


def _kept(feed: Feed, roles: Roles, tokens: int) -> Array | None:
    """(batch, tokens), False where a cache holds padding."""
    if roles.mask is None:
        return None
    mask = feed[roles.mask] != 0
    return np.pad(mask, [(0, 0), (0, tokens - mask.shape[1])], constant_values=True)


def _verify(job: Job, chosen: Candidate, stored: Stored) -> None:
    """Open the model, run it and the float one as they are used, each on its own caches, and judge it."""
    threads, verdict, data = job.threads, chosen.verdict, job.data
    roles = roles_in(stored.model, stored.caches, threads)
    first = _first_piece(job, stored, roles)
    try:
        plain, best = check(chosen.content, first, threads=threads, original=job.prepared.original)
    except VerificationError as error:
        verdict.failures.append(str(error))
        verdict.refused = True
        return
    looped = [Looped(Decoder(session, roles, stored.grids), "quantized model") for session in (best, plain)]
    if data is None:
        return
    feeds = list(itertools.islice(data.held_out, _LOOPED))
    labels = data.held_out.labels
    if labels is not None:
        labels = labels[: sum(feed[roles.ids].shape[0] for feed in feeds)]
    found = compare_all(
        _float_decoder(job, roles, threads),
        looped,
        feeds,
        labels=labels,
        patience=(Patience(), Patience(_PLAIN_SECONDS)),
        facts=job.output_facts(),
    )
    chosen.caches["before"] = _figures(verdict.comparison)
    chosen.caches["steps"] = looped[0].steps
    verdict.comparison, verdict.unoptimized = found[0], found[1]
    judge(found[0], found[1], job.recipe, verdict)
    if verdict.timings:
        threads = job.timed_threads
        session = open_session(chosen.content, threads=threads, timed=True)
        timed = {
            "float": _float_decoder(job, roles, threads),
            "quantized": Looped(Decoder(session, roles, stored.grids), "quantized model"),
        }
        verdict.timings = benchmark(timed, feeds[:1], seconds=job.seconds, threads=threads)


def _first_piece(job: Job, stored: Stored, roles: Roles) -> Feed:
    """A sample with the caches that it begins with, as the model takes them."""
    model, grids, threads = stored.model, stored.grids, job.threads
    session = session_of(model, threads=threads)
    if job.data is None:
        return runnable_feed(session)
    feed = job.data.first
    (piece,) = in_pieces(feed, roles, [feed[roles.ids].shape[1]])
    return {**piece, **Decoder(session, roles, grids).start(feed)}


def _figures(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {}
    return {
        "sqnr_db": comparison.sqnr_db, "perplexity": comparison.perplexity,
        "token_agreement": comparison.token_agreement, "token_divergence": comparison.token_divergence,
    }  # fmt: skip


def _float_decoder(job: Job, roles: Roles, threads: int | None) -> Looped:
    """The float model in the same loop: the user's own where it has caches, else the prepared one with some added."""
    prepared = job.prepared
    given = {spec.name for spec in prepared.inputs}
    if set(roles.caches) <= given:
        session = open_session(prepared.original, threads=threads, label="float model")
    else:
        model = prepared.model.clone()
        add_caches(model, prepared.head_sizes)
        session = session_of(model, threads=threads, label="float model")
    return Looped(Decoder(session, roles), "float model")
