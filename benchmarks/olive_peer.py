"""Olive as a peer: its passes over ONNX graphs that pack weights to 4 bits.

It runs in an environment of its own (``pip install torch==2.13.0 olive-ai onnxruntime requests``), whose interpreter
the environment variable OLIVE_PYTHON names.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "4 bits rtn, Olive": ("rtn", "OnnxBlockWiseRtnQuantization", {"bits": 4, "is_symmetric": True}),
    "4 bits hqq, Olive": ("hqq", "OnnxHqqQuantization", {}),
    "4 bits k_quant, Olive": ("kquant", "OnnxKQuantQuantization", {"bits": 4}),
}
"""Module, class and options of each pass, by the names of the tables."""

COMMON = {"block_size": 32, "accuracy_level": 4}
VARIABLE = "OLIVE_PYTHON"


def interpreter() -> str | None:
    """The interpreter that has Olive; None where none is named."""
    return os.environ.get(VARIABLE)


def quantize_with_olive(config: str, model: Path, output: Path) -> dict[str, float]:
    """Quantize the MatMul weights of a model.

    Args:
        config: a key of `CONFIGS`.
        model: the float model.
        output: what is written.

    Returns:
        ``seconds`` of wall time and of ``processor_seconds``, imports not counted.
    """
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    module, name, options = CONFIGS[config]
    passes: Any = importlib.import_module("olive.passes.olive_pass")
    models: Any = importlib.import_module("olive.model")
    kind = getattr(importlib.import_module(f"olive.passes.onnx.{module}_quantization"), name)
    asked = passes.create_pass_from_dict(kind, {**COMMON, **options}, disable_search=True)
    with tempfile.TemporaryDirectory() as folder:
        start, busy = time.perf_counter(), time.process_time()
        made = asked.run(models.ONNXModelHandler(str(model)), folder)
        found = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - busy}
        onnx: Any = importlib.import_module("onnx")
        onnx.save(onnx.load(made.model_path), output)
    return found
