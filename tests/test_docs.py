"""The documentation is true: the reference names every command and option, and the worked examples fit the code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from onnxq.cli._app import COMMANDS, app


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


def test_the_changelog_repeats_nothing(root: Path) -> None:
    entries = re.findall(r"^- .*(?:\n  .*)*", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(entries) > 50
    assert sorted(entry for entry in set(entries) if entries.count(entry) > 1) == []
