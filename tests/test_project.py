"""What the project's own files promise about one another."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from onnxq._version import __version__


def requirements(lines: list[str], operator: str) -> dict[str, str]:
    """Versions by name of lines such as ``numpy>=1.26``; a trailing ``.0`` says nothing."""
    pairs = (line.split(operator) for line in lines if operator in line)
    return {name: re.sub(r"(\.0)+$", "", version) for name, version in pairs}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_lower_bounds_are_the_oldest_set_that_is_tested(root: Path) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = (root / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    assert requirements(project["dependencies"], ">=") == requirements(oldest, "==")


def test_the_release_is_named_alike_everywhere(root: Path) -> None:
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[([\d.]+)\] - (\S+)$", changelog, flags=re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (__version__, str(citation["date-released"]))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_the_navigation_has_every_page(root: Path) -> None:
    navigation = re.findall(r"(\S+\.md)$", (root / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(navigation) == sorted(path.name for path in (root / "docs").glob("*.md"))
