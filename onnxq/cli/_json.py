"""Results as strict JSON: numpy values become Python's, and what JSON cannot say becomes null or a string."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any


def dumps(value: object) -> str:
    """Write one JSON document, in ASCII.

    NaN becomes null; infinities (the SQNR of identical outputs) become the strings "Infinity" and "-Infinity", which
    Python's ``float`` and JavaScript's ``Number`` read back.
    """
    return json.dumps(plain(value), indent=2, allow_nan=False)


def plain(value: object) -> Any:
    """Turn numpy scalars and arrays, paths, mappings, sets and tuples into what JSON knows."""
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return _finite(float(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, (set, frozenset)):
        return [plain(entry) for entry in sorted(value, key=str)]
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [plain(entry) for entry in value]
    return str(value)


def _finite(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
