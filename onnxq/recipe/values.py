"""Whether single values of a recipe make sense, and how they are shown where they do not."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from onnxq.errors import RecipeError, there_are
from onnxq.recipe.presets import SYNONYMS

BITS = (2, 3, 4, 8)

PREFILL, DECODE, CHAT = "prefill", "decode", "chat"
WORKLOADS = (PREFILL, DECODE, CHAT)
"""What a language model can be timed for: a prompt, tokens with a cache, or a prompt and as many tokens as answer."""

_INTEGER_BITS = 62


def check_choice(what: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the choices; the nearest is named."""
    if value is not None and value not in choices:
        synonyms = SYNONYMS if what.endswith("preset") else None
        raise RecipeError(f"{what}: no {shown(value)}; {there_are(value, choices, synonyms=synonyms)}")


def check_smooth(option: str, alpha: float | str | None) -> None:
    """Refuse what is no α of SmoothQuant."""
    if isinstance(alpha, str) and alpha != "auto":
        raise RecipeError(f"{option}: {alpha!r} is neither a number in 0…1 nor 'auto'")
    if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
        raise RecipeError(f"{option}: {alpha} is not in 0…1; 0.5 is the usual choice")


_BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "percentile": (lambda n: 50 < n <= 100, "is not in (50, 100]; 99.99 is the default"),
    "opset": (lambda n: 7 <= n <= 99, "is no operator set that can be asked for; 13 to 21 are usual"),
    "target_bits": (lambda n: 2 <= n <= 32, "is not in 2…32; 4.5 is 4 bits with a scale in 32"),
    "max_memory": (lambda n: n > 0, "GiB is not positive; 2 is the default"),
    "minutes": (lambda n: n > 0, "is not positive; 4 is the default"),
    "epochs": (lambda n: n >= 1, "is no number of passes; leave it out to choose by the samples"),
    "learning_rate": (lambda n: 0 < n < 1, "is not between 0 and 1; 0.002 is the default"),
    "outliers": (lambda n: n > 0, "is no magnitude; 6 is the usual choice"),
    "min_sqnr": (lambda n: not math.isnan(n), "must be a number, not nan; nothing could be compared with it"),
    "max_drop": (lambda n: n >= 0, "is no fall; 0 allows none, 0.5 half a point"),
}
"""What numbers of a recipe have to be, and what is said where they are not."""


def check_numbers(given: Mapping[str, Any]) -> None:
    """Refuse numbers of a recipe that make no sense; None stands for the default."""
    for name, (holds, said) in _BOUNDS.items():
        number = given[name]
        if number is not None and not holds(number):
            shown_number = "" if math.isnan(number) and said.startswith("must") else f"{number} "
            raise RecipeError(f"--{name.replace('_', '-')}: {shown_number}{said}")


def check_weights(option: str, bits: int | None, block_size: int | None, accuracy_level: int | None) -> None:
    """Refuse bits, blocks and levels that no kernel has."""
    if bits is not None and bits not in BITS:
        raise RecipeError(f"{option}bits: {bits} bits have no kernel; use {', '.join(map(str, BITS))}")
    if block_size not in (None, 0) and (block_size < 16 or block_size > 256 or block_size & (block_size - 1)):
        raise RecipeError(
            f"{option}block-size: {block_size} has no kernel; use 16, 32, 64, 128 or 256, or 0 for columns"
        )
    if accuracy_level is not None and not 0 <= accuracy_level <= 4:
        raise RecipeError(f"{option}accuracy-level: {accuracy_level} is not in 0…4; 0 is exact, 4 is fast")


def check_keys(where: str, given: Iterable[str], known: list[str]) -> None:
    """Refuse an unknown key; the nearest is named."""
    for key in given:
        if key not in known:
            raise RecipeError(f"{where}: no key {shown(key)}; {there_are(shown(key), known)}")


def field_types(made: type) -> dict[str, tuple[type, ...]]:
    """The types that each field of a dataclass takes by its annotation, without None; a float may be whole.

    Fields that hold several values are left out: `names` and rules have checks of their own.
    """
    found = {}
    for name, hint in get_type_hints(made).items():
        types = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        if get_origin(hint) is not tuple and not any(get_origin(kind) is tuple for kind in types):
            found[name] = tuple(dict.fromkeys([*([int] if float in types else []), *types]))
    return found


