"""The house keeps its measures: small files, functions and folders, one name a module, no circle of imports."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onnxq"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 15, 400, 80, 8
ALONE = {"__init__", "__main__", "_version", "errors", "api"}

# The public functions list what a user can ask for by name; their arguments are documented one by one.
PUBLIC = {("api.py", "quantize"), ("api.py", "calibrate"), ("diagnosis/examine.py", "diagnose")}
# Signatures that are another library's own.
FOREIGN = "compat/"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def code_lines(function: Function) -> int:
    """Lines of a function without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def parameters(function: Function) -> int:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def functions() -> list[tuple[Path, Function]]:
    return [(path, node) for path in FILES for node in ast.walk(TREES[path]) if isinstance(node, Function)]


def test_nothing_else_stands_alone() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} <= ALONE


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in FILES if path.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_folder_is_crowded() -> None:
    folders = Counter(path.parent for path in FILES if path.stem != "__init__")
    assert [inside(folder) for folder, count in folders.items() if count > MOST_FILES] == []


def test_no_file_is_long() -> None:
    lengths = {inside(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_long() -> None:
    long = {
        f"{inside(path)}: {node.name}": code_lines(node)
        for path, node in functions()
        if code_lines(node) > MOST_FUNCTION_LINES
    }
    assert long == {}


def test_no_function_takes_many_parameters() -> None:
    many = {
        f"{inside(path)}: {node.name}": parameters(node)
        for path, node in functions()
        if parameters(node) > MOST_PARAMETERS and (inside(path), node.name) not in PUBLIC
        if not node.name.startswith("command")  # click gives a command all its options
        if not inside(path).startswith(FOREIGN)
    }
    assert many == {}


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports when it is imported itself."""
    found = set()
    checking = {
        id(child)
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in checking:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return found & known.keys()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = {
        ".".join(("onnxq", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in FILES
    }
    return {name: imports_of(path, known) - {name} for name, path in known.items()}


def test_no_circle_of_imports(graph: dict[str, set[str]]) -> None:
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []
