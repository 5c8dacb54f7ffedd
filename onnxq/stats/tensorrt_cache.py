"""TensorRT's calibration cache: a line of text a tensor, its scale as the eight hexadecimal digits of a float32.

The scale is the largest magnitude ÷ 127, of symmetric int8. The first line names the version and the calibrator.

References:
    NVIDIA TensorRT developer guide, "Post-Training Quantization Using Calibration"; the bytes are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxq.core.dtypes import QType
from onnxq.core.spec import TensorSpec
from onnxq.errors import CalibrationError
from onnxq.stats.ranges import compute_range
from onnxq.stats.value_statistic import ValueStatistic

_HEAD = "TRT-8601-EntropyCalibration2"
_STEPS = 127.0


def is_cache(path: Path) -> bool:
    """Whether a file begins as such a cache does."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(4) == b"TRT-"
    except OSError:
        return False


def cache_of(values: Mapping[str, ValueStatistic]) -> str:
    """The cache of statistics, with ranges by the method "entropy"; values without a finite number are left out."""
    spec = TensorSpec(QType.INT8, symmetric=True)
    lines = [_HEAD]
    for name, statistic in values.items():
        if statistic.low is None or "\n" in name:
            continue
        low, high = compute_range(statistic, spec, "entropy", percentile=100.0)
        scale = np.float32(max(abs(low), abs(high)) / _STEPS)
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    return "\n".join(lines) + "\n"


def statistics_of(path: Path) -> dict[str, ValueStatistic]:
    """Statistics of the ranges in a cache: of each value that they reach from one end to the other, and nothing else.

    Raises:
        CalibrationError: a line is none of a cache.
    """
    found = {}
    try:
        lines = path.read_text("utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: calibration cache cannot be read: {error}") from None
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        name, _, digits = line.rpartition(": ")
        try:
            scale = struct.unpack(">f", bytes.fromhex(digits.strip()))[0]
        except (ValueError, struct.error):
            scale = float("nan")
        if not name or not 0.0 <= scale < float("inf"):
            raise CalibrationError(f"{path}: line {number} is not 'tensor: 8 hexadecimal digits'; calibrate anew")
        statistic = ValueStatistic()
        reach = np.float32(scale * _STEPS)
        statistic.update(np.array([-reach, reach], np.float32))
        statistic.shape = None
        found[name] = statistic
    if not found:
        raise CalibrationError(f"{path}: the calibration cache names no tensor; calibrate anew")
    return found
