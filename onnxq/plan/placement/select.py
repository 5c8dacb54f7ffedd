"""Which nodes the user chose: patterns over node names and operator types, each of which has to match something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnxq.errors import RecipeError, closest
from onnxq.recipe.patterns_of_names import matches
from onnxq.recipe.recipe import Recipe, Rule


@dataclass(frozen=True)
class Choice:
    """What the user said of one node.

    Attributes:
        reason: why it stays float, or None.
        insisted: quantize it even where that is expected to be slower.
        rule: the rules that match it, joined.
        excluded: it was named as one to stay float, not only left out.
    """

    reason: str | None
    insisted: bool
    rule: Rule
    excluded: bool = False


class Selection:
    """The user's choice over all nodes of a model."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Mapping[str, tuple[str, ...]],
        op_types: Iterable[str],
        given: Mapping[str, str] | None = None,
        small: Mapping[str, str] | None = None,
    ) -> None:
        """Check that every pattern matches.

        Args:
            recipe: holds the patterns.
            sources: for each node of the prepared model, the names it had in the user's model, its own among them.
            op_types: operator types in the prepared model.
            given: operator of each node of the user's model, where a MatMul and an Add may be what is now a Gemm.
            small: why nodes stay float unless they are named, by name: see `small_layers`.

        Raises:
            RecipeError: a pattern or type that matches nothing.
        """
        self._recipe = recipe
        self._sources = sources
        self._given = given or {}
        self._small = small or {}
        found = {name for names in sources.values() for name in names}
        every = found | set(self._given)
        patterns = [("--include", p) for p in recipe.include] + [("--exclude", p) for p in recipe.exclude]
        patterns += [("rule", rule.match) for rule in recipe.rules]
        for option, pattern in patterns:
            if not any(matches(pattern, name) for name in every):
                raise RecipeError(f"{option}: {pattern!r} matches no node; {_nearest(pattern, every)}")
        known = {*op_types, *(self._given[name] for name in found if name in self._given)}
        for op_type in recipe.op_types:
            if op_type not in known:
                raise RecipeError(f"--op-type: the model has no {op_type!r} node; it has {', '.join(sorted(known))}")

    def of(self, name: str, op_type: str) -> Choice:
        """What the user said of a node of the prepared model."""
        recipe, names = self._recipe, self._sources.get(name, (name,))
        rule = recipe.rule_for(names)
        if any(matches(p, n) for p in recipe.exclude for n in names):
            return Choice("excluded by --exclude", False, rule, excluded=True)
        if rule.quantize is False:
            return Choice("excluded by a rule of the recipe", False, rule, excluded=True)
        if rule.quantize is True:
            return Choice(None, True, rule)
        insisted = False
        if recipe.include:
            if not any(matches(p, n) for p in recipe.include for n in names):
                return Choice("not named by --include", False, rule)
            insisted = True
        if name in self._small and not insisted:
            return Choice(self._small[name], False, rule, excluded=True)
        if recipe.op_types:
            types = {op_type, *(self._given[name] for name in names if name in self._given)}
            if types.isdisjoint(recipe.op_types):
                return Choice("its operator is not named by --op-type", False, rule)
            insisted = True
        return Choice(None, insisted, rule)


def _nearest(pattern: str, names: set[str]) -> str:
    near = closest(pattern, sorted(names), cutoff=0.5)
    if near:
        return f"did you mean {near!r}? onnxq inspect --verbose lists the names"
    return "onnxq inspect --verbose lists the names; a pattern takes *, ? and […]"
