"""What a target refuses of a recipe or a model before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.core.dtypes import QType
from onnxq.data.feeds import InputSpec
from onnxq.errors import RecipeError, TargetError
from onnxq.graph.types import Model
from onnxq.plan.activations.activation_grids import WIDE
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.targets import SLOW_16, WHOLE, Target

_NAMED = 6


def check_recipe(recipe: Recipe, target: Target) -> None:
    """Refuse what the target does not run.

    Raises:
        TargetError: a preset, a format, a type or an operator set that it does not take.
        RecipeError: integer operators with what is said of Q and DQ.
    """
    if target.presets:
        wrong = next((p.name for p in recipe.presets if p.name not in (*target.presets, "auto")), None)
        if wrong is not None:
            raise TargetError(
                f"--target {target.name}: does not run {wrong}, since {target.why_presets}; use --preset "
                f"{', '.join(target.presets)}"
            )
    _check_bits(recipe, target)
    check_float8(recipe, target)
    if recipe.float_outputs and target.coverage != WHOLE:
        raise RecipeError(f"--float-output: {target.name} leaves outputs float by itself; leave it out")
    if recipe.format is not None and recipe.format not in target.formats:
        raise TargetError(f"--target {target.name}: reads no {recipe.format} models; use --format {target.formats[0]}")
    if (recipe.format or target.formats[0]) == "qoperator":
        pairs = [key for key in ("float_bias", "dedicated_pairs", "own_pairs") if getattr(recipe, key)]
        pairs += [preset.name for preset in recipe.presets if preset.activation_bits == 16]
        pairs += ["value rule of 16 bits" for rule in recipe.values if rule.bits == 16 or rule.convert]
        if pairs:
            raise RecipeError(f"--format qoperator: has no {pairs[0]}, which is for Q and DQ; use --format qdq")
    wide = any(WIDE in (rule.bits, rule.convert) for rule in recipe.values)
    sixteen = next((preset.name for preset in recipe.presets if preset.activation_bits == WIDE), None)
    if target.provider and QType.UINT16 not in target.activations and sixteen is not None:
        raise TargetError(
            f"--target {target.name}: takes no activations of 16 bits, as {sixteen} has; use --preset w8a8, or another"
        )
    if target.provider and QType.UINT16 not in target.activations and wide:
        raise TargetError(f"--target {target.name}: takes no activations of 16 bits; leave them out of the value rules")
    wide = all(preset.activation_bits == WIDE for preset in recipe.presets)
    for key in ("wide_weights", "signed_activations"):
        if getattr(recipe, key) and not wide:
            raise RecipeError(f"{key}: goes with activations of 16 bits; use it with w8a16, or leave it out")
    for key in ("unsigned_weights", "asymmetric_weights", "wide_weights", "signed_activations"):
        if getattr(recipe, key) and target.provider:
            raise RecipeError(f"{key}: is for targets that run on this processor, not {target.name}; leave it out")
    if recipe.opset is not None and recipe.opset > target.max_opset:
        raise TargetError(
            f"--target {target.name}: reads operator sets up to {target.max_opset}, not {recipe.opset}; leave it out"
        )


def _check_bits(recipe: Recipe, target: Target) -> None:
    blocks = {preset.name: preset for preset in recipe.presets if preset.weights == "blocks"}
    asked = [(f"--preset {name}", recipe.bits or preset.bits) for name, preset in blocks.items()]
    asked += [(f"rule {number}: bits", rule.bits or 8) for number, rule in enumerate(recipe.rules, 1) if blocks]
    for option, bits in asked:
        if bits < target.fewest_bits:
            raise TargetError(
                f"{option}: the installed onnxruntime has no kernel for blocks of {bits} bits; install 1.24 or later, "
                "or use w4"
            )


def check_float8(recipe: Recipe, target: Target) -> None:
    """Refuse float8 where it does not run, and what it does not go together with.

    Raises:
        TargetError: the target has no kernels for it.
        RecipeError: other types of activations beside it, or wishes that are about integers.
    """
    if not any(preset.float8 for preset in recipe.presets):
        return
    if QType.FLOAT8 not in target.activations:
        raise TargetError(f"--preset fp8: {target.name} has no float8 kernels; pass --target tensorrt")
    other = next((p.name for p in recipe.presets if not p.float8 and p.activations == "static"), None)
    if other is not None:
        raise RecipeError(f"--preset fp8: does not go together with {other} in one model; leave one of them out")
    if any(rule.bits or rule.convert or rule.zero_point or rule.symmetric is False for rule in recipe.values):
        raise RecipeError("--preset fp8: float8 has no zero point and no other width; leave both out of value rules")
    if recipe.finetune:
        raise RecipeError("--finetune: learns integers, and fp8 has none; use it with w8a8")


def default_preset(target: Target, has_data: bool) -> str:
    """What "auto" means for a target whose times cannot be measured here."""
    allowed = target.presets or tuple(PRESETS)
    for name in ("w8a8", "fp16") if has_data else ("w8", "fp16"):
        if name in allowed:
            return name
    raise TargetError(f"--target {target.name}: needs calibration data, and there is none; pass --calibration")


def check_shapes(inputs: Sequence[InputSpec], target: Target) -> None:
    """Refuse open dimensions where the target takes none.

    Raises:
        TargetError: names the inputs, and the options that fix them.
    """
    if not target.fixed_shapes:
        return
    open_ = {
        f"{spec.name}:{axis}" if dim is None else str(dim): None
        for spec in inputs
        for axis, dim in enumerate(spec.shape)
        if not isinstance(dim, int)
    }
    if open_:
        fix = " ".join(f"--fix-dim {name}=N" for name in open_)
        raise TargetError(f"--target {target.name}: takes fixed shapes alone; pass {fix}")


def check_float_outputs(recipe: Recipe, model: Model) -> None:
    """Refuse outputs that are to stay float where there are none of these operators.

    Raises:
        RecipeError: names the operators that there are.
    """
    writers = {node.op_type for value in model.graph.outputs if (node := value.producer()) is not None}
    if recipe.float_outputs and not writers.intersection(recipe.float_outputs):
        named, there = ", ".join(recipe.float_outputs), ", ".join(sorted(writers))
        raise RecipeError(f"--float-output: no output of the model is written by {named}; they are by {there}")


def check_operators(model: Model, target: Target) -> None:
    """Refuse nodes that an engine of integers alone has nothing for.

    Raises:
        TargetError: names them.
    """
    if target.coverage != WHOLE:
        return
    found = [node for node in model.graph if node.domain in ("", "ai.onnx") and node.op_type not in target.runs]
    if found:
        named = ", ".join(f"{node.op_type} {node.name!r}" for node in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise TargetError(
            f"--target {target.name}: its engine has nothing for {named}{more}; change the model there, or leave these "
            "nodes to the CPU with --force"
        )


NO_FASTER_4 = (
    "ONNX Runtime has no kernels for 4-bit activations: they and the weights have 16 steps in types of 8 bits, so that "
    "the model is no smaller and no faster than with w8a8; the preset shows what a network keeps on such hardware"
)
"""What is said of w4a4."""

SAID_OF_16 = (
    f"cpu has no kernels for 16-bit activations: every layer is computed in float between Q and DQ, {SLOW_16}; the "
    "preset is for NPUs, see --target qnn"
)
"""What is said of w8a16 and w4a16 on targets without such kernels."""
