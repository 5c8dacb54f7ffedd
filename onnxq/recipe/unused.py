"""Options that the chosen presets do not look at, as data: to give one is an error, not a silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from onnxq.errors import RecipeError
from onnxq.recipe.presets import PRESETS, Preset
from onnxq.recipe.recipe import Recipe, Rule


@dataclass(frozen=True)
class _Use:
    """Where an option has an effect.

    Attributes:
        by: whether a preset looks at a value.
        why: what presets that do not look at it do instead.
    """

    by: Callable[[Preset, Any], bool]
    why: str


def _blocks(preset: Preset, value: object) -> bool:
    return preset.weights == "blocks"


_TABLES = ("nf4", "fp4")
"""Presets of a table that ONNX Runtime's MatMulBnb4 knows, or that is written out as a Gather."""


def _static(preset: Preset, value: object) -> bool:
    return preset.activations == "static" and not preset.float8


def _multiplies_integers(preset: Preset, value: object) -> bool:
    return preset.weights == "integer" and not preset.float8


def _computes_in_float(preset: Preset, value: object) -> bool:
    return preset.name != "float" and preset.weights in ("blocks", "float") and preset.float_type in (None, value)


_RANGES = _Use(_static, "clips no ranges of activations")

USES: dict[str, _Use] = {
    "format": _Use(
        lambda preset, value: _static(preset, value) or preset.weights == "blocks" or preset.name in _TABLES,
        "has one form only",
    ),
    "range": _RANGES,
    "percentile": _RANGES,
    "symmetric": _Use(
        lambda preset, value: _static(preset, value) or preset.weights == "blocks", "has no grid to choose"
    ),
    "per_channel": _Use(
        lambda preset, value: (
            preset.codebook in (None, "kmeans")
            and preset.name != "lut8"
            and preset.weights != "float"
            and not preset.float8
        ),
        "groups weights in its own way",
    ),
    "bias_correct": _Use(_static, "corrects no bias"),
    "smooth": _Use(lambda preset, value: preset.activations is not None, "rounds no activations"),
    "adaround": _Use(_multiplies_integers, "rounds weights by --algorithm"),
    "reconstruct": _Use(_multiplies_integers, "has no layers on integers"),
    "bits": _Use(
        lambda preset, value: preset.weights == "blocks" or value == preset.bits or preset.activation_bits < 8,
        "stores its weights in one way, and fewer bits would only make them coarser",
    ),
    "block_size": _Use(
        lambda preset, value: preset.weights in ("blocks", "codebook") or preset.activations == "token",
        "has no blocks of weights",
    ),
    "sequential": _Use(_blocks, "packs no weights"),
    "accuracy_level": _Use(_blocks, "packs no weights"),
    "float_type": _Use(_computes_in_float, "computes on integers or reads tables, which give float32"),
}
"""Options that not every preset looks at. Others have messages of their own (algorithm, target_bits, outliers), bound
what may happen rather than say what should (max_memory, minutes), or hold for every preset."""


def refuse_unused(recipe: Recipe) -> None:
    """Refuse a recipe with an option that none of its presets looks at.

    The preset auto tries several forms, all of 8 bits.

    Raises:
        RecipeError: names the option, what the preset does, and presets that look at the option.
    """
    default = Recipe()
    if recipe.half is None:
        for given, option in ((recipe.store_only, "--store-only"), (not recipe.keep_io, "--no-keep-io")):
            if given:
                raise RecipeError(
                    f"{option}: is about float16 and bfloat16; use it with --preset fp16 or bf16, or with --float-type"
                )
    if recipe.half == "bfloat16" and not recipe.keep_io:
        raise RecipeError(
            "--no-keep-io: onnxruntime neither takes bfloat16 from Python nor gives it; leave it out, or use fp16"
        )
    if recipe.sequential and recipe.preset == "auto":
        raise RecipeError(
            "--sequential: auto tries forms of 8 bits, whose weights are rounded to nearest; use it with w4 or w2"
        )
    if recipe.learn_rotation and not recipe.rotate:
        raise RecipeError("--learn-rotation: is about the matrices of --rotate; use it with --rotate")
    if not recipe.finetune:
        for name in ("epochs", "learning_rate", "device", *(() if recipe.learn_rotation else ("seed",))):
            if getattr(recipe, name) != getattr(default, name):
                raise RecipeError(f"--{name.replace('_', '-')}: is about learning end to end; use it with --finetune")
    static = {preset.activations for preset in recipe.presets} == {"static"}
    learns = recipe.finetune or (static and (recipe.reconstructs or recipe.adaround))
    for field in fields(Recipe):
        value = getattr(recipe, field.name)
        if field.name == "bits" and learns:
            continue  # fewer bits learn what they lose
        if field.name in USES and value != getattr(default, field.name):
            _check(f"--{field.name.replace('_', '-')}", field.name, value, recipe.presets)
    if recipe.values and not any(preset.activations == "static" or preset.name == "auto" for preset in recipe.presets):
        raise RecipeError(
            f"values: do nothing with preset {recipe.preset}, which calibrates no ranges of activations; leave them "
            "out, or use w8a8"
        )
    for i, rule in enumerate(recipe.rules):
        for field in fields(Rule):
            value = getattr(rule, field.name)
            if field.name in USES and value is not None and not (field.name == "bits" and learns):
                _check(f"rule {i + 1}: {field.name}", field.name, value, [PRESETS[rule.preset or recipe.preset]])
    widths = {preset.activation_bits: preset.name for preset in recipe.presets if preset.activations == "static"}
    if len(widths) > 1 and min(widths) < 8:
        listed = " and ".join(f"{name} activations of {bits} bits" for bits, name in sorted(widths.items()))
        raise RecipeError(
            f"rules: {listed}, but all activations of a model have one width; use one of these presets, and rules with "
            "bits: 8 for layers whose weights need them"
        )


def _check(option: str, name: str, value: object, presets: list[Preset]) -> None:
    use = USES[name]
    if any(use.by(form, value) for preset in presets for form in _forms(preset, name)):
        return
    others = [preset.name for preset in PRESETS.values() if preset.name != "auto" and use.by(preset, value)]
    given = "" if value is True else f" {value}"
    given = " false" if value is False else given
    raise RecipeError(
        f"{option}{given}: does nothing with preset {presets[0].name}, which {use.why}; leave it out, or use "
        f"{', '.join(others)}"
    )


def _forms(preset: Preset, name: str) -> Iterator[Preset]:
    """The presets that a preset may turn out to be."""
    if preset.name != "auto":
        yield preset
    elif name == "bits":
        yield PRESETS["w8a8"]
    else:
        yield from (PRESETS[form] for form in ("w8a8", "w8a8-dynamic", "w8a8-token", "w8"))
