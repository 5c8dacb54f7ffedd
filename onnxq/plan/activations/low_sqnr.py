"""Values whose samples differ so much that a grid for the loudest leaves the quiet ones next to nothing.

A spectrum of speech is the plain case: over all frames its 8-bit grid gives 30 dB and more, since the loud frames make
up the power, while a quiet frame is rounded to two or three levels. Every layer behind reads noise there, and a state
that is carried on keeps it.
"""

from __future__ import annotations

import math

from onnxq.core.affine import params_from_range
from onnxq.core.error_measures import decibels
from onnxq.plan.decisions import Calibrated, Plan
from onnxq.stats.ranges import compute_range
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic

QUIET_SHARE = 0.1
"""Share of the samples that may be quieter than the one that counts."""

LEAST_SQNR_DB = 15.0
"""SQNR that this sample must have on the value's grid. At 15 dB the error is a sixth of the signal's amplitude; values
of networks on images, text and even-handed sound have more than 25 dB."""


def low_sqnr_values(plan: Plan, statistics: Statistics, percentile: float) -> dict[str, str]:
    """Find the calibrated values of which more than `QUIET_SHARE` of the samples have less than `LEAST_SQNR_DB`.

    Args:
        plan: names the values, their grids and range methods.
        statistics: of these values; those that were saved without powers of samples tell nothing.
        percentile: as for `onnxq.stats.ranges.compute_range`.

    Returns:
        By name, what is wrong with the value.
    """
    found = {}
    for name, decision in plan.values.items():
        statistic = statistics.get(name)
        if not isinstance(decision, Calibrated) or statistic is None or statistic.low is None:
            continue
        sqnr = _quiet_sqnr(statistic, decision, "minmax", percentile)
        if sqnr < LEAST_SQNR_DB and decision.range_method != "minmax":
            sqnr = _quiet_sqnr(statistic, decision, decision.range_method, percentile)
        if sqnr < LEAST_SQNR_DB:
            found[name] = (
                f"has too wide a dynamic range: at 8 bits {100 * QUIET_SHARE:.0f} % of samples have an SQNR of "
                f"{max(sqnr, 0.0):.0f} dB or less; {LEAST_SQNR_DB:.0f} dB are needed"
            )
    return found


def _quiet_sqnr(statistic: ValueStatistic, decision: Calibrated, method: str, percentile: float) -> float:
    """SQNR of the sample at `QUIET_SHARE`, its error taken as uniform over a step: step² / 12."""
    power = statistic.powers.quantile(QUIET_SHARE)
    if power is None:
        return math.inf
    low, high = compute_range(statistic, decision.spec, method, percentile=percentile)
    step = float(params_from_range(low, high, decision.spec).scale.reshape(()))
    return decibels(power, step**2 / 12.0)
