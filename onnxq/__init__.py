"""Quantize ONNX models for ONNX Runtime.

This is the public API and nothing else. Every name is imported on first use, so that ``import onnxq`` costs nothing:
the libraries that know graphs and run models come in only with the function that needs them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxq._version import __version__

if TYPE_CHECKING:
    from onnxq.api import (
        benchmark,
        calibrate,
        compare,
        convert_config,
        dequantize,
        diagnose,
        diff,
        inspect,
        presets,
        quantize,
        report,
        targets,
    )
    from onnxq.data.images import Images
    from onnxq.diagnosis.examine import DiagnoseResult
    from onnxq.errors import (
        CalibrationError,
        EngineError,
        MissingExtraError,
        ModelError,
        OnnxqError,
        RecipeError,
        TargetError,
        VerificationError,
    )
    from onnxq.folders.quantizing_folder import quantize_folder
    from onnxq.recipe.recipe import Recipe, Rule
    from onnxq.recipe.value_rules import ValueRule
    from onnxq.report.folder_results import FolderResult
    from onnxq.report.results import (
        BenchmarkResult,
        CalibrateResult,
        DequantizeResult,
        Difference,
        Inspection,
        QuantizeResult,
    )
    from onnxq.request.run_options import QuantizeOptions
    from onnxq.runtime.engines.places import RunsOn
    from onnxq.stats.statistics import Statistics
    from onnxq.verify.compare import Comparison
    from onnxq.verify.lint.findings import LintResult

__all__ = [
    "BenchmarkResult",
    "CalibrateResult",
    "CalibrationError",
    "Comparison",
    "DequantizeResult",
    "DiagnoseResult",
    "Difference",
    "EngineError",
    "FolderResult",
    "Images",
    "Inspection",
    "LintResult",
    "MissingExtraError",
    "ModelError",
    "OnnxqError",
    "QuantizeOptions",
    "QuantizeResult",
    "Recipe",
    "RecipeError",
    "Rule",
    "RunsOn",
    "Statistics",
    "TargetError",
    "ValueRule",
    "VerificationError",
    "__version__",
    "benchmark",
    "calibrate",
    "compare",
    "convert_config",
    "dequantize",
    "diagnose",
    "diff",
    "inspect",
    "lint",
    "presets",
    "quantize",
    "quantize_folder",
    "report",
    "targets",
]

_HOMES = {
    "BenchmarkResult": "onnxq.report.results",
    "CalibrateResult": "onnxq.report.results",
    "CalibrationError": "onnxq.errors",
    "Comparison": "onnxq.verify.compare",
    "DequantizeResult": "onnxq.report.results",
    "DiagnoseResult": "onnxq.diagnosis.examine",
    "Difference": "onnxq.report.results",
    "FolderResult": "onnxq.report.folder_results",
    "Images": "onnxq.data.images",
    "Inspection": "onnxq.report.results",
    "LintResult": "onnxq.verify.lint.findings",
    "EngineError": "onnxq.errors",
    "MissingExtraError": "onnxq.errors",
    "ModelError": "onnxq.errors",
    "OnnxqError": "onnxq.errors",
    "QuantizeOptions": "onnxq.request.run_options",
    "QuantizeResult": "onnxq.report.results",
    "Recipe": "onnxq.recipe.recipe",
    "RecipeError": "onnxq.errors",
    "Rule": "onnxq.recipe.recipe",
    "RunsOn": "onnxq.runtime.engines.places",
    "Statistics": "onnxq.stats.statistics",
    "TargetError": "onnxq.errors",
    "ValueRule": "onnxq.recipe.value_rules",
    "VerificationError": "onnxq.errors",
    "benchmark": "onnxq.api",
    "calibrate": "onnxq.api",
    "compare": "onnxq.api",
    "convert_config": "onnxq.api",
    "dequantize": "onnxq.api",
    "diagnose": "onnxq.api",
    "diff": "onnxq.api",
    "inspect": "onnxq.api",
    "lint": "onnxq.api",
    "presets": "onnxq.api",
    "quantize": "onnxq.api",
    "quantize_folder": "onnxq.folders.quantizing_folder",
    "report": "onnxq.api",
    "targets": "onnxq.api",
}


class _Package(ModuleType):
    """The package as a module whose public names importing a package cannot hide.

    Python binds an imported submodule to its parent, so importing the package ``onnxq.targets`` would replace the
    function ``onnxq.targets``. Packages are imported as ``from onnxq.targets.x import y``, which needs no such binding.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "qat":  # `onnxq.qat.prepare`; the room is imported when it is asked for
        return importlib.import_module("onnxq.qat")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
