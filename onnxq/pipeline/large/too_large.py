"""Which models are quantized a layer at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from onnxq.core import scratch
from onnxq.core.mapped import Spill
from onnxq.core.processors import free_memory
from onnxq.errors import OnnxqError
from onnxq.pipeline.float_model import Prepared
from onnxq.pipeline.planning import settle_preset
from onnxq.pipeline.transformation import uses_awq
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.rounding import ALGORITHMS_WITH_DATA
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


def for_memory(recipe: Recipe, target: Target, prepared: Prepared) -> tuple[Recipe, bool]:
    """What becomes of a recipe, and of samples, where the float model has no room in memory beside its quantized form.

    What was decided, or could be, is said in the notes of the model.

    Args:
        recipe: of a run that has samples and no statistics.
        target: what will run the model.
        prepared: the float model.

    Returns:
        The recipe, in the order of the graph where samples round its weights; and whether samples are of use.
    """
    needed, free = _SIDE_BY_SIDE * prepared.size, free_memory()
    if recipe.sequential or needed <= recipe.max_memory * 2**30 or recipe.preset == "auto":
        return recipe, True
    tight = free is not None and needed > free
    room = "" if free is None else f"{free / 1e9:.0f} GB are free"
    size = f"the float model beside its quantized form takes about {needed / 1e9:.0f} GB of memory"
    rounds = settle_preset(recipe, has_data=True).algorithm in ALGORITHMS_WITH_DATA
    in_order = recipe.override(sequential=True)
    if rounds and is_large(in_order, target, prepared, samples=True):
        if tight:
            prepared.notes.append(f"{size}, and {room}: layers are taken in order (--sequential)")
            return in_order, True
        prepared.notes.append(f"{size}; --sequential needs no more than --max-memory and a few layers")
    elif not rounds and tight and is_large(recipe, target, prepared, samples=False):
        prepared.notes.append(f"{size}, and {room}: the samples were not run")
        return recipe, False
    elif tight:
        prepared.notes.append(f"{size}, and {room}")
    return recipe, True


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
