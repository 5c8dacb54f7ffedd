"""The packages of onnxq import one way, and each library is imported in its one package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onnxq"

# Packages of one tier are siblings and do not import each other; a tier imports the tiers above it.
TIERS = [
    ["_version", "errors"],
    ["recipe", "core"],
    ["stats", "algorithms"],
    ["data"],
    ["graph"],
    ["targets"],
    ["plan"],
    ["runtime", "passes"],
    ["verify"],
    ["report", "qat"],
    ["pipeline"],
    ["diagnosis"],
    ["search"],
    ["request"],
    ["folders", "modules"],
    ["api"],
    ["compat", "cli"],
    ["__main__"],
]
LEVEL = {package: level for level, packages in enumerate(TIERS) for package in packages}

# Third-party library: the packages, or single files, that may import it.
HOMES = {
    "onnx": ["graph"],
    "onnx_ir": ["graph"],
    "google": ["graph"],  # protobuf, which onnx is made of
    "onnxruntime": ["runtime"],
    "ray": ["runtime/engines/ray_engine.py"],
    "threadpoolctl": ["core/processors.py"],
    "torch": ["qat"],
    "onnxscript": ["qat"],  # torch.onnx exports with it
    "typing_extensions": ["api"],  # for the type checker alone: keywords by `Unpack` before Python 3.12
    "yaml": ["recipe"],
    "click": ["cli"],
    "rich": ["cli"],
    "jinja2": ["report"],
    "matplotlib": ["report"],
    "tokenizers": ["data"],
    "PIL": ["data"],
    "soundfile": ["data"],
    "pyarrow": ["data"],
}
NUMBERS_ONLY = {
    "core": {"numpy", "ml_dtypes", "threadpoolctl"},
    "stats": {"numpy"},
    "algorithms": {"numpy", "ml_dtypes"},
}
FREE = {"numpy", "ml_dtypes"} | set(sys.stdlib_module_names)
HEAVY = ["onnx", "onnx_ir", "onnxruntime", "torch", "ray", "numpy", "matplotlib", "jinja2"]

# The public API reaches everywhere, on first use; all else keeps the order.
FILES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


def package_of(path: Path) -> str:
    """The package a file belongs to: the first folder, or the file itself at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module named by an import statement anywhere in a file, functions and type checking included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module
            yield node.module
            if node.module == "onnxq":
                yield from (f"onnxq.{alias.name}" for alias in node.names)


def faults(source: str, path: Path) -> list[str]:
    """What a file imports that its package must not, as one line each."""
    package = package_of(path)
    inside = path.relative_to(PACKAGE).as_posix()
    found = []
    for module in imported(ast.parse(source)):
        top, _, rest = module.partition(".")
        if top == "onnxq":
            other = rest.split(".")[0]
            if other and other != package and LEVEL.get(other, LEVEL["api"]) >= LEVEL[package]:
                found.append(f"{inside}: {package} must not import {module}")
        elif top in HOMES:
            homes = HOMES[top]
            if not any(inside in (home, f"{home}.py") or inside.startswith(f"{home}/") for home in homes):
                found.append(f"{inside}: {top} belongs to {', '.join(homes)}")
        elif top not in FREE:
            found.append(f"{inside}: {top} has no home; name one in HOMES")
        if top not in NUMBERS_ONLY.get(package, {top}) and top not in sys.stdlib_module_names and top != "onnxq":
            found.append(f"{inside}: {package} holds numbers only and must not import {top}")
    return found


def test_every_room_has_a_place_in_the_order() -> None:
    assert {package_of(path) for path in FILES} <= set(LEVEL), "add the package to TIERS"


def test_every_folder_is_a_package() -> None:
    assert [path.parent for path in FILES if not (path.parent / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("inside", "source", "fault"),
    [
        ("core/x.py", "import onnxq.stats.statistics", "core must not import onnxq.stats.statistics"),
        ("core/x.py", "from onnxq import stats", "core must not import onnxq.stats"),
        ("stats/x.py", "from onnxq.algorithms.rtn import rtn", "stats must not import onnxq.algorithms.rtn"),
        ("verify/x.py", "def f():\n    from onnxq.api import quantize", "verify must not import onnxq.api"),
        ("plan/x.py", "import onnxruntime as ort", "onnxruntime belongs to runtime"),
        ("runtime/x.py", "from onnx import helper", "onnx belongs to graph"),
        ("runtime/session.py", "import ray", "ray belongs to runtime/engines/ray_engine.py"),
        ("api.py", "from rich.table import Table", "rich belongs to cli"),
        ("stats/x.py", "import ml_dtypes", "stats holds numbers only and must not import ml_dtypes"),
        ("graph/x.py", "import pandas", "pandas has no home"),
    ],
)
def test_a_wrong_import_is_found(inside: str, source: str, fault: str) -> None:
    assert fault in "; ".join(faults(source, PACKAGE / inside))


def test_right_imports_pass() -> None:
    source = "import onnxruntime\nimport numpy as np\nfrom onnxq.graph.files.io import load\nfrom onnxq.plan import x"
    assert faults(source, PACKAGE / "runtime" / "session.py") == []


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import onnxq", []),
        ("import onnxq.cli", []),
        ("import onnxq.errors", []),
        ("import onnxq.core.affine", ["numpy"]),
    ],
)
def test_what_is_light_imports_nothing_heavy(code: str, allowed: list[str]) -> None:
    program = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(allowed)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom onnxq.cli import main\nsys.argv = ['onnxq', '--help']\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "quantize" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