def check_types(where: str, given: Mapping[str, Any], known: dict[str, tuple[type, ...]]) -> None:
    """Refuse a value of another type than its key takes."""
    for key, types in known.items():
        value = given.get(key)
        wrong = value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types))
        if wrong or (isinstance(value, int) and value.bit_length() > _INTEGER_BITS):
            wanted = {str: "text", bool: "true or false"}.get(types[0], "a number")
            raise RecipeError(f"{where}: {key} is {shown(value)} ({type(value).__name__}); it takes {wanted}")


def names(key: str, value: object) -> tuple[str, ...]:
    """Names or patterns, of which one may stand alone; never the letters of it."""
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Iterable) or isinstance(items, bytes | Mapping):
        raise RecipeError(f"{key}: {shown(value)} is not a list of names; write [name, name]")
    names = tuple(items)
    if not all(isinstance(item, str) for item in names):
        raise RecipeError(f"{key}: {shown(value)} is not a list of names; write [name, name]")
    return names


def rule_mappings(given: object, kind: type, where: str, key: str, word: str, named: str) -> list[Any]:
    """Rules as they may be written: one of ``kind``, or a list of these and of mappings of their keys.

    Args:
        given: what was written under ``key``.
        kind: dataclass of a rule, with a field ``match``.
        where: subject of messages.
        key: of the list, for messages.
        word: a rule in messages.
        named: what ``match`` takes, in words.

    Returns:
        In order, rules as they are, and mappings with their numbers made plain and without those that are None.

    Raises:
        RecipeError: names the rule that is none.
    """
    if isinstance(given, kind):
        given = (given,)
    if not isinstance(given, list | tuple) or not all(isinstance(rule, kind | Mapping) for rule in given):
        raise RecipeError(f"{where}: {key} must be a list of mappings, each with 'match' and what is to hold")
    found: list[Any] = []
    for index, entry in enumerate(given):
        if isinstance(entry, kind):
            found.append(entry)
            continue
        place = f"{where}: {word} {index + 1}"
        check_keys(place, entry, [field.name for field in fields(kind)])
        keys = {name: plain(value) for name, value in entry.items() if value is not None}
        if "match" not in keys:
            raise RecipeError(f"{place} has no 'match'; write {named}")
        found.append(keys)
    return found


def sizes(option: str, given: Iterable[str]) -> dict[str, int]:
    """Sizes by name, of entries such as ``batch=1``.

    Raises:
        RecipeError: one is no such entry, or two give one name different sizes.
    """
    found: dict[str, int] = {}
    for entry in given:
        name, _, size = entry.rpartition("=")
        if not name or not size.isdecimal() or not 0 < int(size) < 1 << 31:
            raise RecipeError(f"{option}: {shown(entry)} is not NAME=N with a positive whole number, such as batch=1")
        if found.setdefault(name, int(size)) != int(size):
            raise RecipeError(f"{option}: {shown(name)} is given twice, as {found[name]} and {size}; leave one out")
    return found


def plain(value: Any) -> Any:
    """A number of numpy as Python's own; anything else as it is."""
    kind = getattr(type(value), "__module__", "")
    return value.item() if kind == "numpy" and getattr(value, "shape", None) == () else value


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 3

_LONGEST = 300
"""Characters of a value in a message."""


def shown(value: object) -> str:
    """A value in a message: short whatever it is, and however often it holds itself."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of very many digits"
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def settle(made: Any, where: str, types: dict[str, tuple[type, ...]]) -> None:
    """Make numbers of numpy plain ones, and check the type of each field.

    Raises:
        RecipeError: one does not fit.
    """
    for key in types:
        object.__setattr__(made, key, plain(getattr(made, key)))
    check_types(where, {key: getattr(made, key) for key in types}, types)
    for field in fields(made):
        if field.name in types and getattr(made, field.name) is None and field.default is not None:
            raise RecipeError(f"{where}: {field.name} is None; leave it out for the default")
