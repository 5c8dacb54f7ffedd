"""A finished model that the runtime refuses: find the nodes that are to blame, keep them float, and build again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from onnxq.data.feeds import Feed
from onnxq.errors import CalibrationError, ModelError, RecipeError, VerificationError
from onnxq.graph import walk
from onnxq.graph.edit import copy_of
from onnxq.graph.reading.ops import KEEP_FLOAT
from onnxq.graph.types import Node
from onnxq.pipeline.build import build
from onnxq.pipeline.candidate import Candidate
from onnxq.pipeline.job import Job, contents
from onnxq.pipeline.transformation import uses_awq
from onnxq.plan.decisions import DYNAMIC, INTEGER, WEIGHT
from onnxq.recipe.presets import PRESETS
from onnxq.runtime.session import open_session
from onnxq.runtime.synthetic import runnable_feed
from onnxq.verify.loads import check

MOST_BUILDS = 16
"""Models that are built before the runtime's refusal is the answer."""

_SHOWN = 200
"""Characters of the runtime's message that a reason repeats."""


def rescue(job: Job, built: Candidate, message: str, feed: Feed | None = None) -> Candidate | None:
    """Build the model again with as few nodes kept float as make the runtime take it.

    Nodes that the message names are tried first, then the quantized nodes around them, then halves of all, and halves
    of the half that helped.

    Args:
        job: what the model was built from.
        built: the model that does not load or run.
        message: what the runtime said.
        feed: a sample; None takes the job's first, or makes one up.

    Returns:
        A model that loads and runs, with the reason beside each node; None where none was found.
    """
    attempts = _Attempts(job, built, message, feed)
    quantized = [n.name for n in built.plan.nodes.values() if n.action in (INTEGER, DYNAMIC, WEIGHT)]
    for suspects in _suspects(job, quantized, built.plan.nodes, message):
        if attempts.helps(suspects):
            return attempts.found
    names: Sequence[str] = quantized
    while len(names) > 1:
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        helping = next((half for half in halves if attempts.helps(half)), None)
        if helping is None:
            break
        names = helping
    return attempts.found


class _Attempts:
    """Models with some nodes kept float; the last one that runs."""

    def __init__(self, job: Job, built: Candidate, message: str, feed: Feed | None) -> None:
        fed = not (built.recipe.smooths or uses_awq(built.recipe))
        model = copy_of(job.prepared.model)  # in which nodes are marked; other models are built from the job's own
        preset = "w8a8" if PRESETS[built.recipe.preset].reconstruct else built.recipe.preset
        plain = replace(built.recipe, preset=preset, reconstruct=False)  # it would take minutes each time
        self._job = replace(job, recipe=plain, prepared=replace(job.prepared, model=model))
        self._statistics = built.statistics if fed and job.statistics is None else job.statistics
        self._nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
        self._reason = f"onnxruntime refuses the model with it on integers: {_short(message)}"
        self._feed = feed if feed is not None else _feed(job)
        self._left = MOST_BUILDS
        self._marked: list[str] = []
        self.found: Candidate | None = None

    def helps(self, names: Iterable[str]) -> bool:
        """Whether the model runs with these nodes float; if so it is kept, and so are the marks."""
        names = [name for name in names if name in self._nodes]
        if not names or self._left <= 0:
            return False
        self._left -= 1
        before = self._marked
        self._mark(names)
        built = self._built()
        if built is not None and self._runs(built):
            self.found = built
            return True
        self._mark(before)
        return False

    def _mark(self, names: list[str]) -> None:
        for name in self._marked:
            self._nodes[name].meta.pop(KEEP_FLOAT, None)
        self._marked = [name for name in names if KEEP_FLOAT not in self._nodes[name].meta]
        for name in self._marked:
            self._nodes[name].meta[KEEP_FLOAT] = self._reason

    def _built(self) -> Candidate | None:
        for statistics in (self._statistics, self._job.statistics):
            try:
                return build(replace(self._job, statistics=statistics))
            except CalibrationError:
                continue  # these statistics lack what its neighbours need now
            except RecipeError:
                return None  # nothing would be left on integers
        return None

    def _runs(self, built: Candidate) -> bool:
        with ExitStack() as stack:
            try:
                content = contents(built.quantized, stack)
                original = self._job.prepared.original
                check(content, self._feed, threads=self._job.threads, run=self._feed is not None, original=original)
            except VerificationError:
                return False
        return True


def _feed(job: Job) -> Feed | None:
    if job.data is not None:
        return job.data.first
    try:
        return runnable_feed(open_session(job.prepared.original, threads=job.threads))
    except ModelError:
        return None


def _suspects(job: Job, quantized: list[str], known: Iterable[str], message: str) -> list[list[str]]:
    """Sets of quantized nodes to try: those that the message names, then those right behind and right before them."""
    named = [name for name in known if name and re.search(rf"(?<![\w./]){re.escape(name)}(?![\w./])", message)]
    found = [[name] for name in named if name in quantized]
    nodes = {node.name or "": node for node in walk.all_nodes(job.prepared.model.graph)}
    for name in named:
        if name in nodes:
            behind, before = (_nearest(nodes[name], set(quantized), down=down) for down in (True, False))
            found += [behind, before, behind + before]
    return found


def _nearest(node: Node, quantized: set[str], *, down: bool) -> list[str]:
    """Names of the quantized nodes that are reached first, behind a node or before it."""
    reached: dict[str, None] = {}
    pending, seen = [node], {id(node)}
    while pending:
        at = pending.pop()
        producers = [value.producer() for value in at.inputs if value is not None]
        for other in [user for out in at.outputs for user in out.consumers()] if down else producers:
            if other is None or id(other) in seen:
                continue
            seen.add(id(other))
            if other.name in quantized:
                reached[other.name or ""] = None
            else:
                pending.append(other)
    return list(reached)


def _short(message: str) -> str:
    text = " ".join(message.split()).removeprefix("quantized model at ORT_ENABLE_ALL: ")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
