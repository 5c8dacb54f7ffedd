from __future__ import annotations

import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data.feeds import InputSpec
from onnxq.data.npz import NpzSource
from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError

X = InputSpec("x", np.dtype(np.float32), ("N", 2, 3))
DATA = np.arange(5 * 6, dtype=np.float32).reshape(5, 2, 3)


def written(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@given(
    samples=st.integers(1, 9),
    batch=st.integers(1, 4),
    compressed=st.booleans(),
    order=st.sampled_from("CF"),
    byteorder=st.sampled_from("<>"),
    data=st.data(),
)
def test_every_window_is_the_slice_of_the_array(tmp_path_factory, samples, batch, compressed, order, byteorder, data):
    array = np.asarray(np.arange(samples * 6).reshape(samples, 2, 3), dtype=f"{byteorder}f4", order=order)
    path = written(tmp_path_factory.mktemp("npz") / "x.npz", compressed, x=array)
    if samples < batch:
        with pytest.raises(CalibrationError, match=f"holds {samples} samples, but the model takes {batch} at a time"):
            NpzSource(path, [X], batch)
        return
    reader = open_reader(path, [X], batch_size=batch)
    assert reader.count == samples // batch
    start = data.draw(st.integers(0, reader.count - 1))
    stop = data.draw(st.integers(start + 1, reader.count))
    feeds = list(reader.part(start, stop))
    assert len(feeds) == stop - start
    for index, feed in enumerate(feeds, start):
        assert feed["x"].dtype == np.float32
        np.testing.assert_array_equal(feed["x"], array[index * batch : (index + 1) * batch])


def test_it_can_be_read_again_and_two_passes_at_once_do_not_disturb_each_other(tmp_path):
    reader = open_reader(str(written(tmp_path / "x.npz", x=DATA)), [X])
    first, second = iter(reader), iter(reader)
    next(first)
    next(second)
    np.testing.assert_array_equal(next(first)["x"], next(second)["x"])
    assert len(list(reader)) == len(list(reader)) == 5


def test_scalars_are_one_a_sample(tmp_path):
    rate = InputSpec("sr", np.dtype(np.int64), ())
    reader = open_reader(written(tmp_path / "x.npz", x=DATA, sr=np.arange(5)), [X, rate])
    assert [(feed["sr"].shape, int(feed["sr"])) for feed in reader] == [((), i) for i in range(5)]


def test_labels_are_no_input_and_follow_the_part(tmp_path):
    reader = open_reader(written(tmp_path / "x.npz", x=DATA, labels=np.arange(5)), [X], batch_size=2)
    assert reader.labels.tolist() == [0, 1, 2, 3]
    assert reader.part(1, 2).labels.tolist() == [2, 3]
    assert open_reader(written(tmp_path / "y.npz", x=DATA), [X]).labels is None


def test_a_model_whose_input_is_called_labels_gets_it(tmp_path):
    spec = InputSpec("labels", np.dtype(np.int64), ("N",))
    reader = open_reader(written(tmp_path / "x.npz", labels=np.arange(3)), [spec])
    assert [feed["labels"].tolist() for feed in reader] == [[0], [1], [2]]
    assert reader.labels is None


def test_a_fixed_batch_is_taken_from_the_model_and_what_is_left_over_is_said(tmp_path):
    fixed = InputSpec("x", np.dtype(np.float32), (2, 2, 3))
    reader = open_reader(written(tmp_path / "x.npz", x=DATA), [fixed])
    assert [feed["x"].shape for feed in reader] == [(2, 2, 3)] * 2
    assert reader.notes == [f"{tmp_path / 'x.npz'}: 1 of 5 samples left over, the model takes 2 at a time"]
    with pytest.raises(CalibrationError, match=r"batch size 3, but the model is fixed to 2; use 2"):
        open_reader(tmp_path / "x.npz", [fixed], batch_size=3)


def test_a_state_whose_axis_0_is_no_batch_needs_a_folder(tmp_path):
    state = InputSpec("state", np.dtype(np.float32), (2, "N", 8))
    path = written(tmp_path / "x.npz", x=DATA, state=np.zeros((10, 1, 8), np.float32))
    with pytest.raises(CalibrationError, match=r"input 'state' \(2, N, 8\) has no samples along axis 0 .* a folder"):
        open_reader(path, [X, state])
    other = InputSpec("x", np.dtype(np.float32), (1, 2, 3))
    with pytest.raises(CalibrationError, match=r"axis 0 .* different lengths \('x' 1, 'state' 2\).* a folder"):
        open_reader(path, [other, InputSpec("state", np.dtype(np.float32), (2, 1, 8))])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays"),
        ({"labels": np.zeros(3)}, "holds no arrays"),
        ({"x": DATA[:0]}, "hold no samples"),
        ({"X": DATA}, r"no input 'X'; did you mean 'x'\? its inputs are 'x'"),
        ({"x": DATA, "y": DATA}, "no input 'y'"),
        ({"x": DATA.astype(np.float64)}, r"type float64, the model takes float32; convert it with .astype\(np.float32"),
        ({"x": DATA.astype(np.int32)}, "type int32, the model takes float32"),
        ({"x": DATA[0]}, r"rank 2 .* the model takes rank 3 with shape \(N, 2, 3\)"),
        ({"x": DATA[:, :, :2]}, r"the model takes \(N, 2, 3\); axis 2 has to be 3 long"),
        ({"x": np.float32(3)}, "has no axis of samples"),
        ({"x": DATA, "labels": np.zeros(4)}, r"'labels' has shape \(4,\) for 5 samples"),
        ({"x": np.array([{}, None])}, "array 'x': holds pickled Python objects, which are never loaded"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(tmp_path, arrays, message):
    with pytest.raises(CalibrationError, match=message) as caught:
        open_reader(written(tmp_path / "x.npz", **arrays), [X])
    assert "\n" not in str(caught.value)


def test_different_numbers_of_samples_are_refused(tmp_path):
    other = InputSpec("z", np.dtype(np.float32), ("N",))
    with pytest.raises(CalibrationError, match=r"different numbers of samples along axis 0: 'x' 5, 'z' 4"):
        open_reader(written(tmp_path / "x.npz", x=DATA, z=np.zeros(4, np.float32)), [X, other])


def test_files_that_are_no_archives_or_damaged_are_refused(tmp_path):
    bad = tmp_path / "bad.npz"
    for content in (b"", b"\x89PNG\r\n\x1a\n"):
        bad.write_bytes(content)
        with pytest.raises(CalibrationError, match=r"bad.npz: not an .npz file"):
            open_reader(bad, [X])
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': ")
    with pytest.raises(CalibrationError, match=r"bad.npz: not a numpy file, or a damaged one"):
        open_reader(bad, [X])


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_found_while_reading_is_an_error(tmp_path, compressed):
    noise = np.random.default_rng(0).standard_normal((20000, 2, 3)).astype(np.float32)
    path = written(tmp_path / "x.npz", compressed, x=noise)
    content = bytearray(path.read_bytes())
    content[400_000:400_020] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"x.npz: the file is damaged"):
        list(open_reader(path, [X]))
