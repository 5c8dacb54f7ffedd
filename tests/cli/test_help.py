"""Help, version and wrong usage: what the program says without doing any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import Result

from onnxq._version import __version__
from onnxq.cli._app import COMMANDS, app

Run = Callable[..., Result]


def commands() -> dict[str, click.Command]:
    context = click.Context(app)
    found = {name: app.get_command(context, name) for name in app.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"]])
def test_help_imports_nothing_that_takes_long(arguments: list[str]) -> None:
    """Its seconds are in the account of .ci/run."""
    program = (
        "import sys\nfrom onnxq.cli._app import app\n"
        f"try:\n    app.main({arguments})\nexcept SystemExit:\n    pass\n"
        "slow = {'rich', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'yaml', 'ml_dtypes'}\n"
        "print(sorted(slow & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    if arguments == ["--help"]:
        assert all(name in done.stdout for name in COMMANDS)


def test_version(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"onnxq {__version__}\n")


def test_without_arguments_help_goes_to_stderr(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "quantize" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_complete(run: Run, name: str) -> None:
    result = run(name, "--help-all")
    assert result.exit_code == 0
    assert f"  Examples:\n    onnxq {name}" in result.stdout.replace("onnxq quantize model.onnx --stats", "")
    assert result.stdout.isascii()
    assert {"--json", "--verbose", "--help"} <= set(result.stdout.replace(",", " ").split())


def test_help_of_quantize_is_a_screen_and_names_the_rest(run: Run) -> None:
    short, whole = run("quantize", "--help").stdout, run("quantize", "--help-all").stdout
    assert len(short.splitlines()) <= 50
    assert "--help-all" in short
    command = commands()["quantize"]
    shown = {parameter.name for parameter in command.params if f"{max(parameter.opts, key=len)} " in short}
    assert {"output", "calibration", "preset", "target", "max_drop", "force"} <= shown
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert all(name in whole for name in parameter.opts), parameter.name
    assert "MODEL is an ONNX file" in whole and "MODEL is an ONNX file" not in short
    assert "-p, --preset NAME" in short and "[default: auto]" in short


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_screen_and_help_all_has_every_option(run: Run, name: str) -> None:
    short, whole = run(name, "--help").stdout, run(name, "--help-all").stdout
    assert len(short.splitlines()) <= 50
    assert ("--help-all" in short) == (short != whole)
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert all(flag in whole for flag in (*parameter.opts, *parameter.secondary_opts)), parameter.name
            assert parameter.required <= ("[required]" in short)
    assert "None" not in whole.replace("'None'", "")


@pytest.mark.parametrize("given", [None, "0"])
def test_the_runtimes_telemetry_is_off_unless_it_is_asked_for(given: str | None) -> None:
    known = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = known if given is None else {**known, "ORT_DISABLE_TELEMETRY": given}
    program = (
        "import os\nfrom onnxq.cli._app import prepare_process\nprepare_process()\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (given or "1")


COMPLETED = [
    (["qu"], {"quantize"}),
    (["quantize", "--pre"], {"--preset", "--preprocess"}),
    (["quantize", "-p", "w8a8-l"], {"w8a8-learned"}),
    (["finetune", "-p", "nf"], {"nf4"}),
    (["quantize", "--target", "web"], {"web", "web-gpu"}),
    (["lint", "--target", "q"], {"qnn"}),
    (["quantize", "--algorithm", "g"], {"gptq"}),
    (["quantize", "--kv-cache", "int"], {"int8", "int4"}),
    (["compare", "--metric", "co"], {"cosine"}),
    (["quantize", "--metric", "per"], {"perplexity"}),
    (["calibrate", "--preprocess", "i"], {"imagenet"}),
    (["quantize", "--format", ""], {"qdq", "qoperator"}),
]


@pytest.mark.parametrize(("words", "offered"), COMPLETED, ids=[" ".join(words) for words, _ in COMPLETED])
def test_the_shell_completes(words: list[str], offered: set[str]) -> None:
    completer = ShellComplete(app, {}, "onnxq", "_ONNXQ_COMPLETE")
    assert {item.value for item in completer.get_completions(words[:-1], words[-1])} == offered


@pytest.mark.parametrize("words", [["quantize"], ["quantize", "-c"], ["quantize", "-o"], ["compare", "a.onnx"]])
def test_the_shell_completes_files(words: list[str]) -> None:
    (item,) = ShellComplete(app, {}, "onnxq", "_ONNXQ_COMPLETE").get_completions(words, "mod")
    assert (item.value, item.type) == ("mod", "file")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_of_a_start_file_gives_a_script(root: Path, shell: str) -> None:
    line = next(
        row for row in (root / "docs/commands.md").read_text(encoding="utf-8").splitlines() if f"| {shell}" in row
    )
    assert f"_ONNXQ_COMPLETE={shell}_source onnxq" in line
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed; it is asked for its version")
    environment = {**os.environ, "_ONNXQ_COMPLETE": f"{shell}_source"}
    program = "from onnxq.cli._app import app; app.main([], 'onnxq')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "_onnxq_completion" in done.stdout and f"{shell}_complete" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_written_in_sentences(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert command.get_short_help_str(200).endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            text = (parameter.help or "").split("  [default")[0]
            assert text[:1].isupper(), parameter.name
            assert text.endswith("."), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_is_not_cut(run: Run, name: str) -> None:
    assert commands()[name].get_short_help_str(200) in run("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quantise", "m"], "no such command: 'quantise'; did you mean 'quantize'?; see 'onnxq --help'"),
        (["xyz"], "no such command: 'xyz'; there are quantize,"),
        (["--frob"], "--frob"),
        (["quantize"], "missing argument 'MODEL'; see 'onnxq quantize --help'"),
        (["quantize", "m", "n"], "unexpected extra argument"),
        (["quantize", "m", "--jsn"], "--json"),
        (["quantize", "m", "--format", "float"], "'float' is not one of 'qdq', 'qoperator'"),
        (["quantize", "m", "--range", "median"], "'median' is not one of 'minmax'"),
        (["quantize", "m", "--percentile", "40"], "40.0 is not in the range"),
        (["quantize", "m", "--percentile", "99", "--range", "mse"], "--percentile does not go with --range mse"),
        (["quantize", "m", "--threads", "0"], "0 is not in the range"),
        (["quantize", "m", "--budget", "nan"], "nan is no finite number"),
        (["quantize", "m", "--max-memory", "inf"], "inf is no finite number"),
        (["benchmark", "m", "--seconds", "inf"], "inf is no finite number"),
        (["quantize", ""], "it is empty; name a file"),
        (["quantize", "m", "-c", ""], "it is empty; pass an .npz file"),
        (["quantize", "m", "--threads", "two"], "'two' is not a valid integer"),
        (["quantize", "m", "-o"], "requires an argument"),
        (["calibrate", "m", "-o", "s.npz"], "missing option '-c' / '--calibration'"),
        (["calibrate", "m", "-c", "d.npz"], "missing option '-o' / '--output'"),
        (["calibrate", "m", "-c", "d", "-o", "s", "--engine", "cloud"], "'cloud' is not"),
        (["compare", "a", "-c", "d"], "missing argument 'QUANTIZED'"),
        (["compare", "a", "b"], "missing option '-c' / '--calibration'"),
        (["benchmark"], "missing argument 'MODEL [MODEL...]'"),
        (["benchmark", "m", "--seconds", "0"], "0.0 is not in the range"),
        (["inspect"], "missing argument 'MODEL'"),
        (["presets", "all"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run: Run, arguments: list[str], expected: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert line.endswith("--help'")


def test_wrong_usage_with_json_gives_one_object(run: Run) -> None:
    result = run("quantize", "--json")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    error = json.loads(result.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert result.stderr == f"error: {error['message']}\n"
