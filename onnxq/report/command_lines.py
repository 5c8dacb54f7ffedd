"""The command line that a recipe and the options of a run come to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from onnxq.recipe.recipe import Recipe

_FLAGS: dict[str, tuple[str, str]] = {
    "per_channel": ("--per-channel", "--per-tensor"),
    "symmetric": ("--symmetric", "--affine"),
    "bias_correct": ("--bias-correct", "--no-bias-correct"),
    "equalize": ("--equalize", ""),
    "adaround": ("--adaround", ""),
    "finetune": ("--finetune", ""),
}
_REPEATED = {"include": "--include", "exclude": "--exclude", "op_types": "--op-type"}
_NAMES = {"preset": "-p", "rules": ""}

LIMITS = frozenset({"min_sqnr", "max_drop"})


def recipe_words(recipe: Recipe, leave_out: frozenset[str] = frozenset()) -> list[str]:
    """The options of a recipe that are not the defaults, as words of a command line; rules have none.

    Args:
        recipe: what was asked for.
        leave_out: options that are not said.
    """
    words: list[str] = []
    plain = Recipe()
    for field in fields(Recipe):
        name, value = field.name, getattr(recipe, field.name)
        if value == getattr(plain, name) or name in leave_out or name == "rules":
            continue
        if name in _FLAGS:
            words.append(_FLAGS[name][0 if value else 1])
        elif isinstance(value, bool):
            words.append(("--" if value else "--no-") + name.replace("_", "-"))
        elif name in _REPEATED:
            words += [word for entry in value for word in (_REPEATED[name], entry)]
        else:
            words += [
                _NAMES.get(name, "--" + name.replace("_", "-")),
                f"{value:g}" if isinstance(value, float) else str(value),
            ]
    return [word for word in words if word]


def quantize_words(model: object, options: Sequence[tuple[str, object]], recipe: Recipe) -> dict[str, list[str]]:
    """The command of a run, for `command_line`.

    Args:
        model: the float model.
        options: names and values of options beside the recipe; values that are None are left out.
        recipe: what was asked for.

    Returns:
        ``run``, the words of the command itself, and ``base``: those without the preset and the limits, to which the
        options of a candidate can be added.
    """
    start = ["onnxq", "quantize", str(model)]
    start += [word for name, value in options if value is not None for word in (name, str(value))]
    return {
        "run": [*start, *recipe_words(recipe)],
        "base": [*start, *recipe_words(recipe, LIMITS | {"preset"})],
    }


def candidate_line(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The command that gives a candidate; empty where none does.

    Args:
        result: what `onnxq.report.results.QuantizeResult.to_dict` gives.
        row: one of its candidates.
    """
    words = (result.get("command") or {}).get("base")
    if not words or not row.get("options"):
        return ""
    options = shlex.split(str(row["options"]))
    return command_line([*words, *(f"{_file_of(row)}" if word == "FILE" else word for word in options)])


def _file_of(row: Mapping[str, Any]) -> str:
    """A name for the file that holds the recipe of a candidate."""
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in str(row["name"]))
    return f"{stem.strip('-') or 'recipe'}.yaml"


def command_line(words: Sequence[str]) -> str:
    """Words as they are typed into a shell."""
    return shlex.join(str(word) for word in words)
