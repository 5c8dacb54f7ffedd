"""Which models are quantized a layer at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from onnxq.core import scratch
from onnxq.core.mapped import Spill
from onnxq.errors import OnnxqError
from onnxq.pipeline.float_model import Prepared
from onnxq.pipeline.transformation import uses_awq
from onnxq.recipe.recipe import Recipe
from onnxq.targets import Target

_SIDE_BY_SIDE = 4
"""Times its own size that a float model takes while it is timed beside its quantized form: the runtime lays out all
weights a second time, and both levels of optimization are compared."""


def is_large(recipe: Recipe, target: Target, prepared: Prepared, *, samples: bool) -> bool:
    """Whether a model is quantized with one layer in memory, for which its recipe must need nothing of the whole.

    Args:
        recipe: names a preset; there are no statistics.
        target: what will run the model.
        prepared: the float model.
        samples: there are some, which then have to go through the model part by part (``sequential``).
    """
    if recipe.sequential != samples or (samples and uses_awq(recipe)):
        return False
    if _SIDE_BY_SIDE * prepared.size <= recipe.max_memory * 2**30 or target.provider or not target.is_here:
        return False
    if prepared.has_qdq or prepared.folded_weights:
        return False
    if recipe.preset == "auto" or recipe.max_drop is not None or recipe.min_sqnr is not None:
        return False
    wholes = (
        recipe.half,
        recipe.kv_cache,
        recipe.fuse,
        recipe.equalize,
        recipe.target_bits,
        recipe.rotate,
        recipe.finetune,
    )
    if any(wholes) or recipe.smooths or recipe.learns:
        return False
    return all(
        preset.activations != "static" and preset.weights != "float" and not preset.needs_data
        for preset in recipe.presets
    )


def leave_unconfirmed(prepared: Prepared) -> None:
    """Do not compare the prepared float model with the user's: either would be run as a whole."""
    prepared.session = None


def spill_beside(destination: Path, stack: ExitStack) -> Spill:
    """A file for weights on the disk that has to have room for them anyway.

    Raises:
        OnnxqError: it cannot be made.
    """
    try:
        folder = stack.enter_context(scratch.folder(destination.resolve().parent))
    except OSError as error:
        raise OnnxqError(
            f"{destination}: cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    spill = Spill(folder)
    stack.callback(spill.close)
    return spill
