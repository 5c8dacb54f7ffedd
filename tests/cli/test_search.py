"""The search from the command line: what is printed and written, and what a failure says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

from tests.search.within.test_within_limits import BAD, DB, feeds, network

Run = Callable[..., Result]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network with a planted layer and its samples, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(network().SerializeToString())
    np.savez(tmp_path / "data.npz", x=np.concatenate([feed["x"] for feed in feeds(4)]))
    (tmp_path / "mine.py").write_text("def outputs(runner):\n    return len(runner.output_names)\n")
    return "quantize net.onnx -o out.onnx -c data.npz -p w8a8 --per-tensor --no-benchmark --threads 1".split()


def test_the_trail_is_printed(run: Run, given: list[str], tmp_path: Path) -> None:
    result = run(*given, "--min-sqnr", DB)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("tried"))
    assert lines[header].split() == ["tried", "SQNR", "time,", "estimated", "took", "verdict"]
    assert lines[header + 1].startswith("as given ")
    assert lines[header + 1].endswith("outside the limit")
    assert sum(line.endswith("chosen") for line in lines) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "mine.py", "net.onnx", "out.onnx"]


def test_the_json_object_has_trail_and_recipe(run: Run, given: list[str], tmp_path: Path) -> None:
    result = json.loads(run(*given, "--min-sqnr", DB, "--json").stdout)
    assert result["sqnr_db"] >= DB
    assert result["trail"][0]["tried"] == "as given"
    assert set(result["trail"][0]) == {
        *("tried", "drop", "sqnr_db", "size", "estimated_us", "seconds", "inside", "kept", "verdict", "loss")
    }
    assert f"match: layer{BAD}" in result["recipe"]
    (tmp_path / "found.yaml").write_text(result["recipe"])
    again = run(
        "quantize", "net.onnx", "-o", "again.onnx", "-c", "data.npz", "--recipe", "found.yaml", "--no-benchmark"
    )
    assert again.exit_code == 0
    assert "as given" not in again.stdout
    names = [sorted(node.name for node in onnx.load(name).graph.node) for name in ("out.onnx", "again.onnx")]
    assert names[0] == names[1]


def test_nothing_inside_the_limit_exits_with_3_and_writes_nothing(run: Run, given: list[str], tmp_path: Path) -> None:
    result = run(*given, "--min-sqnr", "190")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: verification failed, nothing was written: no recipe of ")
    assert "keeps --min-sqnr 190; the best (" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()
    assert not (tmp_path / "out.onnx.search.json").exists()


def test_a_function_is_the_metric(run: Run, given: list[str]) -> None:
    result = json.loads(run(*given, "--max-drop", "0", "--metric", "mine:outputs", "--json").stdout)
    assert result["trail"] == [], "a metric that does not fall is inside at once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "mine:outputs"], "--metric: there is no limit to hold it to; pass --max-drop"),
        (["--metric", "mine:nothing", "--max-drop", "1"], "--metric mine:nothing: cannot be imported: AttributeError"),
        (
            ["--metric", "accurcy", "--max-drop", "1"],
            "--metric: no 'accurcy'; there are top1, sqnr, accuracy, perplexity, divergence and module:function",
        ),
    ],
)
def test_a_metric_that_makes_no_sense_is_a_usage_error(
    run: Run, given: list[str], options: list[str], message: str
) -> None:
    result = run(*given, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
