"""What commands print: on a terminal, in a pipe, in other encodings; and that each hands its options on."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result

Run = Callable[..., Result]

LONG = "a_very_long_folder_name/" * 12 + "model with spaces.onnx"
RESULT = {
    "output": LONG,
    "preset": "w8a8",
    "format": "qdq",
    "target": "cpu",
    "accuracy": {"float": 0.98, "quantized": 0.9775},
    "size_bytes": {"before": 9_400_000, "after": 2_500_000},
    "sqnr_db": np.float32(31.25),
    "top1_agreement": 0.991,
    "latency_ratio": 2.2149,
    "coverage": {"Conv": {"quantized": 52, "total": 53}, "Gemm": {"quantized": 1, "total": 1}},
    "kept_float": [
        {"node": "stem[bold]", "op_type": "Conv", "reason": "3 input channels: slower in int8"},
        *({"node": f"tanh{i}", "op_type": "Tanh", "reason": "no integer kernel"} for i in range(9)),
    ],
    "seconds": 2.5,
    "warnings": ["first\nwarning"],
}


def outcome(result: dict[str, Any] = RESULT) -> SimpleNamespace:
    return SimpleNamespace(
        output=Path("out.onnx"),
        recipe_path=None,
        outputs={},
        warnings=result.get("warnings", []),
        to_dict=lambda: result,
        summary=lambda: "the summary\n",
    )


def test_a_quantization_is_summed_up_in_words(run: Run, fake_api: Any) -> None:
    fake_api.answer = outcome()
    result = run("quantize", "m.onnx")
    assert result.exit_code == 0
    assert result.stderr == "warning: first warning\n"
    text = re.sub(" +", " ", result.stdout)
    assert text.splitlines()[0] == f"m.onnx -> {LONG}"
    for line in (
        "preset w8a8 (qdq, for cpu), in 2.5 s",
        "size 9.4 MB -> 2.5 MB, 3.76x smaller",
        "latency 2.21x faster than float",
        "SQNR 31.2 dB",
        "top-1 agrees with the float model on 99.1 %",
        "accuracy 98.00 % -> 97.75 %",
        "operator nodes on integers float",
        "Conv 53 52 1",
        "Gemm 1 1 -",
        "9 no integer kernel tanh0, tanh1, tanh2 and 6 more",
        "1 3 input channels: slower in int8 stem[bold]",
    ):
        assert line in text
    assert "\x1b" not in result.stdout
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_verbose_names_every_node(run: Run, fake_api: Any) -> None:
    fake_api.answer = outcome()
    text = run("quantize", "m.onnx", "-v").stdout
    assert all(f"tanh{i}" in text for i in range(9))
    assert "more" not in text


def test_many_reasons_are_cut_and_said_to_be(run: Run, fake_api: Any) -> None:
    kept = [{"node": f"n{i}", "op_type": "Tanh", "reason": f"reason {i}"} for i in range(30)]
    fake_api.answer = outcome({**RESULT, "kept_float": kept})
    assert "and 18 more reasons; --verbose shows all" in run("quantize", "m.onnx").stdout
    assert "reason 29" in run("quantize", "m.onnx", "--verbose").stdout


def test_json_is_the_only_thing_on_stdout(run: Run, fake_api: Any) -> None:
    fake_api.answer = outcome()
    result = run("quantize", "m.onnx", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["sqnr_db"] == 31.25


def test_what_a_reader_prints_does_not_spoil_the_json(run: Run, fake_api: Any) -> None:
    def chatty() -> SimpleNamespace:
        print("loading samples")
        return outcome()

    fake_api.answer = chatty
    result = run("quantize", "m.onnx", "--json")
    assert json.loads(result.stdout)["preset"] == "w8a8"
    assert "loading samples\n" in result.stderr
    assert "loading samples\n" in run("quantize", "m.onnx").stdout


def test_a_growing_file_is_called_larger(run: Run, fake_api: Any) -> None:
    fake_api.answer = outcome({**RESULT, "size_bytes": {"before": 1000, "after": 1500}, "top1_agreement": None})
    text = run("quantize", "m.onnx").stdout
    assert "1.50x larger" in text
    assert "top-1" not in text


def test_targets_are_a_table_or_one_object(run: Run, fake_api: Any) -> None:
    fake_api.answer = [{"name": "a", "needs_data": True}, {"name": "bb", "needs_data": False}]
    assert run("targets").stdout.split() == ["name", "needs", "data", "a", "yes", "bb", "no"]
    assert json.loads(run("targets", "--json").stdout) == {"targets": fake_api.answer}


def test_presets_are_a_table_or_one_object(run: Run, fake_api: Any) -> None:
    known = {"activations": "static", "activation_bits": 16, "bits": 4, "needs_data": True, "smooth": None}
    fake_api.answer = [{"name": "a", "description": "what it does", **known}]
    titles, row = run("presets").stdout.splitlines()
    assert titles.split() == ["name", "needs", "data", "weight", "bits", "activations", "description"]
    assert row.split() == ["a", "yes", "4", "16", "bits,", "calibrated", "what", "it", "does"]
    assert "smooth" in run("presets", "--verbose").stdout
    assert json.loads(run("presets", "--json").stdout) == {"presets": fake_api.answer}


@pytest.mark.parametrize(
    ("arguments", "name", "args", "kwargs"),
    [
        (
            "quantize m.onnx",
            "quantize",
            (Path("m.onnx"),),
            {
                "output": None,
                "calibration": None,
                "benchmark": True,
                "force": False,
                "exclude": (),
                "range": None,
                "bias_correct": None,
            },
        ),
        (
            "quantize m -o o -p w8 -c d.npz --format qdq --percentile 99.9 --symmetric --per-tensor --target cpu "
            "--exclude a --exclude b --include c --op-type Conv --recipe r.yaml --stats s.npz --no-bias-correct "
            "--min-sqnr 20 --max-drop 1 --threads 2 --budget 5 --no-benchmark --force "
            "--metric pkg.mod:score --search-state state.json --resume",
            "quantize",
            (Path("m"),),
            {
                "output": Path("o"),
                "preset": "w8",
                "calibration": "d.npz",
                "format": "qdq",
                "range": "percentile",
                "percentile": 99.9,
                "symmetric": True,
                "per_channel": False,
                "bias_correct": False,
                "target": "cpu",
                "exclude": ("a", "b"),
                "include": ("c",),
                "op_types": ("Conv",),
                "recipe": Path("r.yaml"),
                "statistics": Path("s.npz"),
                "min_sqnr": 20.0,
                "max_drop": 1.0,
                "threads": 2,
                "budget": 5.0,
                "metric": "pkg.mod:score",
                "search_state": Path("state.json"),
                "resume": True,
                "cache": True,
                "benchmark": False,
                "force": True,
            },
        ),
        (
            "calibrate m -c mod:fn -o s.npz --resume --engine local --provider P --threads 3",
            "calibrate",
            (Path("m"), Path("s.npz")),
            {"calibration": "mod:fn", "resume": True, "provider": "P", "threads": 3},
        ),
        ("compare a b -c d", "compare", (Path("a"), Path("b")), {"data": "d", "metric": None}),
        ("compare a b -c d --metric top1", "compare", (Path("a"), Path("b")), {"data": "d", "metric": "top1"}),
        ("calibrate m -c d -o s --moments", "calibrate", (Path("m"), Path("s")), {"moments": True, "resume": False}),
        ("quantize m --max-memory 0.5", "quantize", (Path("m"),), {"max_memory": 0.5}),
        (
            "diagnose a b -c d --recipe r.yaml --recipe-out o.yaml --threads 2",
            "diagnose",
            (Path("a"), Path("b")),
            {"data": "d", "recipe": Path("r.yaml"), "recipe_out": Path("o.yaml"), "threads": 2},
        ),
        (
            "benchmark a b c -c d --threads 1 --seconds 0.5",
            "benchmark",
            ([Path("a"), Path("b"), Path("c")],),
            {"data": "d", "threads": 1, "seconds": 0.5},
        ),
        ("inspect a", "inspect", (Path("a"),), {}),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_options_reach_the_api(
    run: Run, fake_api: Any, arguments: str, name: str, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    fake_api.answer = outcome()
    result = run(*arguments.split(), "--json")
    assert result.exit_code == 0, result.stderr
    ((called, given_args, given_kwargs),) = fake_api.calls
    assert (called, given_args) == (name, args)
    assert {key: given_kwargs.get(key) for key in kwargs} == kwargs


def test_calibration_prints_its_summary(run: Run, fake_api: Any) -> None:
    fake_api.answer = outcome()
    result = run("calibrate", "m", "-c", "d", "-o", "s")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "the summary\n", "warning: first warning\n")


OUTPUT = {
    "sqnr_db": 30.04, "cosine": 0.9995, "max_abs_error": 0.25, "top1_agreement": 0.975, "finite": True,
    "kind": "classes", "measure": "changed decisions", "value": 0.025, "loss": 0.0012,
}  # fmt: skip
NOTHING = {"sqnr_db": None, "cosine": None, "max_abs_error": None, "top1_agreement": None, "finite": True}
TIMING = {"median_ms": 2.5, "p10": 2.25, "p90": 3.0, "runs": 9, "size_bytes": 57_300, "peak_memory_bytes": 13_200_000}
OTHERS: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "compare a b -c d",
        {
            "samples": 40,
            "outputs": {"logits": OUTPUT, "ids": NOTHING, "same": {**OUTPUT, "sqnr_db": float("inf")}},
            "accuracy": {"float": 0.9, "quantized": 0.895},
            "perplexity": {"float": 20.0, "quantized": 20.5},
            "token_agreement": 0.9,
            "token_divergence": 0.0123,
            "metric": {"name": "perplexity", "quantized": 20.5, "reference": 20.0},
        },
        [
            "40 samples",
            "output kind loss measure SQNR cosine mean error largest error\n",
            "logits classes 0.12 % 2.5 % changed decisions 30.0 dB 0.999500 - 0.25",
            "ids - - - - - -",
            "0.12 % 2.5 % changed decisions outputs are equal",
            "90.00 % -> 89.50 %",
            "perplexity 20 -> 20.5 (+2.50 %)",
            "tokens the same one most likely for 90.0 %, divergence 0.0123 nats",
            "metric perplexity: 20 -> 20.5",
        ],
    ),
    (
        "benchmark a b",
        {
            "models": [
                {**TIMING, "name": "a", "ratio": 1.0},
                {**TIMING, "name": "b", "median_ms": 5.0, "ratio": 0.5, "peak_memory_bytes": None},
            ]
        },
        [
            "model median ms 10 % 90 % against first size peak memory",
            "a 2.500 2.250 3.000 - 57.3 kB 13.2 MB",
            "b 5.000 2.250 3.000 2.00x slower 57.3 kB -",
        ],
    ),
    (
        "inspect a",
        {
            "facts": {
                "quantized": ["QDQ"],
                "ir_version": 8,
                "opset": {"": 17, "com.microsoft": 1},
                "size_bytes": 57_300,
                "inputs": ["x: float32 (1)", "z: int64 ()"],
            },
            "coverage": {"Conv": {"quantized": 4, "total": 5}},
            "nodes": [
                {
                    "name": f"c{i}",
                    "op_type": "Conv",
                    "state": ("integer" if i > 1 else "stored") if i else "float",
                    "how": ("QDQ" if i > 1 else "weight storage") if i else "",
                    "reason": "" if i else "its weight is not constant",
                }
                for i in range(5)
            ],
            "weights": [
                {
                    "name": f"w{i}",
                    "shape": [3, 4],
                    "dtype": "int8" if i else "float32",
                    "granularity": "per channel" if i else None,
                    "low": -1.0,
                    "high": 2.0,
                    "sqnr_db": None if i else 44.0,
                }
                for i in range(20)
            ],
        },
        [
            "quantized QDQ\n",
            "ir version 8",
            "opset 17, com.microsoft 1",
            "size 57.3 kB",
            "inputs x: float32 (1)\n z: int64 ()\n",
            "operator nodes on integers weights stored float\n",
            "Conv 5 3 1 1\n",
            "3 Conv QDQ c2, c3, c4\n",
            "1 Conv weight storage c1\n",
            "nodes operator float because which\n",
            "1 Conv its weight is not constant c0\n",
            "w0 3x4 float32 - -1 to 2 44.0 dB\n",
            "w1 3x4 int8 per channel -1 to 2 -\n",
            "and 8 more weights; --verbose shows all",
        ],
    ),
]


@pytest.mark.parametrize(("arguments", "found", "lines"), OTHERS, ids=lambda value: "")
def test_the_other_commands_print_tables_or_one_object(
    run: Run, fake_api: Any, arguments: str, found: dict[str, Any], lines: list[str]
) -> None:
    fake_api.answer = outcome(found)
    result = run(*arguments.split())
    assert result.exit_code == 0, result.stderr
    text = re.sub(" +", " ", result.stdout)
    for line in lines:
        assert line in text
    assert set(json.loads(run(*arguments.split(), "--json").stdout)) == set(found)


def test_verbose_shows_every_weight_and_operator(run: Run, fake_api: Any) -> None:
    fake_api.answer = outcome(OTHERS[2][1])
    assert "w19" in run("inspect", "a", "-v").stdout
    fake_api.answer = [{"name": "cpu", "operators": ["Conv", "Gemm"], "description": "d", "formats": ["qdq"]}]
    assert run("targets").stdout.split() == ["name", "formats", "description", "cpu", "qdq", "d"]
    assert "cpu runs on integers: Conv, Gemm\n" in run("targets", "-v").stdout


PROGRAM = f"""
import sys, types, onnxq
from types import SimpleNamespace
from onnxq.cli import main
api = types.ModuleType("onnxq.api")
sys.modules["onnxq.api"] = api
vars(onnxq)["api"] = api
nan, inf = float("nan"), float("inf")
result = {{**{ {k: v for k, v in RESULT.items() if k != "sqnr_db"}!r}, "sqnr_db": 31.25}}
result["kept_float"].append({{"node": "mod\\u00e8le\\u00d7", "op_type": "Tanh", "reason": "\\u2026"}})
def quantize(*args, progress=None, **kwargs):
    if progress:
        progress("load", 0, None)
        for i in range(5):
            progress("calibrate", i, 4)
    return SimpleNamespace(output="o", warnings=[], to_dict=lambda: result)
api.quantize = quantize
main()
"""


def on_terminal(columns: int, **variables: str) -> str:
    """What the program shows on a terminal of so many columns, with all three streams on it."""
    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "quantize", "m.onnx"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**kept, "TERM": "xterm-256color", **variables},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0, shown
    return shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_terminal_gets_progress_colour_and_its_width() -> None:
    shown = on_terminal(60)
    assert "calibrate" in shown
    assert "4/4" in shown
    assert "\x1b[1m" in shown
    after = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "")
    table = after[after.index("stayed float") :]
    assert max(map(len, table.splitlines())) <= 60


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_no_color_is_respected() -> None:
    shown = on_terminal(60, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_terminal_without_unicode_and_with_few_columns_works() -> None:
    shown = on_terminal(20, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C", TERM="dumb")
    assert shown.isascii()
    assert "mod" in shown


def test_a_pipe_gets_plain_whole_lines_in_any_encoding() -> None:
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}
    command = [sys.executable, "-c", PROGRAM, "quantize", "m.onnx"]
    done = subprocess.run(command, capture_output=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    assert f"m.onnx -> {LONG}" in done.stdout.decode().splitlines()
    assert "mod\\xe8le\\xd7" in done.stdout.decode()
