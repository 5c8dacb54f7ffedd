"""What a shell offers behind an option that takes a name. Lists are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_of(place: str) -> Completer:
    """The names that ``module:attribute``, a mapping or a sequence, holds."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        module, _, attribute = place.partition(":")
        names = getattr(import_module(module), attribute)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete
