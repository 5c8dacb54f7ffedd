from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec
from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError, MissingExtraError

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
FEATURES = [InputSpec("float_input", FLOAT, (None, 3))]

tables = pytest.mark.tables


class Frame:
    """What pandas and polars have in common."""

    def __init__(self, **columns: Any) -> None:
        self._columns = {name: np.asarray(values) for name, values in columns.items()}
        self.columns = list(columns)

    def __dataframe__(self) -> None:
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        class Column:
            values = self._columns[name]

            def to_numpy(self) -> Any:
                return self.values

        return Column()


def test_one_input_takes_all_columns_of_numbers_but_the_labels() -> None:
    frame = Frame(a=[1, 2], b=[0.5, 1.5], name=["x", "y"], target=[1, 0], c=[7.0, 8.0])
    reader = open_reader(frame, FEATURES)
    assert [feed["float_input"].tolist() for feed in reader] == [[[1, 0.5, 7]], [[2, 1.5, 8]]]
    assert reader.labels.tolist() == [1, 0]  # type: ignore[union-attr]


class ArrowFrame:
    """A frame as polars 2 has it: lists of lists are arrays of objects in arrays of objects."""

    columns = ("x", "label")

    def __arrow_c_stream__(self, requested_schema: object = None) -> None:
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        rows = np.empty(2, object)
        for index in range(2):
            rows[index] = np.empty(3, object)
            rows[index][:] = [np.full(4, index + 0.5) for _ in range(3)]
        values = rows if name == "x" else np.array([1, 0])

        class Column:
            def to_numpy(self) -> Any:
                return values

        return Column()


def test_frames_that_are_known_by_arrow_and_lists_of_lists() -> None:
    feeds = list(open_reader(ArrowFrame(), [InputSpec("x", FLOAT, (None, 3, 4))]))
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 4)] * 2
    assert feeds[1]["x"].dtype == FLOAT and (feeds[1]["x"] == 1.5).all()


@tables
def test_a_table_of_arrow_is_a_frame() -> None:
    import pyarrow

    table = pyarrow.table({"a": [1, 2], "b": [0.5, 1.5], "c": [7.0, 8.0], "label": [0, 1]})
    reader = open_reader(table, FEATURES)
    assert [feed["float_input"].tolist() for feed in reader] == [[[1, 0.5, 7]], [[2, 1.5, 8]]]
    assert reader.labels.tolist() == [0, 1]  # type: ignore[union-attr]


def test_an_input_a_column_is_how_skl2onnx_writes_models() -> None:
    inputs = [InputSpec("age", INT, (None, 1)), InputSpec("job", np.dtype(np.str_), (None, 1))]
    feeds = list(open_reader(Frame(job=["a", "b"], age=[3.0, 4.0]), inputs))
    assert [(feed["age"].tolist(), feed["job"].tolist()) for feed in feeds] == [([[3]], [["a"]]), ([[4]], [["b"]])]


@tables
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_are_read_by_column(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    from pyarrow import csv, parquet

    table = pyarrow.table({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [7.0, 8.0, 9.0], "label": [0, 1, 1]})
    path = tmp_path / f"rows.{suffix}"
    (parquet.write_table if suffix == "parquet" else csv.write_csv)(table, path)
    reader = open_reader(str(path), FEATURES)
    assert np.concatenate([feed["float_input"] for feed in reader]).tolist() == [[1, 0.5, 7], [2, 1.5, 8], [3, 2.5, 9]]
    assert reader.labels.tolist() == [0, 1, 1]  # type: ignore[union-attr]


@tables
def test_columns_of_lists_are_sequences(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "text.parquet"
    parquet.write_table(pyarrow.table({"ids": [[1, 2, 3], [4, 5]]}), path)
    feeds = list(open_reader(path, [InputSpec("ids", INT, ("N", "L"))]))
    assert [feed["ids"].tolist() for feed in feeds] == [[[1, 2, 3]], [[4, 5]]]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame(a=[1.0], b=[2.0]), "has 2 columns of numbers, but input 'float_input' takes 3 features"),
        (Frame(a=[]), "holds no rows"),
        (Frame(job=["x"]), "the model has no input 'job'"),
    ],
)
def test_what_does_not_fit_is_said(frame: Frame, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        list(open_reader(frame, FEATURES))


def test_entries_of_another_type_are_said() -> None:
    with pytest.raises(CalibrationError, match="column 'ids' holds fractions, but the model takes int64"):
        list(open_reader(Frame(ids=[0.5]), [InputSpec("ids", INT, (None, 1))]))
    with pytest.raises(CalibrationError, match="column 'ids' holds text, but the model takes int64"):
        list(open_reader(Frame(ids=np.array(["seven"], object)), [InputSpec("ids", INT, (None, 1))]))


@tables
def test_no_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(CalibrationError, match=r"x.parquet: no table that can be read"):
        open_reader(tmp_path / "x.parquet", FEATURES)


@tables
def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("a,b,c\n1,2,3\n")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r'pip install "onnxq\[tables\]"'):
        open_reader(tmp_path / "x.csv", FEATURES)


def test_rows_of_a_data_set_get_type_and_batch_axis() -> None:
    rows = [{"ids": [1, 2, 3], "scale": 0.5, "text": "left alone"}, {"ids": [4, 5], "scale": 1.0}]
    inputs = [InputSpec("ids", INT, ("N", "L")), InputSpec("scale", FLOAT, ("N",))]
    feeds = list(open_reader(rows, inputs))
    assert [(feed["ids"].tolist(), feed["scale"].tolist()) for feed in feeds] == [([[1, 2, 3]], [0.5]), ([[4, 5]], [1])]


class DataSet(list[dict[str, Any]]):
    """As the data sets of Hugging Face: rows of lists, or of arrays where a format was asked for."""

    @property
    def format(self) -> dict[str, Any]:
        return {"type": "numpy"}

    def __getitem__(self, index: Any) -> Any:
        return {name: np.asarray(value) for name, value in super().__getitem__(index).items()}

    def with_format(self, kind: str | None) -> list[dict[str, Any]]:
        assert kind is None
        return list(self)


def test_rows_of_arrays_of_a_data_set_get_a_batch_axis() -> None:
    rows = DataSet([{"ids": [1, 2, 3], "scale": 0.5}, {"ids": [4, 5], "scale": 1.0}])
    inputs = [InputSpec("ids", INT, ("N", "L")), InputSpec("scale", FLOAT, ("N",))]
    feeds = list(open_reader(rows, inputs))
    assert [(feed["ids"].tolist(), feed["scale"].tolist()) for feed in feeds] == [([[1, 2, 3]], [0.5]), ([[4, 5]], [1])]


def test_an_array_holds_samples_of_the_only_input() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert [feed["float_input"].tolist() for feed in open_reader(array, FEATURES)] == [[[0, 1, 2]], [[3, 4, 5]]]
    with pytest.raises(CalibrationError, match="is a ndarray; pass an iterable of dicts"):
        open_reader(array, [*FEATURES, InputSpec("other", FLOAT, (1,))])
