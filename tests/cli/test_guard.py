"""Whatever a command raises becomes one line, the right exit code and, where asked for, one JSON object."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from onnxq import errors

Run = Callable[..., Result]

FAILURES = [
    (errors.OnnxqError("a\nb   c"), 1, "error: a b c"),
    (errors.ModelError("m.onnx: empty"), 1, "error: m.onnx: empty"),
    (errors.RecipeError("--preset: no 'w9'"), 2, "error: --preset: no 'w9'"),
    (errors.CalibrationError("d.npz: no array 'x'"), 1, "error: d.npz: no array 'x'"),
    (errors.TargetError("no target 'tpu'"), 2, "error: no target 'tpu'"),
    (errors.VerificationError("SQNR 3.1 dB is below 20"), 3, "error: SQNR 3.1 dB is below 20"),
    (errors.MissingExtraError("pip install 'onnxq[ray]'"), 1, "error: pip install 'onnxq[ray]'"),
    (KeyboardInterrupt(), 130, "interrupted: nothing was written"),
    (MemoryError(), 1, "error: out of memory: use fewer"),
    (OSError(errno.ENOSPC, "No space left on device", "out.onnx"), 1, "error: out.onnx: No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied", "/out"), 1, "error: /out: Permission denied"),
    (ZeroDivisionError("x\ny"), 1, "error: internal error: ZeroDivisionError: x y; run with --verbose"),
    (KeyError("k"), 1, "error: internal error: KeyError: 'k'; run with --verbose"),
    (OSError("odd"), 1, "error: internal error: OSError: odd; run with --verbose"),
]


@pytest.mark.parametrize(("error", "code", "line"), FAILURES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("command", [["presets"], ["quantize", "m.onnx"], ["inspect", "m.onnx"]], ids=" ".join)
def test_a_failure_is_one_line(
    run: Run, fake_api: Any, command: list[str], error: BaseException, code: int, line: str
) -> None:
    fake_api.answer = error
    result = run(*command)
    assert result.exit_code == code
    assert result.stdout == ""
    (only,) = result.stderr.splitlines()
    assert only.startswith(line)

    with_json = run(*command, "--json")
    assert with_json.exit_code == code
    assert with_json.stderr == result.stderr
    body = json.loads(with_json.stdout)["error"]
    assert set(body) == {"type", "message", "exit_code"}
    assert body["exit_code"] == code
    assert body["message"] == only.removeprefix("error: ")


def test_a_defect_shows_its_traceback_only_on_request(run: Run, fake_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api.answer = ZeroDivisionError("x")
    assert "Traceback" not in run("presets").stderr
    assert run("presets", "-v").stderr.startswith("Traceback")
    assert run("presets", "-v").stderr.splitlines()[-1] == "error: internal error: ZeroDivisionError: x"
    monkeypatch.setenv("ONNXQ_DEBUG", "1")
    assert run("presets").stderr.startswith("Traceback")


def test_the_message_of_a_defect_is_cut(run: Run, fake_api: Any) -> None:
    fake_api.answer = ValueError("graph " * 1000)
    assert 300 < len(run("presets").stderr) < 400


def test_an_error_of_the_user_shows_no_traceback_even_with_verbose(run: Run, fake_api: Any) -> None:
    fake_api.answer = errors.ModelError("m.onnx: empty")
    assert run("presets", "-v").stderr == "error: m.onnx: empty\n"


def test_interruption_after_the_file_is_complete_says_so(run: Run, fake_api: Any, tmp_path: Path) -> None:
    class Answer:
        output = tmp_path / "out.onnx"

        def to_dict(self) -> dict[str, object]:
            raise KeyboardInterrupt

    fake_api.answer = Answer()
    result = run("quantize", "m.onnx")
    assert result.exit_code == 130
    assert result.stderr == f"interrupted: {tmp_path / 'out.onnx'} was already written\n"


def test_interruption_of_a_resumable_run_says_what_is_left(run: Run, fake_api: Any, tmp_path: Path) -> None:
    output = tmp_path / "s.npz"
    fake_api.answer = KeyboardInterrupt()
    arguments = ("calibrate", "m.onnx", "-c", "d.npz", "-o", output)
    assert run(*arguments, "--resume").stderr == "interrupted: nothing was written\n"
    output.touch()
    assert run(*arguments, "--resume").stderr.startswith(f"interrupted: {output} holds what was done; run again")
    assert run(*arguments).stderr == "interrupted: nothing was written\n"


def test_warnings_of_libraries_stay_off_the_terminal(run: Run, fake_api: Any) -> None:
    def noisy() -> list[dict[str, str]]:
        warnings.warn("beware", UserWarning, stacklevel=1)
        return [{"name": "a"}]

    fake_api.answer = noisy
    result = run("targets")
    assert result.exit_code == 0
    assert result.stderr == ""


FAKE_PROGRAM = """
import sys, types, onnxq
from onnxq.cli import main
api = types.ModuleType("onnxq.api")
sys.modules["onnxq.api"] = api
vars(onnxq)["api"] = api
{body}
main()
"""


def start_fake(body: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    """Run the program in a process of its own over a made-up api."""
    return subprocess.Popen(
        [sys.executable, "-c", FAKE_PROGRAM.format(body=body), *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_unwind_the_work_and_say_one_line(number: int, code: int, word: str, tmp_path: Path) -> None:
    body = (
        "def presets():\n    import time, pathlib\n    try:\n        print('started', flush=True)\n"
        f"        time.sleep(60)\n    finally:\n        pathlib.Path({str(tmp_path / 'unwound')!r}).touch()\n"
        "api.presets = presets"
    )
    process = start_fake(body, "presets")
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "", f"{word}: nothing was written\n")
    assert (tmp_path / "unwound").exists()


def test_logging_of_libraries_stays_off_the_terminal() -> None:
    body = "import logging\napi.targets = lambda: (logging.getLogger('lib').warning('noise'), [{'name': 'a'}])[1]"
    out, err = start_fake(body, "targets").communicate(timeout=30)
    assert "a" in out
    assert err == ""
    assert logging.lastResort is not None


@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    body = "api.targets = lambda: (sys.stdin.read(), [{'name': 'a'}])[1]"
    process = start_fake(body, *arguments, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=30) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"]], ids=" ".join)
def test_standard_output_on_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        process = start_fake("api.targets = lambda: [{'name': 'a'}]", *arguments, stdout=full)
        _, err = process.communicate(timeout=30)
    assert err == f"error: {os.strerror(errno.ENOSPC)}\n"
    assert process.returncode == 1
