"""AMD Quark as a peer: its AdaRound and AdaQuant with their defaults, uint8 activations and int8 weights.

It runs in an environment of its own (``pip install torch==2.13.0 amd-quark onnx onnxruntime``), whose interpreter the
environment variable QUARK_PYTHON names; it compiles operators on first use, which is not counted.
"""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.feeds import Feed, read_feeds

CONFIGS = {"adaround": "U8S8_AAWS_ADAROUND", "adaquant": "U8S8_AAWS_ADAQUANT"}
"""Its own names of them, by those of the tables."""

VARIABLE = "QUARK_PYTHON"


def interpreter() -> str | None:
    """The interpreter that has Quark; None where none is named."""
    return os.environ.get(VARIABLE)


class _Reader:
    """Samples as onnxruntime's calibration takes them."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds, self._next = feeds, 0

    def __len__(self) -> int:
        return len(self._feeds)

    def get_next(self) -> Feed | None:
        """The next sample."""
        self._next += 1
        return self._feeds[self._next - 1] if self._next <= len(self._feeds) else None

    def reset_iter(self) -> None:
        """Begin again."""
        self._next = 0


def quantize_with_quark(config: str, model: Path, feeds: Path, output: Path) -> dict[str, Any]:
    """Quantize one model.

    Args:
        config: a key of `CONFIGS`.
        model: the float model.
        feeds: a folder of samples.
        output: what is written.

    Returns:
        Seconds on the clock and of all processors.
    """
    quark: Any = importlib.import_module("quark.onnx")
    configs: Any = importlib.import_module("quark.onnx.quantization.config.custom_config")
    whole: Any = importlib.import_module("quark.onnx.quantization.config.config")
    asked = whole.Config(global_quant_config=configs.get_default_config(CONFIGS[config]))
    reader = _Reader(list(read_feeds(feeds)))
    start, busy = time.perf_counter(), time.process_time()
    quark.ModelQuantizer(asked).quantize_model(str(model), str(output), reader)
    return {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - busy}
