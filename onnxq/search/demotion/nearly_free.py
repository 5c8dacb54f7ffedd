"""Layers that gain next to no time on integers and cost accuracy: a model that leaves them float."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxq.pipeline.candidate import Candidate
from onnxq.search import choice as chooser
from onnxq.search.choice import FLOAT, MIXED, STATIC, Layer, LayerChoice
from onnxq.search.demotion.worth import by_time, lost_times, noise_of
from onnxq.search.mixing import Mixing
from onnxq.search.trials import Trials

_MOST_LOST = (0.1, 0.03)
"""Shares of the model's time that float layers may take longer, each timed alone. Among float neighbours they are
faster than that, so that the larger share is tried first; what whole models take decides."""

_LEAST_SHARE = 0.02
"""Share of all noise from which a layer is worth a place among them."""

_WORTH = 0.7
"""Share of the noise that may be left for a model to be built."""

_UNHARMED = 1e-3
"""A loss below which there is nothing to win."""

_HOPELESS = 0.04
"""A loss outside the budget above which layers that cost no time hardly bring a model inside."""


def without_the_nearly_free(trials: Trials, mixing: Mixing) -> None:
    """Add a candidate like the fastest static one with some layers in float.

    It may be inside the budget where that is not. Of candidates that are inside, and as fast to within what timing
    tells, the one with the least error is chosen.

    Args:
        trials: candidates so far, timed and compared.
        mixing: layers that were measured.
    """
    start = _fastest(trials)
    if start is None or not mixing.measured or trials.job.data is None:
        return
    if not _UNHARMED <= trials.loss(start) <= (_HOPELESS if start.refused else math.inf):
        return
    if trials.out_of_time("layers that gain next to no time were not tried in float"):
        return
    names = [name for name in mixing.layers if mixing.form(start, name) == STATIC]
    mixing.find_damage(start.recipe, STATIC, only=names, widely=True)
    static, tried = [mixing.layers[name] for name in names], 0
    for share in _MOST_LOST:
        chosen = _nearly_free(static, share * _us(start), chooser.SAME_SIZE * start.size)
        if not chosen or len(chosen) == tried:
            return
        tried = len(chosen)
        if _as_fast(_candidate(trials, mixing, start, chosen), start, trials):
            return


def _fastest(trials: Trials) -> Candidate | None:
    """The fastest static candidate, of those as fast the one with less error; None where another form is faster."""
    made = [made for name in (STATIC, MIXED) if (made := trials.made.get(name)) is not None]
    known = [one for one in made if one.timing is not None and one.comparison is not None]
    inside = next(iter(chooser.ranked(trials.outcomes())), None)
    ratios = {one.name: one.timing.ratio for one in known if one.timing is not None}
    least = max(ratios.values(), default=0.0) * (1 - chooser.NOISE)
    if inside is not None and inside.name not in ratios and inside.ratio * (1 - chooser.NOISE) > least:
        return None
    return min((one for one in known if ratios[one.name] >= least), key=trials.loss, default=None)


def _us(trial: Candidate) -> float:
    return 0.0 if trial.timing is None else 1e3 * trial.timing.median_ms


def _candidate(trials: Trials, mixing: Mixing, start: Candidate, chosen: Sequence[Layer]) -> Candidate | None:
    """The start with some layers in float, compared; None where there is none, or it is outside the limits."""
    choices = {name: LayerChoice(mixing.form(start, name), f"as in {start.name}") for name in mixing.layers}
    for layer in chosen:
        choices[layer.name] = LayerChoice(FLOAT, f"{_gained(layer)} on integers, which cost accuracy here")
    trial = mixing.build(f"{MIXED} ({len(chosen)} float)", STATIC, choices, start.recipe)
    if trial is None or trial.session is None:
        return None
    trials.compare([trial])
    return None if trial.refused else trial


def _as_fast(trial: Candidate | None, start: Candidate, trials: Trials) -> bool:
    """Whether a candidate is as fast as the start, to within what timing tells."""
    if trial is None:
        return False
    trials.time([start, trial])
    before, after = start.timing, trial.timing
    return before is not None and after is not None and bool(after.ratio >= before.ratio * (1 - chooser.NOISE))


def _nearly_free(static: Sequence[Layer], most_us: float, most_bytes: float) -> list[Layer]:
    """The layers that make most noise for the time that they take longer in float; none where little would go.

    Args:
        static: layers, their damage and times known.
        most_us: that they may take longer together.
        most_bytes: that they may be larger together: of models as fast the smaller one is chosen.
    """
    known = {layer.name: noise_of([layer], STATIC) for layer in static if STATIC in layer.forms}
    total = sum(known.values())
    worth = [layer for layer in static if known.get(layer.name, 0.0) > _LEAST_SHARE * total and _has_times(layer)]
    chosen: list[Layer] = []
    for layer in by_time(worth, STATIC, FLOAT, STATIC):
        longer = lost_times([*chosen, layer], STATIC, dict.fromkeys(known, FLOAT))[-1]
        larger = sum(one.forms[FLOAT].size - one.forms[STATIC].size for one in [*chosen, layer])
        if longer <= most_us and larger <= most_bytes:
            chosen.append(layer)
    return chosen if total - sum(known[layer.name] for layer in chosen) <= _WORTH * total else []


def _has_times(layer: Layer) -> bool:
    return layer.cost(STATIC) is not None and layer.cost(FLOAT) is not None


def _gained(layer: Layer) -> str:
    gained = (layer.cost(FLOAT) or 0.0) - (layer.cost(STATIC) or 0.0)
    return f"{gained:.0f} µs faster" if gained >= 1 else "no faster"
