"""Wishes for the nodes of a model whose name matches a pattern."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.recipe.presets import PRESETS
from onnxq.recipe.rounding import ROUNDINGS
from onnxq.recipe.values import (
    check_choice,
    check_smooth,
    check_types,
    check_weights,
    field_types,
    rule_mappings,
    settle,
)

RANGES = ("minmax", "percentile", "entropy", "mse", "average")


@dataclass(frozen=True)
class Rule:
    """What holds for the nodes whose name matches a pattern; the last rule that matches wins, key by key.

    Attributes:
        match: a node name or a shell pattern over node names (``layer1.*``).
        quantize: False leaves the nodes float; True quantizes them even where that is expected to be slower.
        range: range method of the values they write.
        per_channel: scales for their weights by channel (True) or by tensor (False).
        preset: another preset than the recipe's.
        bits: bits of their weights.
        block_size: elements of a weight that share a scale; 0 for one scale a column.
        algorithm: how their weights are rounded.
        accuracy_level: of their MatMulNBits kernels.
        smooth: SmoothQuant's α for their input, or "auto"; of layers that read one value the first counts.
    """

    match: str
    quantize: bool | None = None
    range: str | None = None
    per_channel: bool | None = None
    preset: str | None = None
    bits: int | None = None
    block_size: int | None = None
    algorithm: str | None = None
    accuracy_level: int | None = None
    smooth: float | str | None = None

    def __post_init__(self) -> None:
        settle(self, "rule", _RULE_TYPES)
        check_choice("rule range", self.range, RANGES)
        check_choice("rule preset", self.preset, tuple(name for name in PRESETS if name not in ("auto", "float")))
        check_choice("rule algorithm", self.algorithm, tuple(ROUNDINGS))
        check_weights("rule ", self.bits, self.block_size, self.accuracy_level)
        check_smooth("rule smooth", self.smooth)


_RULE_TYPES = field_types(Rule)


def node_rules(given: object, where: str) -> tuple[Rule, ...]:
    """Rules as they may be written: a list of mappings, or of `Rule`.

    Raises:
        RecipeError: names the rule that is none.
    """
    entries = rule_mappings(given, Rule, where, "rules", "rule", "a node name or a pattern")
    for index, entry in enumerate(entries):
        if not isinstance(entry, Rule):
            check_types(f"{where}: rule {index + 1}", entry, _RULE_TYPES)
            entries[index] = Rule(**entry)
    return tuple(entries)
