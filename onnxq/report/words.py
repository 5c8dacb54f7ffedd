"""Figures in words: sizes, ratios, shares, decibels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_SAME_SPEED = 0.03
"""Differences of this much come and go from one measurement to the next."""

_FIGURES = re.compile(r": about [\d.]+ µs[^;]*| \([^()]* dB\)")
"""What a reason says of one node alone, such as ``: about 31 µs against 11 µs`` or ``(41.9 dB)``."""


def without_figures(reason: str) -> str:
    """Why a node stayed float, in words that nodes share, so that they can be one row."""
    return _FIGURES.sub("", reason)


def three_digits(number: float) -> str:
    """A number with three significant digits; those of a large one are never zeros behind an exponent."""
    return f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"


def speed(ratio: float | None, than: str = "float") -> str:
    """Say how a latency compares.

    Args:
        ratio: latency of the reference over this one's.
        than: the reference; empty where the context says it.
    """
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return "not measured"
    if abs(ratio - 1) < _SAME_SPEED:
        return f"about as fast as {than}" if than else "about as fast"
    words = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
    return f"{words} than {than}" if than else words


def change_of_size(before: float, after: float) -> str:
    """Say how a file has changed."""
    ratio = before / after
    if round(ratio, 2) == 1:
        change = "same size"
    else:
        change = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    return f"{in_bytes(before)} -> {in_bytes(after)}, {change}"


def decibels(sqnr: float | None) -> str:
    """Say a signal-to-noise ratio."""
    if sqnr is None:
        return "not measured"
    if math.isnan(sqnr):
        return "undefined: an output is not finite"
    if math.isinf(sqnr):
        return "outputs are equal" if sqnr > 0 else "no signal: an output is zero or not finite"
    return f"{sqnr:.1f} dB"


def in_bytes(size: float) -> str:
    """Say a size in the unit that fits it, with powers of ten."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def shares(value: float) -> str:
    """A share in percent, with two digits that count."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.1f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def latency(result: Mapping[str, Any]) -> str:
    """The times of both models and how they compare."""
    times = result.get("latency_ms") or {}
    if len(times) < 2 or result["latency_ratio"] is None:
        return speed(result["latency_ratio"])
    before, after = times["float"], times["quantized"]
    return f"{three_digits(before)} ms -> {three_digits(after)} ms, {speed(times_faster(before, after))}"


def times_faster(before: float, after: float) -> float | None:
    """How many times faster: of the two figures that stand beside it, not of pairs of runs."""
    return before / after if after > 0 else None


def cell(value: object) -> str:
    """Put any value into a few words, for a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(entry)}".strip() for key, entry in value.items()) or "-"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(cell(entry) for entry in value) or "-"
    return str(value)
