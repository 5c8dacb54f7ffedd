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


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(64,), (2, 1, 8), (1, 4), ("N", 4), ("T", "N")])
def test_samples_along_a_new_first_axis(tmp_path, shape, order):
    """An array with one axis more than the input holds a feed in each element, whatever the input's first axis is."""
    spec = InputSpec("x", np.dtype(np.float32), shape)
    one = tuple(dim if isinstance(dim, int) else 3 for dim in shape)
    array = np.asarray(np.random.default_rng(0).standard_normal((5, *one)), np.float32, order=order)
    reader = open_reader(written(tmp_path / "x.npz", x=array, labels=np.arange(5)), [spec])
    assert reader.count == 5
    feeds = list(reader.part(1, 5))
    assert [feed["x"].shape for feed in feeds] == [one] * 4
    np.testing.assert_array_equal(np.stack([feed["x"] for feed in feeds]), array[1:])
    assert reader.part(1, 3).labels.tolist() == [1, 2]


def test_inputs_with_and_without_a_batch_axis_go_together(tmp_path):
    state = InputSpec("state", np.dtype(np.float32), (2, 1, 8))
    states = np.random.default_rng(0).standard_normal((5, 2, 1, 8)).astype(np.float32)
    feeds = list(open_reader(written(tmp_path / "x.npz", x=DATA, state=states), [X, state]))
    assert [(feed["x"].shape, feed["state"].shape) for feed in feeds] == [((1, 2, 3), (2, 1, 8))] * 5
    np.testing.assert_array_equal(feeds[3]["state"], states[3])
    with pytest.raises(CalibrationError, match="different numbers of samples"):
        open_reader(written(tmp_path / "y.npz", x=DATA, state=states[:4]), [X, state])


def test_messages_say_which_forms_work(tmp_path):
    flat = InputSpec("x", np.dtype(np.float32), (64,))
    with pytest.raises(CalibrationError, match="samples go along the first axis, or along a new one in front of it"):
        open_reader(written(tmp_path / "x.npz", x=np.zeros((10, 8, 8), np.float32)), [flat])
    state = InputSpec("s", np.dtype(np.float32), (2, "N"))
    with pytest.raises(CalibrationError, match="along a new first axis, or pass a folder with one .npz a feed"):
        open_reader(written(tmp_path / "y.npz", x=DATA, s=np.zeros((5, 2), np.float32)), [X, state])


def npy(header, body=b"", version=(1, 0)):
    """A numpy file with any header."""
    text = header.encode()
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text + body


ODD = {
    "huge": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (25000000000000, 2, 3), }\n"),
    "huge fortran": npy("{'descr': '<f4', 'fortran_order': True, 'shape': (25000000000000, 2, 3), }\n"),
    "negative": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2, 3), }\n"),
    "beyond 64 bits": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 40 + ", 2, 3), }\n"),
    "short": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 2, 3), }\n", bytes(119)),
    "long": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 2, 3), }\n", bytes(121)),
    "open": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 2, 3"),
    "no dict": npy("[1, 2]\n"),
    "no type": npy("{'descr': 'zz', 'fortran_order': False, 'shape': (5,), }\n"),
    "number for a shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': 3, }\n"),
    "nested": npy("(" * 3000 + "\n"),
    "version": npy("{}\n", version=(9, 9)),
    "cut": b"\x93NUMPY\x01",
    "empty": b"",
    "newer": npy("{'descr': [('\u00e9', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", bytes(4), (3, 0)),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("form", ["archive", "folder of npz", "folder of npy"])
def test_odd_members_are_one_line(tmp_path, kind, form):
    place = tmp_path / "data"
    if form == "folder of npy":
        place.mkdir()
        (place / "a.npy").write_bytes(ODD[kind])
    else:
        file = place if form == "archive" else place / "a.npz"
        file.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", ODD[kind])
    with pytest.raises(CalibrationError, match=r"\S") as caught:
        list(open_reader(place, [X]))
    assert "\n" not in str(caught.value)
    assert "memory" not in str(caught.value)
    assert len(str(caught.value)) < 500
