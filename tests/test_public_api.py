"""What `import onnxq` offers, pinned."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import onnxq
import onnxq.errors

PUBLIC = [
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


def test_all_is_pinned() -> None:
    assert onnxq.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(onnxq, name)
    assert not isinstance(value, ModuleType)
    assert name == "__version__" or inspect.getdoc(value), f"{name} has no docstring"


def test_dir_lists_the_public_names() -> None:
    assert set(PUBLIC) <= set(dir(onnxq))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'onnxq' has no attribute 'quantise'"):
        onnxq.quantise  # noqa: B018


def test_importing_a_room_hides_no_function() -> None:
    package = importlib.import_module("onnxq.targets")
    assert isinstance(package, ModuleType)
    assert callable(onnxq.targets)


def test_every_error_is_public_and_has_an_exit_code() -> None:
    errors = {
        name: value
        for name, value in vars(onnxq.errors).items()
        if isinstance(value, type) and issubclass(value, onnxq.errors.OnnxqError)
    }
    assert set(errors) <= set(PUBLIC)
    assert {error.exit_code for error in errors.values()} == {1, 2, 3}


def test_an_error_is_one_line() -> None:
    assert str(onnxq.ModelError("two\nlines  and spaces")) == "two lines and spaces"


def test_the_installed_version_is_the_packages() -> None:
    try:
        installed = importlib.metadata.version("onnxq")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnxq runs from the source tree and is not installed")
    assert installed == onnxq.__version__


def test_qat_is_there_once_the_package_is() -> None:
    code = "import onnxq; print(callable(onnxq.qat.prepare), callable(onnxq.qat.export))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
