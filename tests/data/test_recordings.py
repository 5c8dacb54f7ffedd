from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec
from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError, MissingExtraError

pytestmark = pytest.mark.audio

FLOAT = np.dtype(np.float32)


def record(path: Path, samples: int, *, channels: int = 1, rate: int = 16000) -> np.ndarray:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(samples).integers(-20000, 20000, (samples, channels)).astype(np.int16)
    soundfile.write(path, wave, rate)
    return wave


def test_a_fixed_length_gets_one_piece_after_the_other(tmp_path: Path) -> None:
    wave = record(tmp_path / "a.wav", 1100)
    feeds = list(open_reader(tmp_path, [InputSpec("x", FLOAT, ("N", 512))]))
    assert [feed["x"].shape for feed in feeds] == [(1, 512)] * 2
    np.testing.assert_allclose(np.concatenate([feed["x"][0] for feed in feeds]), wave[:1024, 0] / 32768, atol=1e-6)


@pytest.mark.parametrize(("shape", "expected"), [((None,), (700,)), ((1, None), (1, 700)), ((1, 1, None), (1, 1, 700))])
def test_any_length_gets_the_whole_recording(
    tmp_path: Path, shape: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    record(tmp_path / "a.flac", 700)
    assert [feed["x"].shape for feed in open_reader(tmp_path, [InputSpec("x", FLOAT, shape)])] == [expected]


def test_stereo_is_averaged_and_integers_stay_integers(tmp_path: Path) -> None:
    wave = record(tmp_path / "a.wav", 100, channels=2)
    (feed,) = open_reader(tmp_path, [InputSpec("x", np.dtype(np.int16), (1, 100))])
    np.testing.assert_allclose(feed["x"][0], wave.astype(float).mean(1), atol=0.5)


def test_an_input_for_the_rate_is_filled(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 100, rate=8000)
    (feed,) = open_reader(tmp_path, [InputSpec("x", FLOAT, (1, None)), InputSpec("sr", np.dtype(np.int64), ())])
    assert feed["sr"] == 8000


def test_classes_are_folders(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        record(tmp_path / name / "a.wav", 64)
    assert open_reader(tmp_path, [InputSpec("x", FLOAT, ("N", 64))]).labels.tolist() == [0, 1]  # type: ignore[union-attr]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 100)
    with pytest.raises(CalibrationError, match="no recording has the 512 samples that input 'x' takes"):
        open_reader(tmp_path, [InputSpec("x", FLOAT, ("N", 512))])
    with pytest.raises(CalibrationError, match="which is no waveform"):
        open_reader(tmp_path, [InputSpec("mel", FLOAT, (1, 80, None))])
    record(tmp_path / "b.wav", 100, rate=8000)
    with pytest.raises(CalibrationError, match=r"differ in rate \(b.wav 8000 Hz, a.wav 16000 Hz\)"):
        open_reader(tmp_path, [InputSpec("x", FLOAT, ("N", 64))])
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(CalibrationError, match="1 of 2 files cannot be read: b.wav .* more than 5% is too many"):
        open_reader(tmp_path, [InputSpec("x", FLOAT, ("N", 64))])


def test_without_soundfile_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "a.wav", 100)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r'pip install "onnxq\[audio\]"'):
        open_reader(tmp_path, [InputSpec("x", FLOAT, ("N", 64))])
