"""How the time of a recipe is shared by what learns one after the other."""

from __future__ import annotations

from onnxq.recipe.recipe import Recipe

_BLOCKS_SHARE = 0.25
"""Share that blocks take where everything learns end to end after them, which goes slower but further."""


def block_minutes(recipe: Recipe) -> float:
    """What blocks may take."""
    return recipe.minutes * (_BLOCKS_SHARE if recipe.finetune else 1.0)


def finetune_minutes(recipe: Recipe) -> float:
    """What learning end to end may take."""
    return recipe.minutes - (block_minutes(recipe) if recipe.reconstructs else 0.0)
