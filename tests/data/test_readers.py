from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from onnxq.data import sources
from onnxq.data.feeds import FeedHash, InputSpec
from onnxq.data.readers import open_reader, split
from onnxq.errors import CalibrationError
from onnxq.stats.statistics import combine_hashes

SPEC = InputSpec("x", np.dtype(np.float32), ("N", 4))
INPUTS = [SPEC]


def feed(value, batch=1):
    return {"x": np.full((batch, 4), value, np.float32)}


def values(reader):
    return [float(sample["x"].flat[0]) for sample in reader]


class GetNext:
    def __init__(self, count):
        self.count, self.at = count, 0

    def get_next(self):
        self.at += 1
        return feed(self.at - 1) if self.at <= self.count else None


class Rewinding(GetNext):
    def rewind(self):
        self.at = 0


class Lazy:
    """Iterable again and again, but neither with a length nor by index."""

    def __iter__(self):
        return (feed(i) for i in range(5))


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        np.savez(tmp_path / f"{index:03}.npz", **feed(index, batch=index + 1), labels=np.full(index + 1, index))
    (tmp_path / "README.txt").write_text("not a feed")
    return tmp_path


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(body):
        name = f"reader_{abs(hash(body))}"
        Path(f"{name}.py").write_text("import numpy as np\n" + body)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("reader_")]:
        del sys.modules[name]


FORMS = {
    "list": lambda: [feed(i) for i in range(5)],
    "tuple": lambda: tuple(feed(i) for i in range(5)),
    "generator": lambda: (feed(i) for i in range(5)),
    "callable": lambda: lambda: (feed(i) for i in range(5)),
    "lazy": Lazy,
    "get_next": lambda: GetNext(5),
    "rewind": lambda: Rewinding(5),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_feeds_again_and_again(form):
    reader = open_reader(FORMS[form](), INPUTS)
    assert values(reader) == values(reader) == [0, 1, 2, 3, 4]
    assert reader.count == 5
    assert reader.hash == open_reader(FORMS["list"](), INPUTS).hash
    assert values(reader.part(1, 3)) == [1, 2]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_splits_into_disjoint_parts(form):
    calibration, held = split(open_reader(FORMS[form](), INPUTS))
    assert (values(calibration), values(held)) == ([0, 1, 2, 3], [4])
    assert values(calibration) == [0, 1, 2, 3]
    assert (calibration.count, held.count) == (4, 1)
    assert combine_hashes(calibration.hash, held.hash) == open_reader(FORMS[form](), INPUTS).hash


def test_a_folder_gives_a_feed_for_each_file(folder):
    reader = open_reader(folder, INPUTS)
    assert [sample["x"].shape for sample in reader] == [(n, 4) for n in range(1, 6)]
    assert values(reader) == [0, 1, 2, 3, 4]
    assert reader.count == 5
    assert split(reader)[1].labels.tolist() == [4] * 5


def test_a_folder_of_npy_feeds_the_only_input(tmp_path):
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", feed(index)["x"])
    assert values(open_reader(str(tmp_path), INPUTS)) == [0, 1, 2]
    with pytest.raises(CalibrationError, match=r"0.npy: an .npy file is one array, but the model has 2 inputs"):
        open_reader(tmp_path, [SPEC, InputSpec("z", np.dtype(np.float32), ())])


def test_files_that_do_not_fit_are_named(folder):
    np.save(folder / "003.npy", np.array([{}]))
    with pytest.raises(CalibrationError, match=r"003.npy: holds pickled Python objects, which are never loaded"):
        list(open_reader(folder, INPUTS))
    (folder / "003.npy").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"003.npy: not a numpy file, or a damaged one"):
        list(open_reader(folder, INPUTS))
    np.savez(folder / "001.npz", y=np.zeros((1, 4), np.float32))
    with pytest.raises(CalibrationError, match=r"001.npz: the model has no input 'y'; did"):
        list(open_reader(folder, [InputSpec("yy", np.dtype(np.float32), ("N", 4))]).part(1, 2))


def test_a_folder_without_feeds_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"holds no .npz or .npy files"):
        open_reader(tmp_path, INPUTS)


def test_module_and_callable_are_imported_from_the_working_folder(module):
    name = module("def feeds():\n    return [{'x': np.zeros((1, 4), np.float32)}] * 3\nclass A:\n    b = feeds\n")
    path = list(sys.path)
    assert open_reader(f"{name}:feeds", INPUTS).count == 3
    assert open_reader(f"{name}:A.b", INPUTS).count == 3
    assert sys.path == path


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ("import nowhere_at_all", "f", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("x = 1 / 0", "f", "cannot be imported: ZeroDivisionError: division by zero"),
        ("f = 3", "f", "is a int, not a callable"),
        ("f = 3", "g", "cannot be imported: AttributeError: module .* has no attribute 'g'"),
        ("def f(): raise KeyError('k')", "f", "the call raised KeyError: 'k'"),
        ("def f(): return None", "f", "is a NoneType; pass an .npz"),
        ("def f(): return {'x': 1}", "f", "is one dict; pass a list of feeds"),
        ("def f(n): return []", "f", "the call raised TypeError: .* missing 1 required positional argument"),
    ],
)
def test_modules_that_fail_are_one_line_errors(module, body, name, message):
    with pytest.raises(CalibrationError, match=message):
        open_reader(f"{module(body)}:{name}", INPUTS)


@pytest.mark.parametrize("text", ["none.npz", "no/such:folder", "folder", "C:none.npz"])
def test_paths_that_do_not_exist_are_refused(text):
    with pytest.raises(CalibrationError, match=f"{text}: no such file or folder; pass an .npz, .parquet"):
        open_reader(text, INPUTS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": np.zeros((5, 4))}, "is one dict"),
        (np.zeros((5, 4)), "is a ndarray; pass an iterable of dicts"),
        (7, "is a int; pass an .npz"),
    ],
)
def test_objects_that_are_no_data_are_refused(given, message):
    with pytest.raises(CalibrationError, match=message):
        open_reader(given, INPUTS)


