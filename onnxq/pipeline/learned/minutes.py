"""How the time of a recipe is shared by what learns one after the other."""

from __future__ import annotations

from onnxq.recipe.presets import Preset
from onnxq.recipe.recipe import Recipe

FEW_BITS = 4
"""Bits of weights up to which integers have room to learn end to end, and need large steps."""

_BLOCKS_SHARE = {True: 0.25, False: 0.6}
"""Share that blocks take where everything learns end to end after them, by whether bits are few: then the second goes
slower but further. At 8 bits it is the blocks that win most."""


def integer_presets(recipe: Recipe) -> list[Preset]:
    """The presets of a recipe and its rules whose weights are integers, not packed and no float8."""
    return [preset for preset in recipe.presets if preset.weights == "integer" and not preset.float8]


def has_few_bits(recipe: Recipe) -> bool:
    """Whether weights on integers have few bits, in the preset or in a rule."""
    integers = integer_presets(recipe)
    bits = [*(recipe.bits or preset.bits for preset in integers), *(rule.bits for rule in recipe.rules if rule.bits)]
    return min(bits, default=FEW_BITS) <= FEW_BITS


def block_minutes(recipe: Recipe) -> float:
    """What blocks may take."""
    return recipe.minutes * (_BLOCKS_SHARE[has_few_bits(recipe)] if recipe.finetune else 1.0)


def finetune_minutes(recipe: Recipe, blocks: float | None = None) -> float:
    """What learning end to end may take: all that blocks have left.

    Args:
        recipe: says how much there is.
        blocks: seconds that they took; None where that is not known.
    """
    share = block_minutes(recipe) if recipe.reconstructs else 0.0
    return recipe.minutes - (share if blocks is None else min(share, blocks / 60.0))
