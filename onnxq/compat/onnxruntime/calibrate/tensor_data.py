"""Ranges as onnxruntime hands them on: `TensorData` of one value, `TensorsData` of all, and their JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.compat.onnxruntime.quant_types import CalibrationMethod
from onnxq.core import atomic

_ALLOWED = ("avg", "std", "lowest", "highest", "hist", "hist_edges", "bins")
_FLOATS = ("avg", "std", "lowest", "highest", "hist_edges")


class TensorData:
    """What calibration found of one value, as attributes.

    Attributes:
        lowest: low end of the range, float16 or float32; ``highest`` the high one.
        avg: mean, and ``std`` standard deviation, where the method is Distribution.
        hist: counts; ``hist_edges`` or ``bins`` their edges.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Keep what is given.

        Raises:
            ValueError: an attribute has another name, or a number has no type or another one.
        """
        self._attrs = list(kwargs)
        for key, value in kwargs.items():
            if key not in _ALLOWED:
                raise ValueError(f"Unexpected value {key!r} not in {', '.join(_ALLOWED)}.")
            if key in _FLOATS:
                if not hasattr(value, "dtype"):
                    raise ValueError(f"Unexpected type {type(value)} for k={key!r}; pass a float32 array")
                if value.dtype not in (np.float16, np.float32):
                    raise ValueError(f"Unexpected dtype {value.dtype} for k={key!r}; pass float32 or float16")
            setattr(self, key, value)

    @property
    def range_value(self) -> tuple[Any, Any]:
        """(lowest, highest).

        Raises:
            AttributeError: one is missing.
        """
        return self._pair("lowest", "highest")

    @property
    def avg_std(self) -> tuple[Any, Any]:
        """(avg, std).

        Raises:
            AttributeError: one is missing.
        """
        return self._pair("avg", "std")

    def _pair(self, first: str, second: str) -> tuple[Any, Any]:
        if first not in self._attrs or second not in self._attrs:
            raise AttributeError(f"Attributes {first!r} and/or {second!r} missing in {self._attrs}.")
        return getattr(self, first), getattr(self, second)

    def to_dict(self) -> dict[str, Any]:
        """The attributes, for JSON."""
        return {**{key: getattr(self, key) for key in self._attrs}, "CLS": "TensorData"}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> TensorData:
        """What `to_dict` gave, before or after JSON."""
        return cls(**{key: _restored(key, value) for key, value in d.items() if key != "CLS"})


class TensorsData:
    """What calibration found, by name of the value."""

    def __init__(self, calibration_method: Any, data: Mapping[str, Any]) -> None:
        """Keep ranges.

        Args:
            calibration_method: what found them.
            data: by name a `TensorData`, (lowest, highest) of MinMax, or (lowest, highest, hist, bins).

        Raises:
            TypeError: a key is no text, or a value none of these.
        """
        self.calibration_method = calibration_method
        self.data: dict[str, TensorData] = {}
        for key, value in data.items():
            if not isinstance(key, str):
                raise TypeError(f"Keys must be strings not {type(key)}.")
            self.data[key] = _one(key, value, calibration_method)

    def __iter__(self) -> Iterator[str]:
        yield from self.data

    def __len__(self) -> int:
        return len(self.data)

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def __getitem__(self, key: str) -> TensorData:
        return self.data[key]

    def __setitem__(self, key: str, value: TensorData) -> None:
        if key not in self.data:
            raise RuntimeError(f"Only an existing tensor can be modified, {key!r} is not.")
        self.data[key] = value

    def keys(self) -> KeysView[str]:
        """Names."""
        return self.data.keys()

    def values(self) -> ValuesView[TensorData]:
        """What was found, in the order of the names."""
        return self.data.values()

    def items(self) -> ItemsView[str, TensorData]:
        """Both."""
        return self.data.items()

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"CLS": "TensorsData", "data": self.data, "calibration_method": self.calibration_method}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> TensorsData:
        """What `to_dict` gave, before or after JSON."""
        method = d["calibration_method"]
        if isinstance(method, Mapping):
            method = CalibrationMethod[str(method["value"]).rsplit(".", 1)[-1]]
        data = {
            key: value if isinstance(value, TensorData) else TensorData.from_dict(value)
            for key, value in d["data"].items()
        }
        return cls(method, data)


def _one(key: str, value: Any, method: Any) -> TensorData:
    if isinstance(value, tuple):
        if len(value) == 2 and getattr(method, "name", None) == CalibrationMethod.MinMax.name:
            return TensorData(lowest=value[0], highest=value[1])
        if len(value) == 4:
            return TensorData(lowest=value[0], highest=value[1], hist=value[2], bins=value[3])
        raise TypeError(f"Unexpected tuple for {key!r}, it has {len(value)} elements: {value}.")
    if getattr(type(value), "__name__", "") != "TensorData":  # onnxruntime's own will do
        raise TypeError(f"Values must be TensorData not {type(value)}.")
    return value  # type: ignore[no-any-return]


def _restored(key: str, value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("CLS") == "numpy.array":
        return np.array(value["data"], dtype=np.dtype(value["dtype"]))
    if key in _FLOATS and isinstance(value, int | float):
        return np.array(value, np.float32)
    return value


def _plain(value: Any) -> Any:
    """What JSON has no word for, as onnxruntime writes it."""
    if isinstance(value, TensorData | TensorsData):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return {"data": value.tolist(), "dtype": str(value.dtype), "CLS": "numpy.array"}
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "name"):
        return {"CLS": "CalibrationMethod", "value": f"CalibrationMethod.{value.name}"}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def save_tensors_data(tensors_data: TensorsData, path: str | os.PathLike[str], *, smooth_quant: bool = False) -> None:
    """Write ranges as onnxruntime's calibration cache, all or nothing."""
    text = json.dumps({**tensors_data.to_dict(), "smooth_quant": smooth_quant}, default=_plain)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, text.encode())


def load_tensors_data(path: str | os.PathLike[str]) -> TensorsData:
    """Read a calibration cache, of onnxruntime or of `save_tensors_data`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no file, or no such cache.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"Calibration cache not found: {place}")
    if not place.is_file():
        raise ValueError(f"Calibration cache path is not a file: {place}")
    try:
        return TensorsData.from_dict(json.loads(place.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{place}: is no calibration cache ({error}); write one with save_tensors_data") from None
