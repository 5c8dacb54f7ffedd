"""Wishes for single values of a model: their range, their grid, or that they stay float."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from onnxq.errors import RecipeError
from onnxq.recipe.values import check_choice, check_types, field_types, names, plain, rule_mappings, shown

METHODS = ("minmax", "percentile", "entropy", "mse", "average")


@dataclass(frozen=True)
class ValueRule:
    """What holds for the activations whose name matches a pattern; the last rule that matches wins, key by key.

    A weight is named in full, and takes ``range``, ``symmetric``, ``min_range``, ``scale`` and ``zero_point``.

    Attributes:
        match: name of a value in the user's model, or a shell pattern over names.
        range: (low, high) of the reals that the integers span, instead of what calibration finds; zero is added to it.
        method: how the range is found from statistics.
        symmetric: zero in the middle of the grid, or the grid where the values are.
        min_range: least width of the range, in the units of the value; a narrower one gets a higher end.
        zeros: True gives a value that was zero in all of calibration a grid with steps of 1; else it stays float.
        scale: reals in a step of the grid; with ``zero_point``, instead of what calibration finds; of a weight also one
            a channel.
        zero_point: integer that stands for zero; likewise.
        bits: of its integers: 8, or 16 between Q and DQ.
        convert: bits of a second grid, 8 or 16, from which some nodes read what the first one left of the value.
        readers: names or patterns of these nodes; without them, all that read the value on integers.
        quantize: False leaves the value float, and with it the nodes that would need its integers; of a bias, named in
            full, the bias alone.
    """

    match: str
    range: tuple[float, float] | None = None
    method: str | None = None
    symmetric: bool | None = None
    min_range: float | None = None
    zeros: bool | None = None
    scale: float | tuple[float, ...] | None = None
    zero_point: int | tuple[int, ...] | None = None
    quantize: bool | None = None
    bits: int | None = None
    convert: int | None = None
    readers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        where = f"value rule {self.match!r}"
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        check_types("value rule", {name: getattr(self, name) for name in _TYPES}, _TYPES)
        check_choice("value rule method", self.method, METHODS)
        if self.range is not None:
            object.__setattr__(self, "range", _ends(self.range, where))
        if (self.scale is None) != (self.zero_point is None):
            raise RecipeError(f"{where}: scale and zero_point belong together; pass both or neither")
        for name, wanted in (("scale", int | float), ("zero_point", int)):
            object.__setattr__(self, name, _numbers(getattr(self, name), wanted, f"{where}: {name}"))
        if self.scale is not None and not all(0 < scale < math.inf for scale in _each(self.scale)):
            raise RecipeError(f"{where}: scale {self.scale} is not a positive number; leave it out to calibrate")
        if self.min_range is not None and not (0 <= self.min_range < math.inf):
            raise RecipeError(f"{where}: min_range {self.min_range} is no width; 0 is the default")
        chosen = [name for name in ("range", "scale", "method") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise RecipeError(f"{where}: {' and '.join(chosen)} say the same thing twice; leave one out")
        if self.scale is not None and self.symmetric is not None:
            raise RecipeError(f"{where}: scale and zero_point say where the grid lies; leave symmetric out")
        for width in (self.bits, self.convert):
            if width not in (None, 8, 16):
                raise RecipeError(f"{where}: {width} bits have no kernel for activations; write 8 or 16")
        if self.convert is not None and self.convert == self.bits:
            raise RecipeError(f"{where}: bits and convert are both {self.bits}; a second grid has another width")
        if self.readers is not None and self.convert is None and self.quantize is None:
            raise RecipeError(f"{where}: readers say who reads a second grid; add convert, 8 or 16")
        if self.readers is not None:
            object.__setattr__(self, "readers", names(f"{where}: readers", self.readers))
        if self.quantize is True:
            raise RecipeError(f"{where}: quantize is true by itself; a rule for the node insists on integers")
        if not any(getattr(self, field.name) is not None for field in fields(self) if field.name != "match"):
            raise RecipeError(
                f"{where}: says nothing; use range, method, symmetric, min_range, zeros, scale, bits, convert or "
                "quantize"
            )


def _each(given: Any) -> tuple[Any, ...]:
    return given if isinstance(given, tuple) else (given,)


def _numbers(given: Any, wanted: Any, where: str) -> Any:
    """One number, or one a channel as a tuple, which may come as a list or an array."""
    if given is None:
        return None
    listed = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(listed, list | tuple)
    numbers = tuple(plain(number) for number in listed) if several else (plain(listed),)
    if not numbers or not all(isinstance(number, wanted) and not isinstance(number, bool) for number in numbers):
        kind = "whole number" if wanted is int else "number"
        raise RecipeError(f"{where} is {shown(given)}; it takes a {kind}, of a weight also a list with one a channel")
    return numbers if several else numbers[0]


def _ends(given: Any, where: str) -> tuple[float, float]:
    ends = tuple(plain(end) for end in given) if isinstance(given, list | tuple) else ()
    if len(ends) != 2 or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        raise RecipeError(f"{where}: range is {shown(given)}; write two numbers, such as [0, 6]")
    low, high = float(ends[0]), float(ends[1])
    if low >= high:
        raise RecipeError(f"{where}: range [{low:g}, {high:g}] is empty; the lower end comes first")
    return low, high


_TYPES = field_types(ValueRule)


def value_rules(given: object, where: str) -> tuple[ValueRule, ...]:
    """Rules as they may be written: a list of mappings, or of `ValueRule`.

    Raises:
        RecipeError: names the rule that is none.
    """
    entries = rule_mappings(given, ValueRule, where, "values", "value rule", "a value's name, or a pattern")
    return tuple(entry if isinstance(entry, ValueRule) else ValueRule(**entry) for entry in entries)


def as_data(rule: ValueRule) -> dict[str, Any]:
    """The keys of a rule that were given, for YAML."""
    given = {field.name: getattr(rule, field.name) for field in fields(rule)}
    given = {key: value for key, value in given.items() if value is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
