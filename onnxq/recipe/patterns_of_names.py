"""Patterns over node names: shell patterns, or the name itself."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable

_ESCAPED = re.compile(r"\[([*?\[])\]")
"""What `glob.escape` makes of a character that would stand for others."""


def matches(pattern: str, name: str) -> bool:
    """Whether a node name is the pattern or fits it as a shell pattern (``*``, ``?``, ``[…]``)."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def one_name(pattern: str) -> str | None:
    """The one name that a pattern stands for; None where it has wildcards."""
    plain = _ESCAPED.sub(r"\1", pattern)
    return plain if glob.escape(plain) == pattern else None


def sorted_patterns(patterns: Iterable[str]) -> tuple[dict[str, list[int]], list[int]]:
    """The places of those that name one node each, by that name, and of the others; searches make many of the first."""
    exact: dict[str, list[int]] = {}
    others = []
    for index, pattern in enumerate(patterns):
        plain = one_name(pattern)
        if plain is None:
            others.append(index)
            continue
        for name in {plain, pattern}:
            exact.setdefault(name, []).append(index)
    return exact, others
