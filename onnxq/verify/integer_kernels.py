"""Does the runtime run on integers what the model says: the check against a silent no-op."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.reading.optimized import unfolded_layers
from onnxq.runtime.session import open_session

MOST_BYTES = 512 * 2**20
"""Larger models are not written out once more for this check."""


def worth_a_look(model: bytes | Path) -> bool:
    """Whether the model is small enough to be written out once more."""
    return io.size_of(model) <= MOST_BYTES


def float_layers(model: bytes | Path) -> list[str]:
    """Names of the layers with integer weights that the runtime computes in float, weights unfolded at each inference.

    Args:
        model: contents of a quantized model, or its path; one above `MOST_BYTES` is not looked at.
    """
    if not worth_a_look(model):
        return []
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        path = Path(folder) / "optimized.onnx"
        try:
            open_session(model, threads=1, save_to=path)
            return unfolded_layers(path)
        except (ModelError, OSError):  # no room for the file; whether the model loads is checked elsewhere
            return []
