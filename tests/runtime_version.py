"""What older runtimes get wrong is no fault of ours: tests that meet it name the version from which it holds."""

from __future__ import annotations

import onnxruntime
import pytest

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def needs_runtime(version: str, why: str) -> pytest.MarkDecorator:
    """Leave a test out with runtimes before a version."""
    least = tuple(int(part) for part in version.split("."))
    return pytest.mark.skipif(least > VERSION, reason=f"onnxruntime before {version} {why}")
