"""What a search has measured so far, in a file, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from onnxq.core import atomic
from onnxq.errors import OnnxqError
from onnxq.recipe.recipe import Recipe
from onnxq.search.within.history import StepOutcome, Suspect

_FORMAT = 1

_MORE_TIME = 1.2
"""An attempt that was broken off is made again if there is so many times the time."""


class SearchState:
    """Answers of a search by recipe, written after each, and the time that they took.

    Attributes:
        note: what the user should know of the file that was to be continued; empty where there is nothing.
    """

    def __init__(self, path: Path | None, key: str, *, resume: bool, spent: float = 0.0) -> None:
        """Start, or go on.

        Args:
            path: the file; None keeps everything in memory.
            key: identifies the model, the data and what is searched for.
            resume: go on from the file if it is there.
            spent: seconds that were gone before the first answer.

        Raises:
            OnnxqError: the file is no such file, or cannot be written.
        """
        self.note = ""
        self._path, self._key = path, key
        self._outcomes: dict[str, dict[str, Any]] = {}
        self._suspects: dict[str, list[dict[str, Any]]] = {}
        self._statistics: dict[str, float] = {}
        if path is not None and path.exists():
            self._read(path, resume)
        self._passed, self._since = spent, time.monotonic()
        self._write()

    def clock(self) -> float:
        """Seconds of search so far; while answers come from the file, those that it says had passed then."""
        return self._passed + time.monotonic() - self._since

    def outcome(self, recipe: Recipe, seconds: float) -> StepOutcome | None:
        """What a recipe gave, if it was tried, and was not broken off in much less time than there is now."""
        known = self._outcomes.get(recipe.to_yaml())
        if known is None:
            return None
        outcome = StepOutcome(**known["outcome"])
        if outcome.gave_up and seconds > _MORE_TIME * known["seconds"]:
            return None
        self._set_clock(known["passed"])
        return outcome

    def put_outcome(self, recipe: Recipe, outcome: StepOutcome, seconds: float) -> None:
        """Remember what a recipe gave in the time that it was allowed."""
        self._outcomes[recipe.to_yaml()] = {
            "outcome": asdict(outcome),
            "seconds": seconds,
            "passed": self.clock(),
        }
        self._write()

    def paid(self, key: object) -> float:
        """Seconds that an earlier process took to gather statistics; 0 if none did."""
        return self._statistics.get(repr(key), 0.0)

    def pay(self, key: object, seconds: float) -> None:
        """Statistics were gathered; what an earlier process had paid for is not counted once more."""
        if repr(key) in self._statistics:
            self._since += seconds
        else:
            self._statistics[repr(key)] = seconds

    def suspects(self, recipe: Recipe) -> list[Suspect] | None:
        """The nodes that hurt, if they were looked for."""
        known = self._suspects.get(recipe.to_yaml())
        return None if known is None else [Suspect(**entry) for entry in known]

    def put_suspects(self, recipe: Recipe, suspects: Sequence[Suspect]) -> None:
        """Remember the nodes that hurt."""
        self._suspects[recipe.to_yaml()] = [asdict(suspect) for suspect in suspects]
        self._write()

    def remove(self) -> None:
        """Delete the file."""
        if self._path is not None:
            forget(self._path)

    def _set_clock(self, passed: float) -> None:
        self._passed, self._since = passed, time.monotonic()

    def _read(self, path: Path, resume: bool) -> None:
        try:
            found = json.loads(path.read_text("utf8"))
            fits = found["format"] == _FORMAT and found["key"] == self._key
            outcomes, suspects = dict(found["outcomes"]), dict(found["suspects"])
            for known in outcomes.values():
                _check(StepOutcome(**known["outcome"]), float(known["seconds"]), float(known["passed"]))
            for entry in (entry for entries in suspects.values() for entry in entries):
                _check(Suspect(**entry))
            statistics = {str(key): float(seconds) for key, seconds in found.get("statistics", {}).items()}
        except OSError as error:
            raise OnnxqError(f"--search-state {path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise OnnxqError(
                f"--search-state {path}: is not the state of a search; name another file, or delete this one"
            ) from None
        if not resume:  # it was read only so that no other file is written over
            return
        if fits:
            self._outcomes, self._suspects, self._statistics = outcomes, suspects, statistics
        else:
            self.note = f"--resume: {path} is of another model, data or recipe, so the search started anew"

    def _write(self) -> None:
        if self._path is None:
            return
        content = {
            "format": _FORMAT,
            "key": self._key,
            "outcomes": self._outcomes,
            "suspects": self._suspects,
            "statistics": self._statistics,
        }
        try:
            atomic.write(self._path, json.dumps(content).encode())
        except OSError as error:
            raise OnnxqError(
                f"--search-state {self._path}: cannot be written ({error.strerror}); name a file in another folder"
            ) from None


def _check(*found: object) -> None:
    """Raise TypeError where a field of a record that was read is of another type than the program writes."""
    for record in found:
        if is_dataclass(record):
            for field in fields(record):
                value = getattr(record, field.name)
                kinds = {"str": str, "bool": bool, "str | None": str | None, "float | None": float | int | None}
                if not isinstance(value, kinds.get(str(field.type), float | int)):
                    raise TypeError(field.name)
                if isinstance(value, int):
                    float(value)  # which a number of very many digits is too large for


def forget(path: Path) -> None:
    """Delete the file of a search, and what a kill may have left of it."""
    path.unlink(missing_ok=True)
    atomic.sweep(path.parent)
