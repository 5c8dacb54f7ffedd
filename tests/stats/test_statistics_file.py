"""The statistics file: what is written is read, and everything else is refused in one line."""

from __future__ import annotations

import os
import pickle
import time

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.stats import statistics_file
from onnxq.stats.statistics import Statistics
from onnxq.stats.value_statistic import ValueStatistic


def some_statistics(values=3):
    statistics = Statistics("cafe", "beef", 5)
    generator = np.random.default_rng(0)
    for number in range(values):
        statistics.update(f"/layer.{number}/Conv:0 é\n", generator.standard_normal((1, number + 1, 20)) * 10.0**number)
    return statistics


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "stats.npz"
    some_statistics().save(path)
    return path


def rewritten(path, **changes):
    with np.load(path) as archive:
        content = {key: archive[key] for key in archive.files}
    content.update(changes)
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def test_what_is_saved_is_loaded(saved):
    statistics = some_statistics()
    assert Statistics.load(saved) == statistics
    assert [path.name for path in saved.parent.iterdir()] == ["stats.npz"]
    first = saved.read_bytes()
    Statistics.load(str(saved)).save(str(saved))
    assert saved.read_bytes() == first


def test_nothing_seen_yet(tmp_path):
    statistics = Statistics()
    statistics.save(tmp_path / "s")
    assert Statistics.load(tmp_path / "s") == statistics
    statistics.put("x", ValueStatistic())
    statistics.update("scalar", np.float32(2))
    statistics.update("nan", np.full((2, 2), np.nan, np.float16))
    statistics.save(tmp_path / "s")
    assert Statistics.load(tmp_path / "s") == statistics


def test_three_hundred_values_are_saved_fast_and_small(tmp_path):
    statistics = Statistics()
    x = np.maximum(np.random.default_rng(0).standard_normal((1, 64, 28, 28), dtype=np.float32), 0)
    for number in range(300):
        statistics.update(str(number), x)
    start = time.perf_counter()
    statistics.save(tmp_path / "s")
    Statistics.load(tmp_path / "s")
    assert time.perf_counter() - start < 5
    assert (tmp_path / "s").stat().st_size < 2_000_000


def test_an_unwritable_place_leaves_nothing_behind(tmp_path):
    with pytest.raises(CalibrationError, match="statistics cannot be written: No such file"):
        some_statistics().save(tmp_path / "missing" / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CalibrationError, match="statistics cannot be written: Is a directory"):
        some_statistics().save(tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_failed_write_keeps_the_old_file(saved, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CalibrationError, match="No space left on device"):
        Statistics().save(saved)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="statistics file is no regular file"):
        Statistics.load(tmp_path / "pipe")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CalibrationError, match="does not exist"):
        Statistics.load(tmp_path / "none")
    with pytest.raises(CalibrationError, match="is a directory"):
        Statistics.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"PK\x03\x04 cut off", pickle.dumps({"a": 1})])
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(CalibrationError, match="not a statistics file"):
        Statistics.load(tmp_path / "s")


def test_a_plain_npy_and_another_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(CalibrationError, match="not a statistics file"):
        Statistics.load(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(CalibrationError, match=r"an \.npz, but not of statistics"):
        Statistics.load(tmp_path / "a.npz")


def test_pickled_content_is_not_read(saved):
    with pytest.raises(CalibrationError, match="Object arrays cannot be loaded"):
        Statistics.load(rewritten(saved, names=np.array([{"a": 1}], dtype=object)))


def test_another_version(saved):
    with pytest.raises(CalibrationError, match="format version 3; this onnxq reads 2"):
        Statistics.load(rewritten(saved, version=np.array(3)))


@pytest.mark.parametrize("key", statistics_file._KEYS + statistics_file._MOMENT_KEYS)
def test_missing_keys_are_named(saved, key):
    with pytest.raises(CalibrationError, match=f"statistics lack {key};"):
        Statistics.load(rewritten(saved, **{key: None}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", np.array(["a", "a", "b"])),
        ("names", np.arange(3)),
        ("names", np.array(["a"])),
        ("spans", np.array([[0, 2], [3, 1], [-4, 2]])),
        ("counts", np.zeros(2, np.int64)),
        ("extrema", np.full((3, 2), np.nan)),
        ("counters", np.full((3, 6), -1)),
        ("shapes", np.full(9, -7)),
        ("samples", np.array([1, 2])),
        ("ranks", np.array(["x", "y", "z"])),
    ],
)
def test_contradictions_are_found(saved, key, value):
    with pytest.raises(CalibrationError, match=f"{saved.name}: damaged statistics"):
        Statistics.load(rewritten(saved, **{key: value}))


def test_damaged_bytes_are_found(saved):
    content = bytearray(saved.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 16] = bytes(byte ^ 0xFF for byte in content[middle : middle + 16])
    saved.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"damaged statistics|not of statistics"):
        Statistics.load(saved)
