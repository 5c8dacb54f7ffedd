"""How far a quantized model with states drifts when it goes on from its own, not from the float model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np

from onnxq.data.feeds import Feed
from onnxq.graph.reading.output_facts import OutputFact
from onnxq.runtime.session import Session
from onnxq.verify import loss as scale
from onnxq.verify.output_judges import OutputJudges
from onnxq.verify.still import held_still

STEPS = 64
"""Samples that are run at most."""

MUCH_WORSE = 3.0
"""By how many times the loss may be larger than with the float model's states before a warning is due."""

_SAME_STATE = 1e-3
"""Up to this distance, relative to the state's size, a sample's state is the one that the sample before left."""


def free_running(
    sessions: tuple[Session, Session],
    feeds: Iterable[Feed],
    count: int,
    pairs: Sequence[tuple[str, str]],
    states: Mapping[str, str],
    facts: Mapping[str, OutputFact],
) -> tuple[float | None, str]:
    """Run a quantized model on its own states, and judge it where the sequence ends.

    Args:
        sessions: the float and the quantized model.
        feeds: samples in their order, complete with the float model's states; the first `STEPS` are run. Where a sample
            does not hold what the float model left at the one before, a new sequence starts.
        count: number of feeds.
        pairs: outputs of both models that belong together.
        states: input by output.
        facts: what the float model says of its outputs.

    Returns:
        The loss over the second half of the samples that are run, or None where no state is carried; and a warning, or
        nothing.
    """
    reference, actual = (held_still(session)[0] for session in sessions)
    names, others = [name for name, _ in pairs], [other for _, other in pairs]
    outputs = [name for name in states if name in names]
    steps = min(count, STEPS)
    free, led = OutputJudges(facts), OutputJudges(facts)
    left: Feed = {}
    own: Feed = {}
    carried = False
    for index, feed in enumerate(islice(feeds, steps)):
        goes_on = bool(left) and all(_same(feed[name], array) for name, array in left.items())
        carried |= goes_on
        expected = dict(zip(names, reference.run(feed, names), strict=True))
        found = dict(zip(names, actual.run({**feed, **own} if goes_on else feed, others), strict=True))
        if index >= steps // 2:
            beside = dict(zip(names, actual.run(feed, others), strict=True)) if goes_on else found
            tensors = [name for name in names if isinstance(expected[name], np.ndarray)]
            tensors = [name for name in tensors if np.shape(expected[name]) == np.shape(found[name])]
            for judges, got in ((free, found), (led, beside)):
                judges.add(feed, {name: expected[name] for name in tensors}, {name: got[name] for name in tensors})
        left = {states[name]: expected[name] for name in outputs}
        own = {states[name]: found[name] for name in outputs}
    apart, together = scale.worst(free.judged()), scale.worst(led.judged())
    if not carried or apart is None:
        return None, ""
    if apart <= max(scale.BUDGET, MUCH_WORSE * (together or 0.0)):
        return apart, ""
    return apart, (
        f"on its own states the quantized model drifts away: its loss at the end of {steps} samples is "
        f"{scale.share(apart)}, with the float model's states {scale.share(together or 0.0)}; --exclude the layers "
        "that compute the states"
    )


def _same(given: object, left: object) -> bool:
    before, after = np.asarray(left), np.asarray(given)
    if before.shape != after.shape or before.dtype != after.dtype or before.dtype.kind not in "fiu":
        return False
    distance = np.linalg.norm(after.astype(np.float64).ravel() - before.astype(np.float64).ravel())
    return bool(distance <= _SAME_STATE * np.linalg.norm(before.astype(np.float64).ravel()))
