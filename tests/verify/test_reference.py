"""The float model of several comparisons, and when a comparison ends."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.runtime.session import Session, open_session
from onnxq.verify.compare import Patience, compare_all
from onnxq.verify.reference import Reference

FLOAT = "g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }"
NOISY = "g (float[N,3] x) => (float[N,3] y) <float[3] b = {0.0, 0.5, 0.0}> { y = Add(x, b) }"


def feeds_of(count):
    generator = np.random.default_rng(0)
    return [{"x": generator.normal(size=(2, 3)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def runs(monkeypatch):
    """How often each session ran, by label."""
    counted = {}
    run = Session.run

    def counting(self, *given):
        counted[self.label] = counted.get(self.label, 0) + 1
        return run(self, *given)

    monkeypatch.setattr(Session, "run", counting)
    return counted


def test_what_float_gives_for_the_same_object_is_remembered(content, runs):
    feeds = feeds_of(3)
    reference = Reference(open_session(content(FLOAT), threads=1, label="float"))
    noisy = open_session(content(NOISY), threads=1, label="noisy")
    first, second = (compare_all(reference, [noisy], feeds, facts=None)[0] for _ in range(2))
    assert first == second
    assert runs == {"float": 3, "noisy": 6}
    compare_all(reference, [noisy], [dict(feed) for feed in feeds], facts=None)
    assert runs["float"] == 6, "other objects, whose arrays may have changed"


def test_memory_is_bounded(content, runs):
    feeds = feeds_of(4)
    reference = Reference(open_session(content(FLOAT), threads=1, label="float"), most_bytes=2 * 24)
    for _ in range(2):
        for feed in feeds:
            np.testing.assert_array_equal(reference.run(feed)["y"], feed["x"])
    assert runs["float"] == 4 + 2


def test_a_comparison_ends_when_the_loss_says_enough(content):
    asked = []

    def enough(worst, samples):
        asked.append(samples)
        return samples >= 4 and worst.loss > 0.01

    session = open_session(content(NOISY), threads=1)
    found = compare_all(
        content(FLOAT),
        [session, content(FLOAT)],
        feeds_of(20),
        threads=1,
        patience=[Patience(enough=enough)] * 2,
        facts=None,
    )
    assert [comparison.samples for comparison in found] == [4, 20]
    assert sorted(set(asked)) == [2, 4, 8, 16]


def test_samples_that_made_the_ranges_do_not_hide_the_error_of_the_others(content):
    clipped = "g (float[N,3] x) => (float[N,3] y) <float lo = {-1.0}, float hi = {1.0}> { y = Clip(x, lo, hi) }"
    generator = np.random.default_rng(1)
    wide = [{"x": 2 * generator.normal(size=(40, 3)).astype(np.float32)} for _ in range(4)]
    narrow = [{"x": generator.uniform(-1, 1, (40, 3)).astype(np.float32)} for _ in range(12)]
    losses = {}
    for unseen in (None, 4):
        patience = [Patience(unseen=unseen)]
        (found,) = compare_all(
            content(FLOAT), [content(clipped)], wide + narrow, threads=1, patience=patience, facts=None
        )
        losses[unseen] = found.loss
    assert losses[4] > losses[None]
