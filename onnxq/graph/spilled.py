"""Models whose new weights go to a file until they are written: the model says which."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.core.mapped import Spill

_KEY = "onnxq.spill"


def spill_to(model: ir.Model, spill: Spill | None) -> None:
    """Let large weights that are made for a model be put there; None keeps them in memory."""
    if spill is not None:
        model.meta[_KEY] = spill


def spill_of(model: ir.Model) -> Spill | None:
    """Where large weights of a model go; None where they stay in memory."""
    found = model.meta.get(_KEY)
    return found if isinstance(found, Spill) else None
