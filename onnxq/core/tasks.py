"""One pure function on many arguments: here, or wherever an engine spreads them over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


class Tasks(Protocol):
    """What runs tasks that depend on nothing but their arguments."""

    def map(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[Any]:
        """Call a function of a module for each tuple of arguments.

        Args:
            function: whose result depends on its arguments alone, so that it may be called again where it was lost.
            arguments: taken as they are needed, a bounded number ahead.
            shared: further arguments, the same for all and behind the others.

        Returns:
            The results, in the order of the arguments.
        """
        ...


class Here:
    """Runs one task after the other in this process."""

    def map(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[Any]:
        """See `Tasks.map`."""
        return (function(*own, *shared) for own in arguments)
