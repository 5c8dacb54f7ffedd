"""Progress that is no bar: plain lines on standard error, seldom, and never on standard output."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result

from onnxq.cli import _progress_lines
from onnxq.cli._progress import working
from onnxq.cli._progress_lines import ProgressLines


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_line_has_the_step_the_count_the_time_and_what_is_left() -> None:
    clock = Clock()
    lines = ProgressLines(clock)
    clock.seconds += 31
    assert lines.line() == "load, 31 s"
    lines.update("rewrite", 0, 10)
    clock.seconds += 9
    assert lines.line() == "rewrite: 0 of 10, 40 s"
    lines.update("rewrite", 3, 10)
    clock.seconds += 21
    assert lines.line() == "rewrite: 3 of 10, 61 s, about 70 s left"  # 30 s for three of the step, not 61
    lines.update("rewrite", 10, 10)
    assert lines.line() == "rewrite: 10 of 10, 61 s"
    lines.update("calibrate", 7, None)
    assert lines.line() == "calibrate: 7, 61 s"


def test_a_step_that_begins_anew_is_timed_anew() -> None:
    clock = Clock()
    lines = ProgressLines(clock)
    lines.update("calibrate", 8, 8)
    clock.seconds += 1000
    lines.update("calibrate", 0, 8)
    clock.seconds += 5
    lines.update("calibrate", 4, 8)
    assert lines.line() == "calibrate: 4 of 8, 1005 s, about 5 s left"


class Told:
    """A stream that is no terminal, and says when something has been written to it."""

    def __init__(self, fails: bool = False) -> None:
        self.text, self.came, self.fails = "", threading.Event(), fails

    def write(self, text: str) -> int:
        self.text += text
        self.came.set()
        if self.fails:
            raise OSError("no space")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("as_json", [False, True])
def test_a_step_that_tells_nothing_still_writes_lines(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = Told()
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(_progress_lines, "SECONDS_BETWEEN_LINES", 0.01)
    with working(as_json) as progress:
        progress("layers", 12, 210)
        error.came.clear()
        assert error.came.wait(30)
    assert "layers: 12 of 210, 0 s, about 0 s left\n" in error.text
    assert not [thread for thread in threading.enumerate() if thread.name == "onnxq-progress"]
    assert capsys.readouterr().out == ""


def test_a_log_that_takes_no_more_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    error = Told(fails=True)
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(_progress_lines, "SECONDS_BETWEEN_LINES", 0.01)
    with working(False):
        for _ in range(2):
            error.came.clear()
            assert error.came.wait(30)


def test_a_command_mixes_no_line_with_its_json(
    tmp_path: Path, cnn: onnx.ModelProto, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress_lines, "SECONDS_BETWEEN_LINES", 0.001)
    onnx.save(cnn, tmp_path / "m.onnx")
    options = ["-p", "w8", "--json", "--no-benchmark"]
    written = run("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", *options)
    assert written.exit_code == 0
    assert json.loads(written.stdout)["output"] == str(tmp_path / "q.onnx")
    lines = [line for line in written.stderr.splitlines() if not line.startswith("warning: ")]
    assert lines and all(line.endswith((" s", " s left")) for line in lines)


def test_what_is_done_soon_writes_no_line(tmp_path: Path, cnn: onnx.ModelProto, run: Callable[..., Result]) -> None:
    onnx.save(cnn, tmp_path / "m.onnx")
    written = run("quantize", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "-p", "w8", "--no-benchmark")
    assert written.exit_code == 0
    assert [line for line in written.stderr.splitlines() if not line.startswith("warning: ")] == []