def failing(after):
    for index in range(after):
        yield feed(index)
    raise OSError("disk gone\nbadly")


def test_a_reader_that_raises_midway_names_the_sample():
    with pytest.raises(CalibrationError, match=r"calibration sample 2: the reader raised OSError: disk gone badly"):
        list(open_reader(failing(2), INPUTS))
    with pytest.raises(CalibrationError, match=r"calibration sample 0: the reader raised OSError"):
        split(open_reader(failing(0), INPUTS))


def test_ctrl_c_in_a_reader_passes_through():
    def interrupted():
        yield feed(0)
        raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match=r"stop"):
        list(open_reader(interrupted(), INPUTS))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([1, 2], "sample 1: is a list, not a dict of arrays by input name; pass for example {'x': array}"),
        ({}, "sample 1: input 'x' is missing; got nothing"),
        ({"x": [[1, 2, 3, "a"]]}, "type <U.*the model takes float32"),
        ({"x": [[1, 2, 3, 4]]}, "type int64, the model takes float32"),
        ({"x": np.zeros(4, np.float32)}, r"rank 1 with shape \(4,\), the model takes rank 2 with shape \(N, 4\)"),
        ({"x": np.zeros((1, 5), np.float32)}, "axis 1 has to be 4 long"),
        ({"x": np.array([[None] * 4])}, "holds Python objects"),
        ({"xx": np.zeros((1, 4), np.float32)}, "the model has no input 'xx'"),
    ],
)
@pytest.mark.parametrize("form", [list, iter])
def test_feeds_that_do_not_fit_name_the_sample(sample, message, form):
    with pytest.raises(CalibrationError, match=message):
        list(open_reader(form([feed(0), sample]), INPUTS))


@pytest.mark.parametrize("empty", [[], iter([]), GetNext(0), Rewinding(0)])
def test_no_samples_at_all_is_an_error(empty):
    with pytest.raises(CalibrationError, match=r"there is not one sample"):
        split(open_reader(empty, INPUTS))


def test_types_that_numpy_files_do_not_know_survive_the_spool():
    inputs = [InputSpec("a", np.dtype(ml_dtypes.bfloat16), ("N",)), InputSpec("s", np.dtype(np.str_), ("N",))]
    samples = [{"a": np.arange(n).astype(ml_dtypes.bfloat16), "s": np.array(["ab"] * n, object)} for n in (1, 3)]
    for _ in range(2):
        reader = open_reader(iter(samples), inputs)
        list(reader)
        for given, got in zip(samples, reader, strict=True):
            assert got["a"].dtype == ml_dtypes.bfloat16
            assert got["a"].tolist() == given["a"].tolist()
            assert got["s"].tolist() == given["s"].tolist()


def test_the_spool_reads_ahead_no_further_than_asked_and_cleans_up(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = []
    reader = open_reader((taken.append(i) or feed(i) for i in range(9)), INPUTS)
    assert values(reader.part(0, 2)) == [0, 1]
    assert taken == [0, 1]
    assert values(reader) == list(range(9))
    assert taken == list(range(9))
    assert len(list(tmp_path.rglob("*.bin"))) == 9
    del reader
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_spool_is_a_one_line_error(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.np, "save", full)
    with pytest.raises(CalibrationError, match=r"cannot be kept there: No space left on device; set TMPDIR"):
        list(open_reader(iter([feed(0)]), INPUTS))


def test_the_last_fifth_is_held_out_at_least_one_and_at_most_64():
    for count, held_out in ((2, 1), (3, 1), (9, 1), (10, 2), (100, 20), (1000, 64)):
        calibration, held = split(open_reader([feed(i) for i in range(count)], INPUTS))
        assert values(held) == list(range(count - held_out, count))
        assert calibration.count == count - held_out


def test_one_sample_serves_both_and_says_so():
    calibration, held = split(open_reader([feed(7)], INPUTS))
    assert values(calibration) == values(held) == [7]
    assert "one sample only" in held.notes[0]


def test_the_hash_sees_names_types_shapes_and_contents():
    arrays = [
        {"x": np.zeros((2, 3), np.float32)},
        {"y": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((3, 2), np.float32)},
        {"x": np.zeros((2, 3), np.int32)},
        {"x": np.eye(2, 3, dtype=np.float32)},
        {"x": np.zeros((2, 3), np.float32), "z": np.zeros(0, np.float32)},
    ]
    seen = set()
    for sample in arrays:
        digest = FeedHash()
        assert digest.hexdigest() == ""
        digest.update(sample)
        seen.add(digest.hexdigest())
    assert len(seen) == len(arrays)


def test_the_hash_does_not_depend_on_the_form_the_data_came_in(tmp_path):
    data = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(data))
    (tmp_path / "folder").mkdir()
    for index in range(3):
        np.save(tmp_path / "folder" / f"{index}.npy", data[index : index + 1])
    forms = [tmp_path / "a.npz", tmp_path / "folder", [{"x": row[None]} for row in data]]
    assert len({open_reader(form, INPUTS).hash for form in forms}) == 1


def test_a_reader_may_calibrate_on_all() -> None:
    for count in (1, 2, 10):
        reader = open_reader([feed(i) for i in range(count)], INPUTS)
        reader.calibrates_on_all = True
        calibration, held = split(reader)
        assert values(calibration) == list(range(count))
        assert values(held) == list(range(count - max(count // 5, 1), count))
