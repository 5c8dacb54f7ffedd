"""Decisions that may change: what is expected from few of them, and how sure that is."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from onnxq.verify.kinds.flips import Flips

Array = np.ndarray[Any, Any]


def flips_of(margins: Array, noise: Array, samples: int = 1) -> Flips:
    flips = Flips()
    for some, moved in zip(np.split(margins, samples), np.split(margins + noise, samples), strict=True):
        flips.add(some, moved, len(some))
    return flips


def margins_of(count: int, generator: np.random.Generator) -> Array:
    """Mostly sure decisions, as of a detector's cells or a classifier's items."""
    return np.abs(generator.normal(0, 6, count))


def test_the_share_of_changes_is_that_of_the_noise_against_the_margins() -> None:
    generator = np.random.default_rng(0)
    margins = margins_of(400_000, generator)
    flips = flips_of(margins, generator.normal(0, 0.3, margins.shape))
    normal = NormalDist()
    truth = np.mean([normal.cdf(-m / 0.3) for m in margins[:50_000]])
    assert flips.estimate()[0] / len(margins) == pytest.approx(truth, rel=0.05)
    assert flips.changed / len(margins) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(("count", "covered"), [(8, 0.5), (24, 0.6), (384, 0.75)])
def test_few_decisions_are_enough_and_the_upper_end_covers_the_truth(count: int, covered: float) -> None:
    generator = np.random.default_rng(1)
    margins = margins_of(400_000, generator)
    truth = flips_of(margins, generator.normal(0, 0.3, margins.shape)).changed / len(margins)
    found, upper, counted = [], [], []
    for _ in range(300):
        some = margins_of(count, generator)
        flips = flips_of(some, generator.normal(0, 0.3, count), 8)
        found.append(flips.estimate()[0] / count)
        upper.append(flips.weighted() / count)
        counted.append(flips.changed / count)
    assert np.mean(found) == pytest.approx(truth, rel=0.15)
    assert np.std(found) < 0.7 * np.std(counted)
    assert np.mean(np.array(upper) > truth) > covered


def test_what_is_picked_among_many_is_not_what_was_lucky() -> None:
    """The few decisions near the threshold happen to move little in one of many models that are equally noisy."""
    generator = np.random.default_rng(5)
    margins = np.r_[np.linspace(0.02, 2.0, 8), np.abs(generator.normal(9, 2, 792))]
    generator.shuffle(margins)
    found = [flips_of(margins, generator.normal(0, 0.4, margins.shape), 40).estimate()[0] for _ in range(60)]
    assert min(found) > 0.5 * np.mean(found)


def test_a_count_of_none_is_no_proof() -> None:
    generator = np.random.default_rng(2)
    margins = np.linspace(0.5, 6, 16)
    noise = np.abs(generator.normal(0, 0.6, 16))  # all of it happened to point away from the threshold
    flips = flips_of(margins, noise)
    assert flips.changed == 0
    assert flips.estimate()[0] > 0.1


def test_decisions_that_go_together_count_as_fewer() -> None:
    generator = np.random.default_rng(3)
    margins = np.abs(generator.normal(0, 1.0, (16, 40)))
    noise = generator.normal(0, 0.3, margins.shape)
    alone = flips_of(margins.ravel(), noise.ravel(), 16)
    scale = np.repeat(np.where(np.arange(16) < 4, 0.1, 10.0), 40)  # all close calls are in a quarter of the samples
    bunched = flips_of(margins.ravel() * scale, noise.ravel(), 16)
    ratios = [error / expected for expected, error in (alone.estimate(), bunched.estimate())]
    assert ratios[1] > 2 * ratios[0]


def test_samples_that_only_differ_in_length_are_alike() -> None:
    generator = np.random.default_rng(4)
    flips = Flips()
    for length in (10, 4000) * 4:
        margins = np.abs(generator.normal(0, 3, length))
        flips.add(margins, margins + generator.normal(0, 0.3, length), length)
    expected, error = flips.estimate()
    assert error < 0.2 * expected


def test_more_changes_than_noise_explains_are_counted() -> None:
    margins, moved = np.full(100, 5.0), np.full(100, 5.0)
    moved[:20] = -1e-6  # just over the threshold: no Gaussian noise does that
    flips = Flips()
    flips.add(margins, moved, 100)
    assert flips.weighted() >= 20 - np.sqrt(20)


def test_nothing_is_nothing() -> None:
    assert Flips().estimate() == (0.0, 0.0)
    flips = flips_of(np.array([0.0, 1.0, 50.0]), np.zeros(3))
    assert (flips.decisions, flips.changed) == (3, 0)
    assert flips.weighted() == 0.0


def test_the_price_of_an_unsure_decision_is_small() -> None:
    generator = np.random.default_rng(5)
    unsure = np.abs(generator.normal(0, 0.01, 500))
    flips = flips_of(unsure, generator.normal(0, 0.01, 500))
    assert flips.estimate()[0] > 100
    assert flips.estimate(1.0)[0] < 1


def test_samples_that_made_the_ranges_do_not_make_the_noise_smaller() -> None:
    generator = np.random.default_rng(6)
    flips = Flips()
    margins = margins_of(2000, generator).reshape(10, 200)
    for some in margins[:4]:
        flips.add(some, some + generator.normal(0, 0.6, 200), 200)
    before = flips.estimate()[0] / 800
    flips.others_follow()
    for some in margins[4:]:
        flips.add(some, some + generator.normal(0, 0.1, 200), 200)
    assert flips.estimate()[0] / 2000 == pytest.approx(before, rel=0.35)


def test_noise_that_differs_between_samples_by_chance_makes_no_difference() -> None:
    generator = np.random.default_rng(7)
    margins = margins_of(2000, generator).reshape(10, 200)
    noise = generator.normal(0, np.repeat([0.5, *[0.1, 0.6] * 4, 0.4], 200)).reshape(10, 200)
    plain, marked = Flips(), Flips()
    for index, (some, moved) in enumerate(zip(margins, noise, strict=True)):
        plain.add(some, some + moved, 200)
        marked.add(some, some + moved, 200)
        if not index:
            marked.others_follow()
    assert marked.estimate() == plain.estimate()
