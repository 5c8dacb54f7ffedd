"""Which values of a model it costs most to round to float16, measured at the model's outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.error_measures import decibels
from onnxq.data.feeds import Feed
from onnxq.graph.emit.half.rounded import around, rounded
from onnxq.graph.types import Model
from onnxq.runtime.session import session_of

_PARTS = 16
"""Parts that the values of a model are measured in at first, one after the other along the graph."""

_SMALL = 2
"""Values of a part that is not divided further."""

_MOST_RUNS, _SECONDS = 120, 300.0


class Compared:
    """Outputs of a float32 model on a few samples, and how far others are from them."""

    def __init__(self, model: Model, feeds: Sequence[Feed], threads: int | None) -> None:
        self.model, self._feeds, self._threads = model, feeds, threads
        session = session_of(model, threads=threads)
        self._expected = [session.run(feed) for feed in feeds]

    def ratio_of(self, model: Model) -> float:
        """SQNR of the worst real-valued output, in dB."""
        return min((decibels(1.0, share) for share in self.shares_of(model)), default=math.inf)

    def shares_of(self, model: Model, most: int | None = None) -> list[float]:
        """Power of the error over that of the signal, of each real-valued output.

        Args:
            model: what is compared.
            most: samples to run; None for all.
        """
        session = session_of(model, threads=self._threads)
        signal: dict[int, float] = {}
        noise: dict[int, float] = {}
        for feed, outputs in list(zip(self._feeds, self._expected, strict=True))[:most]:
            for i, (left, right) in enumerate(zip(outputs, session.run(feed), strict=True)):
                if isinstance(left, np.ndarray) and left.dtype.kind == "f" and np.shape(left) == np.shape(right):
                    powers = _powers(left, np.asarray(right))
                    signal[i] = signal.get(i, 0.0) + powers[0]
                    noise[i] = noise.get(i, 0.0) + powers[1]
        return [noise[i] / signal[i] if signal[i] else (math.inf if noise[i] else 0.0) for i in signal]


def _powers(left: Array, right: Any) -> tuple[float, float]:
    """Of a signal and of what another array differs from it by, where it is finite."""
    left, right = left.astype(np.float64), np.asarray(right).astype(np.float64)
    seen = np.isfinite(left)
    return float(np.square(left[seen]).sum()), float(np.square(right[seen] - left[seen]).sum())


@dataclass
class _Part:
    names: Sequence[str]
    noise: float

    @property
    def small(self) -> bool:
        return len(self.names) <= _SMALL


class NoisyParts:
    """Values in parts along the graph, and the error that rounding each part alone makes.

    Errors of parts add up, since they hardly know of each other. Parts that count are divided further.
    """

    def __init__(self, compared: Compared, names: Sequence[str]) -> None:
        """Measure all values in a few parts.

        Args:
            compared: the float32 model and its outputs.
            names: the values, in graph order.
        """
        self._compared = compared
        self._runs, self._end = 0, time.monotonic() + _SECONDS
        size = max(math.ceil(len(names) / _PARTS), 1)
        self._parts = [self._measured(names[i : i + size]) for i in range(0, len(names), size)]

    def _measured(self, names: Sequence[str]) -> _Part:
        self._runs += 1
        shares = self._compared.shares_of(rounded(self._compared.model, names), 1)
        # 0 / 0 where the whole model in float16 gives numbers is not what happens there.
        return _Part(names, max((share for share in shares if math.isfinite(share)), default=0.0))

    def loudest(self, share: float, most: int, counted: Set[str]) -> set[str]:
        """Names of the nodes around the values that make such a share of the error, in as few parts as can be.

        Args:
            share: 0 to 1.
            most: nodes; the share is smaller where it would take more.
            counted: the nodes that count; others are in float32 as it is.
        """
        while True:
            chosen = self._chosen(share)
            large = [part for part in chosen if not part.small]
            if not large or self._runs >= _MOST_RUNS or time.monotonic() > self._end:
                break
            part = max(large, key=lambda part: part.noise)
            middle = (len(part.names) + 1) // 2
            at = self._parts.index(part)
            self._parts[at : at + 1] = [self._measured(half) for half in (part.names[:middle], part.names[middle:])]
        found: set[str] = set()
        for part in chosen:
            more = found | around(self._compared.model, part.names)
            found = more if len(more & counted) <= most else found
        return found

    def _chosen(self, share: float) -> list[_Part]:
        """Parts that make such a share together, those that make the most for their size first."""
        total, found, left = sum(part.noise for part in self._parts), [], 0.0
        for part in sorted(self._parts, key=lambda part: -part.noise / len(part.names)):
            if not part.noise or left >= share * total:
                break
            found.append(part)
            left += part.noise
        return found

    @property
    def worst(self) -> str:
        """The first value of the part that makes the largest error for its size."""
        part = max(self._parts, key=lambda part: part.noise / len(part.names))
        return part.names[0]
