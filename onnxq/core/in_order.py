"""The same function on many parts, on several processors, with the results in the order of the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from onnxq.core.processors import free_processors

_THREADS = 4
"""More would wait for memory."""

Part = TypeVar("Part")
Result = TypeVar("Result")


def each(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Call a function that computes with numpy, which lets go of the interpreter meanwhile, on every part."""
    threads = min(_THREADS, len(parts), free_processors())
    if threads < 2:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, parts))
