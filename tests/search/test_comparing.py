"""Which samples candidates are compared on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.job import Job, open_data
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.session import Session, open_session
from onnxq.search.comparing import Judge
from onnxq.targets import target_named
from tests.graph.build import build, weights


def job_of(count: int) -> Job:
    model = build("g (float[N,8] x) => (float[N,4] y) { y = MatMul (x, w) }", w=weights(8, 4))
    target = target_named("cpu")
    prepared = load_and_prepare(model, target, Clock(None))
    feeds = [{"x": np.full((1, 8), index, np.float32)} for index in range(count)]
    return Job(prepared, Recipe(), target, open_data(feeds, prepared))


def seen_by(judge: Judge, job: Job, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    session, run = open_session(job.prepared.original, threads=1), Session.run

    def watching(self: Session, feed: dict[str, np.ndarray], *rest: object) -> object:
        if self is session:
            seen.append(int(feed["x"][0, 0]))
        return run(self, feed, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Session, "run", watching)
        (comparison,) = judge.compare([session], math.inf)
    assert comparison.samples == len(seen)
    return seen


@pytest.mark.parametrize(
    ("count", "widely", "expected"),
    [
        (10, True, [8, 9, *range(8)]),
        (10, False, [8, 9]),
        (1, True, [0]),
        (100, True, [*range(80, 100), *range(44)]),
        (400, True, list(range(336, 400))),
    ],
)
def test_held_out_samples_come_first_and_others_where_no_limit_was_given(
    count: int, widely: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(count)
    assert job.data is not None
    judge = Judge(job, open_session(job.prepared.original, threads=1), job.data.first, widely=widely)
    assert seen_by(judge, job, monkeypatch) == expected
    assert seen_by(judge, job, monkeypatch) == expected, "the second time from memory"
    monkeypatch.setattr("onnxq.search.comparing._MOST_BYTES", 3 * 32)
    judge = Judge(job, open_session(job.prepared.original, threads=1), job.data.first, widely=widely)
    assert seen_by(judge, job, monkeypatch) == expected, "in part from memory"


def test_without_samples_there_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(job_of(1), data=None)
    first = {"x": np.full((1, 8), 7, np.float32)}
    judge = Judge(job, open_session(job.prepared.original, threads=1), first, widely=True)
    assert seen_by(judge, job, monkeypatch) == [7]
