"""What the installed ONNX Runtime has kernels for, where versions differ: the runtime is asked, not its number."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import onnxruntime.capi.onnxruntime_pybind11_state as native

from onnxq.errors import ModelError
from onnxq.graph.emit import asked
from onnxq.graph.prepare.whole.lower_opset import NEWEST
from onnxq.runtime.session import open_session
from onnxq.targets import Target

_LAYOUT = 15
"""Inputs of QMoE since its weights are laid out as the emitter writes them (1.25)."""


def as_installed(target: Target) -> Target:
    """A target as the installed runtime is, where that is what runs its models; others stay as they are."""
    if not target.is_here:
        return target
    return replace(target, expert_levels=expert_levels(), fewest_bits=2 if has_two_bits() else 3)


@cache
def newest_pairs() -> int:
    """The newest operator set whose QuantizeLinear and DequantizeLinear the installed runtime computes.

    ONNX Runtime 1.23 opens models of operator set 23 and has kernels for both up to 22.
    """
    return NEWEST if _opens(asked.pair(23)) else 22


@cache
def has_two_bits() -> bool:
    """Whether MatMulNBits takes weights of 2 bits (since 1.24)."""
    return _opens(asked.packed(2))


@cache
def expert_levels() -> tuple[int, ...]:
    """Accuracy levels of QMoE; empty where it has none that reads weights as they are written here (before 1.25)."""
    known: Any = next((schema for schema in native.get_all_operator_schema() if schema.name == "QMoE"), None)
    if known is None or len(known.inputs) < _LAYOUT:
        return ()
    return (0, 4) if "accuracy_level" in known.attributes else (0,)


def _opens(model: bytes) -> bool:
    try:
        open_session(model, optimize=False)
    except ModelError:
        return False
    return True
