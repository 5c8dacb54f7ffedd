"""Time the kernels of small models by the runtime's own profile, side by side, and remember the times on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import secrets
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxq.core import atomic, scratch
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.runtime.engines.engine import Engine, Runs
from onnxq.runtime.machine import cache_folder, machine_key
from onnxq.runtime.session import Session, open_session

_SECONDS = 0.02
"""Time to spend on each model of a group; slow kernels take `_FEWEST` runs all the same."""

_FEWEST, _MOST = 5, 200
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""Kernels at the edges of a model of one layer, which are not there between two layers of a network."""


@dataclass(frozen=True)
class KernelTime:
    """Typical times of the kernels of one small model, in µs.

    Attributes:
        compute: of all kernels but conversions between float and integers and between layouts.
        quantize: of QuantizeLinear.
        dequantize: of DequantizeLinear.
    """

    compute: float
    quantize: float = 0.0
    dequantize: float = 0.0

    @property
    def total(self) -> float:
        """Conversions included."""
        return self.compute + self.quantize + self.dequantize


def kernel_times(
    models: Mapping[str, bytes], feed: Feed, *, threads: int | None = 1, engine: Engine | None = None
) -> dict[str, KernelTime]:
    """Run small models in alternation (A B A B …) and take the times of their kernels from the runtime's profile.

    Args:
        models: contents, by name.
        feed: what all of them take.
        threads: threads an operator may use.
        engine: what runs them, with the threads that it was started with; None is this process.

    Returns:
        A time for each model; one that cannot be loaded or run is left out.

    Raises:
        EngineError: the engine has gone.
    """
    if engine is not None:
        given = engine.profiles(list(models.values()), feed, Runs(_SECONDS, _FEWEST, _MOST))
        profiles = dict(zip(models, given or [], strict=given is not None))
        found = {name: _summed(content) for name, content in profiles.items() if content is not None}
        return {name: times for name, times in found.items() if times is not None}
    with scratch.folder() as folder:
        sessions: dict[str, Session] = {}
        for name, content in models.items():
            prefix = folder / secrets.token_hex(4)
            with contextlib.suppress(ModelError):
                session = open_session(content, threads=threads, profile=prefix, label=name)
                session.run(feed)
                sessions[name] = session
        runs, end = 0, time.perf_counter() + _SECONDS * len(sessions)
        while sessions and runs < _MOST and (runs < _FEWEST or time.perf_counter() < end):
            for session in sessions.values():
                session.run(feed)
            runs += 1
        times = {name: _summed(session.end_profiling().read_bytes()) for name, session in sessions.items()}
    return {name: found for name, found in times.items() if found is not None}


def _summed(profile: bytes) -> KernelTime | None:
    """Times over the runs in a profile, the first of which was warm-up; None where it cannot be read.

    The profile has whole µs, so that a median could not tell short kernels apart: the mean of the faster half of the
    runs can, and disturbed runs do not count in it either.
    """
    try:
        events = json.loads(profile.decode("utf8"))
    except ValueError:
        return None
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")[1:]
    kernels = sorted(
        (e["ts"], e["dur"], e.get("args", {}).get("op_name", ""))
        for e in events
        if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")
    )
    runs = [[(dur, op) for ts, dur, op in kernels if start <= ts <= end] for start, end in spans]
    if not runs:
        return None

    def typical(ops: Iterable[str], *, others: bool = False) -> float:
        chosen = set(ops)
        sums = sorted(sum(dur for dur, op in run if (op in chosen) != others) for run in runs)
        return statistics.fmean(sums[: max(len(sums) // 2, 1)])

    quantize, dequantize = typical(["QuantizeLinear"]), typical(["DequantizeLinear"])
    return KernelTime(typical([*_LAYOUT, "QuantizeLinear", "DequantizeLinear"], others=True), quantize, dequantize)


class KernelTimeCache:
    """Times by what they depend on, kept in memory and, where that is possible, in the user's cache folder.

    A file holds the times of one machine, one version of ONNX Runtime and one number of threads.
    """

    def __init__(self, threads: int | None, *, kept: bool = True) -> None:
        """Read what is known; a file that is missing or damaged holds nothing.

        Args:
            threads: threads an operator may use.
            kept: on the disk; not for an engine elsewhere, of which nothing tells whether it is the one of before.
        """
        self._kept = kept
        key = hashlib.sha256(machine_key(threads).encode()).hexdigest()[:16]
        self._path = cache_folder() / f"kernels-{key}.json"
        self._times: dict[str, dict[str, KernelTime]] = {}
        self._changed = False
        if not kept:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            for group, forms in json.loads(self._path.read_text("utf8")).items():
                with contextlib.suppress(ValueError, TypeError, AttributeError):
                    self._times[group] = {form: _kernel_time(times) for form, times in forms.items()}

    def get(self, group: str, forms: Iterable[str]) -> dict[str, KernelTime] | None:
        """The times of a group; None unless those of all the forms are known, which were then measured together."""
        known = self._times.get(_short(group), {})
        wanted = list(forms)
        return {form: known[form] for form in wanted} if all(form in known for form in wanted) else None

    def put(self, group: str, times: Mapping[str, KernelTime]) -> None:
        """Remember the times of a group."""
        self._times[_short(group)] = dict(times)
        self._changed = True

    def save(self) -> None:
        """Write what is new; where the folder cannot be written, the times are measured again the next time."""
        if not self._changed or not self._kept:
            return
        plain: dict[str, Any] = {g: {f: asdict(t) for f, t in forms.items()} for g, forms in self._times.items()}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(self._path, json.dumps(plain, sort_keys=True).encode())
        self._changed = False


def _kernel_time(times: dict[str, Any]) -> KernelTime:
    """Times from a file.

    Raises:
        TypeError: other names, or no numbers.
        ValueError: a time that no kernel takes.
    """
    found = KernelTime(**times)
    for value in (found.compute, found.quantize, found.dequantize):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(value)
        if not 0 <= value < math.inf:
            raise ValueError(value)
    return found


def _short(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()[:24]
