"""The documentation is true: the reference names every command and option, and the worked examples fit the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from onnxq import errors
from onnxq.cli._app import COMMANDS, EPILOG, app


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_names_every_option(root: Path, name: str) -> None:
    reference = (root / "docs" / "commands.md").read_text(encoding="utf-8")
    command = app.get_command(click.Context(app), name)
    assert command is not None
    general, *sections = re.split(r"^## ", reference, flags=re.MULTILINE)
    (section,) = [text for text in sections if f"onnxq {name}" in text.splitlines()[0]]
    declared = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
    flags = {flag for flag in declared if flag.startswith("-")}
    written = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", general + section))
    assert flags - written == set()
    documented = set(re.findall(r"^\| `(--?[a-z-]+)", section, flags=re.MULTILINE))
    assert documented - flags == set()


def hunks(text: str) -> list[tuple[str, str]]:
    """(file, lines that have to be there) of every hunk of the diffs in a Markdown text that changes a file."""
    found = []
    for diff in re.findall(r"^```diff\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
            source, target, *lines = part.splitlines()
            if source != "/dev/null":
                bodies = re.split(r"^@@.*\n", "\n".join(lines), flags=re.MULTILINE)[1:]
                olds = [[line[1:] for line in body.splitlines() if line[:1] in " -"] for body in bodies]
                found += [(target.removeprefix("+++ b/"), "\n".join(old)) for old in olds]
    return found


def test_the_worked_examples_fit_the_code(root: Path) -> None:
    found = hunks((root / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(found) >= 10
    for file, old in found:
        assert old, f"{file}: a hunk without context"
        assert f"\n{old}\n" in (root / file).read_text(encoding="utf-8"), f"{file}: has no {old!r}"


def tables(text: str) -> list[tuple[str, list[str]]]:
    """(the text in front of it, its rows) of every table; of one that follows another at once, the other's text."""
    found: list[tuple[str, list[str]]] = []
    before: list[str] = []
    for block in re.split(r"\n{2,}", text):
        lines = block.splitlines()
        if len(lines) > 2 and re.fullmatch(r"\|[-| :]+\|", lines[1]):
            found.append(("\n".join(before), lines[2:]))
        else:
            before = [*before[-1:], block] if not block.startswith("#") else [block]
    return found


def holds_figures(rows: list[str]) -> bool:
    """Whether most rows have a number with decimals in a cell that is no code and no link."""
    cells = [re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", "", row.split("|", 2)[2]) for row in rows]
    return sum(bool(re.search(r"\d\.\d", cell)) for cell in cells) >= max(2, len(rows) // 2)


def test_figures_say_when_and_where_they_were_measured(root: Path) -> None:
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    measured = [(page, *table) for page in pages for table in tables(page.read_text(encoding="utf-8"))]
    figures = [(page, before) for page, before, rows in measured if holds_figures(rows)]
    assert len(figures) > 15
    for page, before in figures:
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", before), f"{page.name}: no date in {before[-200:]!r}"
        assert page.name == "comparison.md" or "comparison.md#the-machine" in before, f"{page.name}: {before[-200:]!r}"


def test_exceptions_and_exit_codes_are_those_of_the_code(root: Path) -> None:
    page = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `(\w+Error)`[^|]*\|[^|]*\| (\d+) \|$", page, flags=re.MULTILINE))
    raised = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.OnnxqError)]
    assert written == {each.__name__: str(each.exit_code) for each in raised}
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    result = CliRunner().invoke(app, ["quantize", "gone.onnx", "-c", "gone.npz", "--json"])
    got = json.loads(result.stdout)
    example = json.loads(shown)
    assert list(got) == list(example) and list(got["error"]) == list(example["error"])
    assert got["error"]["exit_code"] == result.exit_code == getattr(errors, example["error"]["type"]).exit_code


def test_exit_codes_of_the_program_are_the_documented_ones(root: Path) -> None:
    page = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    table = {code for row in re.findall(r"^\| ([\d, ]+) \|", page, flags=re.MULTILINE) for code in row.split(", ")}
    said = set(re.findall(r"^  (\d+) ", EPILOG, flags=re.MULTILINE))
    assert said < table
    assert {"0", "1", "2", "3", "130"} == said


def test_the_changelog_repeats_nothing(root: Path) -> None:
    entries = re.findall(r"^- .*(?:\n  .*)*", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(entries) > 50
    assert sorted(entry for entry in set(entries) if entries.count(entry) > 1) == []
