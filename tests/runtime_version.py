"""What older runtimes get wrong is no fault of ours: tests that meet it name the version from which it holds."""

from __future__ import annotations

import onnxruntime
import pytest

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def before(version: str) -> bool:
    """Whether the runtime is older than that."""
    return tuple(int(part) for part in version.split(".")[:2]) > VERSION


def needs_runtime(version: str, why: str) -> pytest.MarkDecorator:
    """Leave a test out with runtimes before a version."""
    return pytest.mark.skipif(before(version), reason=f"onnxruntime before {version} {why}")


CACHES = needs_runtime("1.27", "has no GroupQueryAttention with caches of integers, or without caches")
EXPERTS = needs_runtime("1.31", "has another layout of QMoE, or no accuracy levels in it")
TWO_BITS = needs_runtime("1.24", "has no MatMulNBits of 2 bits")
