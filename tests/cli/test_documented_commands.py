"""The commands of the documentation run as they stand and print what it says that they print."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.language_models import genai_folder

Run = Callable[..., Result]

# Words that begin the lines of a report; what is behind them depends on the machine, or on the samples.
LINES = ("preset", "size", "latency", "SQNR", "top-1", "loss", "accuracy")


def blocks(root: Path, page: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```", (root / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def clone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("models", "calibration_data"):
        shutil.copytree(root / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tutorials_run_in_their_order(run: Run, root: Path, clone: Path) -> None:
    lines = [line for block in blocks(root, "docs/tutorials.md") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("onnxq ")]
    assert len(commands) >= 12
    for command in commands:
        if command[0] == "quantize" and not {"-p", "--recipe"} & set(command):
            continue  # auto measures for as long as its budget
        quick = {"quantize": ["--no-benchmark"], "benchmark": ["--seconds", "0.05"]}.get(command[0], [])
        result = run(*command, *quick)
        assert result.exit_code == 0, f"{command}: {result.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_a_report_has_the_lines_that_are_shown(run: Run, root: Path, clone: Path, page: str) -> None:
    (shown,) = [block for block in blocks(root, page) if "preset " in block]
    (command,) = {
        line.split("&&")[-1].strip() for block in blocks(root, page) for line in block.splitlines()
        if "onnxq quantize models/" in line
    }  # fmt: skip
    result = run(*shlex.split(command)[1:], "-p", "w8a8")

    def report(text: str) -> list[str]:
        words = [line.split()[0] for line in text.splitlines() if line.strip()]
        return [word for word in words if word in LINES]

    assert result.exit_code == 0, result.stderr
    assert report(result.stdout) == report(shown) == list(LINES)
    for line in (r"over (40|64) samples", "accuracy  100.00 % -> 100.00 %"):  # 64 where those held out leave it open
        assert re.search(line, shown) and re.search(line, result.stdout)
    (before,) = re.findall(r"^size +(\S+ kB)", shown, flags=re.MULTILINE)
    assert f"{before} -> " in result.stdout


def _rows(shown: str) -> dict[str, tuple[float, float]]:
    """Size in kB and SQNR in dB of each candidate in a printed report."""
    table = re.findall(r"^(\S+(?: \S+)*) {2,}.*? {2,}([\d.]+) kB {2,}([\d.]+) dB", shown, flags=re.MULTILINE)
    return {name: (float(size), float(sqnr)) for name, size, sqnr in table}


def _heads(text: str) -> list[str]:
    """The first word of each line, and whole headings of tables: what depends on no machine."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [line if line.split()[0] in HEADINGS else line.split()[0] for line in map(_spaced, lines)]


HEADINGS = ("candidate", "operator", "nodes", "graph")


def _spaced(line: str) -> str:
    return re.sub(r" {2,}", "  ", line.rstrip())


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_auto_prints_the_tables_that_are_shown(run: Run, root: Path, clone: Path, page: str) -> None:
    (shown,) = [block for block in blocks(root, page) if "preset " in block]
    model = next(word for block in blocks(root, page) for word in block.split() if re.match(r"models/.+\.onnx", word))
    result = run("quantize", model)
    assert result.exit_code == 0, result.stderr
    headings = [line for line in _heads(shown) if line.split()[0] in HEADINGS]
    printed = [line for line in _heads(result.stdout) if line.split()[0] in HEADINGS]
    assert len(printed) == 3 and headings == printed[: len(headings)]

    # Speed, and which candidates are tried, is the machine's; size and quality of each are not.
    expected, found = _rows(shown), _rows(result.stdout)
    both = {name for name in expected.keys() & found.keys() if not name.startswith("mixed")}  # that follows the times
    assert "w8a8" in both and len(both) >= 2
    for name in both:
        assert found[name] == pytest.approx(expected[name], rel=0.02), name

    if len(headings) == 3:
        nodes = [re.sub(r" {2,}", " ", line).split(" ")[:2] for line in shown.split("operator ")[1].splitlines()[1:]]
        for operator, count in nodes[: nodes.index([""])]:
            assert re.search(rf"^{operator} +{count} ", result.stdout, re.MULTILINE)


@pytest.mark.text
def test_a_folder_has_the_lines_that_are_shown(
    run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    genai_folder(Path("phi-genai"))
    Path("prompts.txt").write_text("\n".join(f"a line of text, number {i}" for i in range(8)))
    page = blocks(root, "docs/language-models.md")
    (shown,) = [block for block in page if block.startswith("phi-genai -> phi-small")]
    lines = [line for block in page for line in block.splitlines()]
    command = next(line for line in lines if line.startswith("onnxq quantize phi-genai"))
    result = run(*shlex.split(command)[1:], "-p", "w8", "--budget", "5")
    assert result.exit_code == 0, result.stderr
    assert _heads(result.stdout) == _heads(shown)
