"""Tables as samples: Parquet and CSV files, and data frames, a row a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec, check_names
from onnxq.errors import CalibrationError, MissingExtraError

TABLE_SUFFIXES = frozenset({".parquet", ".csv"})

_LABELS = ("labels", "label", "target", "class", "y")
"""Columns that hold the classes of the samples, the likeliest first."""
_MOST = 1 << 16
"""Rows that are used; ranges have settled long before."""


class TableSource:
    """Feeds from the columns of a table.

    Columns are found by the names of the inputs; a model with one input of several features takes all columns with
    numbers, in their order, but for one of labels.

    Attributes:
        notes: what a user should know.
    """

    def __init__(self, columns: Mapping[str, Any], inputs: Sequence[InputSpec], where: str) -> None:
        """Match columns to inputs.

        Args:
            columns: sequences of equal length, by name; an entry is a number, a text, or a sequence of numbers.
            inputs: what the model takes.
            where: subject of messages.

        Raises:
            CalibrationError: they do not match, or there is not one row.
        """
        self._where = where
        self.notes: list[str] = []
        names = list(columns)
        self._length = len(columns[names[0]]) if names else 0
        if self._length == 0:
            raise CalibrationError(f"{where}: holds no rows; add samples")
        if self._length > _MOST:
            self.notes.append(f"{where}: the first {_MOST} of {self._length} rows are used")
            self._length = _MOST
        needed = [spec for spec in inputs if not spec.optional]
        taken = {spec.name for spec in inputs}
        self._label = next((name for name in _LABELS if name in columns and name not in taken), None)
        self._features: list[str] | None = None
        if len(needed) == 1 and needed[0].name not in columns:
            self._features = self._all_features(columns, needed[0])
        else:
            check_names([name for name in names if name in taken], inputs, where)
        self._columns = columns
        self._inputs = [spec for spec in inputs if self._features is not None or spec.name in columns]
        firsts = {spec.shape[0] for spec in self._inputs if spec.shape and isinstance(spec.shape[0], int)}
        self._batch = max(firsts, default=1) if len(firsts) <= 1 else 1
        if self.count == 0:
            raise CalibrationError(
                f"{where}: holds {self._length} rows, but the model takes {self._batch} at a time; add samples"
            )

    def _all_features(self, columns: Mapping[str, Any], spec: InputSpec) -> list[str]:
        features = [name for name in columns if name != self._label and _is_number(columns[name])]
        wanted = spec.shape[-1] if len(spec.shape) == 2 else None
        if spec.dtype.kind not in "fiu" or wanted is None or not features:
            check_names(list(columns), [spec], self._where)
        if isinstance(wanted, int) and wanted != len(features):
            raise CalibrationError(
                f"{self._where}: has {len(features)} columns of numbers, but input '{spec.name}' takes {wanted} "
                f"features; name a column '{spec.name}', or leave just its features"
            )
        return features

    @property
    def count(self) -> int:
        """Feeds."""
        return self._length // self._batch

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """The feeds ``start`` to ``stop`` (None: all), in order.

        Raises:
            CalibrationError: an entry does not fit.
        """
        for index in range(start, self.count if stop is None else min(stop, self.count)):
            rows = slice(index * self._batch, (index + 1) * self._batch)
            if self._features is not None:
                values = np.stack([_array(self._columns[name][rows]) for name in self._features], axis=-1)
                yield {self._inputs[0].name: self._as_input(values, self._inputs[0])}
            else:
                yield {spec.name: self._as_input(_array(self._columns[spec.name][rows]), spec) for spec in self._inputs}

    def labels(self, start: int, stop: int | None) -> Array | None:
        """The column of labels in those feeds; None where there is none, or it holds no whole numbers."""
        if self._label is None:
            return None
        end = self.count if stop is None else min(stop, self.count)
        found = _array(self._columns[self._label][start * self._batch : end * self._batch])
        return found.astype(np.int64) if found.dtype.kind in "iub" else None

    def _as_input(self, values: Array, spec: InputSpec) -> Array:
        if spec.dtype.kind == "U":
            values = values.astype(np.str_)
        elif values.dtype.kind in "OUS" or (values.dtype.kind == "f" and spec.dtype.kind in "iu" and _split(values)):
            raise CalibrationError(
                f"{self._where}: column '{spec.name}' holds {_kind(values)}, but the model takes {spec.dtype}; "
                "convert it"
            )
        else:
            values = values.astype(spec.dtype)
        rank = len(spec.shape)
        if values.ndim == 1 and rank == 2:
            values = values[..., None]  # one column an input, as skl2onnx writes models
        return values


def _split(values: Array) -> bool:
    return not bool(np.array_equal(values, np.rint(values)))


def _kind(values: Array) -> str:
    if values.dtype.kind == "O" and values.size and all(isinstance(entry, str | bytes) for entry in values.flat):
        return "text"
    return {"O": "entries of different lengths, or none", "U": "text", "S": "text"}.get(values.dtype.kind, "fractions")


def _array(column: Any) -> Array:
    """A part of a column as an array; entries that are sequences are stacked where they are of one length."""
    values = column if isinstance(column, np.ndarray) else np.asarray(column)
    if values.dtype == object and len(values) and not isinstance(values[0], str):
        try:
            return np.stack([entry if isinstance(entry, str) else _array(entry) for entry in values])
        except ValueError:
            return values
    return values


def _is_number(column: Any) -> bool:
    return _array(column[:1]).dtype.kind in "iufb" and _array(column[:1]).ndim == 1


def table_file(path: Path, inputs: Sequence[InputSpec]) -> TableSource:
    """A Parquet or CSV file as samples.

    Raises:
        CalibrationError: it cannot be read, or does not fit the model.
    """
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError:
        raise MissingExtraError(
            f'{path}: tables are read by pyarrow, which is not installed; pip install "onnxq[tables]", or save arrays '
            "with np.savez"
        ) from None
    try:
        table = parquet.read_table(path) if path.suffix.lower() == ".parquet" else csv.read_csv(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise CalibrationError(
            f"{path}: no table that can be read: {str(error).splitlines()[0]}; save it again"
        ) from error
    return TableSource({name: _ArrowColumn(table.column(name)) for name in table.column_names}, inputs, str(path))


class _ArrowColumn:
    """A column of Arrow that is made numpy part by part."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, rows: slice) -> Array:
        found: Array = self._column[rows].to_numpy(zero_copy_only=False)
        return found


def is_frame(given: object) -> bool:
    """Whether it is a data frame of pandas, polars or another library: columns by name, that can be sliced."""
    exchanged = hasattr(given, "__dataframe__") or hasattr(given, "__arrow_c_stream__")  # polars 2 has the second alone
    return exchanged and hasattr(given, "columns") and hasattr(given, "__getitem__")


def frame_columns(frame: Any) -> dict[str, Array]:
    """The columns of a data frame as arrays."""
    names = getattr(frame, "column_names", None) or frame.columns  # of a table of pyarrow, columns are the arrays
    return {str(name): np.asarray(frame[name].to_numpy()) for name in names}
