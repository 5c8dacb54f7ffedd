"""Changes of how ranges are found, which cost nothing at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxq.recipe.recipe import Recipe, Rule
from onnxq.search.within.history import Suspect

Change = tuple[str, Callable[[Recipe], Recipe]]
"""A change of a recipe that costs nothing at inference, and its name."""


def range_of_all(name: str) -> Change:
    """All values have this range."""
    return f"range {name}", lambda recipe: replace(recipe, range=name)


def ranges_of(suspects: Sequence[Suspect]) -> Callable[[Recipe], Recipe]:
    """Each of these nodes has the range that would help it."""

    def change(recipe: Recipe) -> Recipe:
        own = (Rule(s.node, range=s.range) for s in suspects if s.range != recipe.range)
        return replace(recipe, rules=(*recipe.rules, *own))

    return change


def range_of_one(suspect: Suspect, name: str) -> Change:
    """One node has this range."""

    def change(recipe: Recipe) -> Recipe:
        own = recipe.rule_for([suspect.node]).range
        # Where it got one of its own, that of all others was the one before.
        if name in (own, recipe.range):
            return recipe
        rules = tuple(rule for rule in recipe.rules if rule != Rule(suspect.node, range=rule.range))
        return replace(recipe, rules=(*rules, Rule(suspect.node, range=name)))

    return f"range {name} for {suspect.node}", change
