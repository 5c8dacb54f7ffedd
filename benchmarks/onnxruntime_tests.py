"""onnxruntime's own tests of quantization, run against `onnxq.compat.onnxruntime`.

``python -m benchmarks.onnxruntime_tests FOLDER`` takes copies of ``onnxruntime/test/python/quantization``, changes
their imports in a temporary folder, and runs each test that calls onnxq twice: as it is, and without its assertions
about which operators stand in the model how often and of which integer type (three helpers of ``op_test_utils``, which
then do nothing), and with short tensors moved, when a file is read, to the fields of the protobuf that the tests look
into. It prints the table by file, and with ``--failures`` the error of every failure. Needs pytest, and an
onnx for which ``op_test_utils`` works (1.18).
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import ROOT
from onnxq.compat import onnxruntime as ours

PACKAGE = "onnxruntime.quantization"
OURS = "onnxq.compat.onnxruntime"
RENAMED = {
    "matmul_4bits_quantizer": "matmul_nbits_quantizer",
    "MatMul4BitsQuantizer": "MatMulNBitsQuantizer",
}
"""Names of onnxruntime 1.21 that are others since."""

PUBLIC = {*ours.__all__, "matmul_nbits_quantizer"} - {"TensorData", "TensorsData"}
"""What comes from onnxq; ranges that a test hands to onnxruntime's own quantizer have to be of its own class."""

FUNCTIONS = (
    "quantize_static",
    "quantize_dynamic",
    "quantize",
    "quant_pre_process",
    "MatMulNBitsQuantizer",
    "create_calibrator",
)

NOTICED = f"""
import functools
import pytest
from onnxq.compat import onnxruntime as ours
from onnxq.compat.onnxruntime import matmul_nbits_quantizer

asked = []


def noticed(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        asked.append(True)
        return function(*args, **kwargs)

    return call


for name in {FUNCTIONS!r}:
    setattr(ours, name, noticed(getattr(ours, name)))
matmul_nbits_quantizer.MatMulNBitsQuantizer = ours.MatMulNBitsQuantizer


@pytest.fixture(autouse=True)
def notice(record_property):
    asked.clear()
    yield
    if asked:
        record_property("asked", "yes")
"""
"""A conftest.py that notes which tests call onnxq at all; the others test other parts of onnxruntime."""

WITHOUT_COUNTS = """
import op_test_utils

for name in ("check_op_type_count", "check_op_type_order", "check_qtype_by_node_type"):
    setattr(op_test_utils, name, lambda *args, **kwargs: None)

import onnx


def in_typed_fields(read):
    @functools.wraps(read)
    def load(*args, **kwargs):
        model = read(*args, **kwargs)
        for tensor in model.graph.initializer:
            field = {1: "float_data", **dict.fromkeys((2, 3, 4, 5, 6), "int32_data")}.get(tensor.data_type)
            if field and tensor.raw_data and len(tensor.raw_data) <= 1024:
                numbers = onnx.numpy_helper.to_array(tensor).ravel().tolist()
                tensor.ClearField("raw_data")
                getattr(tensor, field).extend(numbers)
        return model

    return load


onnx.load = onnx.load_model = in_typed_fields(onnx.load)
"""


def rewritten(source: str) -> str:
    """Source text whose imports of public names come from onnxq; the others stay."""
    lines = source.splitlines()
    for node in reversed([n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]):
        if changed := _statements(node):
            indent = " " * node.col_offset
            lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in changed]
    text = "\n".join(lines) + "\n"
    for old, new in RENAMED.items():
        text = text.replace(f".{old}", f".{new}")
    return text


def _statements(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        wanted = [alias for alias in node.names if alias.name == PACKAGE and alias.asname]
        return [f"import {OURS} as {alias.asname}" for alias in wanted]
    module = node.module or ""
    if module == "onnxruntime" and [alias.name for alias in node.names] == ["quantization"]:
        return [f"import {OURS} as {node.names[0].asname or 'quantization'}"]
    if module != PACKAGE and not module.startswith(PACKAGE + "."):
        return []
    found = []
    for alias in node.names:
        name, shown = RENAMED.get(alias.name, alias.name), alias.asname or alias.name
        found.append(f"from {OURS if name in PUBLIC else module} import {name} as {shown}")
    return found


def run(folder: Path, *, counts: bool) -> dict[str, dict[str, str]]:
    """For each file, what became of each test that calls onnxq: empty for passed, or the error of the failure."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for path in sorted(folder.glob("*.py")):
            (work / path.name).write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
        (work / "conftest.py").write_text(NOTICED + ("" if counts else WITHOUT_COUNTS), encoding="utf-8")
        report = work / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "."]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=work, env=environment, stdout=subprocess.DEVNULL, check=False)
        return _read(report)


def _read(report: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("properties/property[@name='asked']") is None:
            continue
        file, _, group = case.get("classname", "").rpartition(".")
        failure = case.find("failure")
        found.setdefault(file, {})[f"{group}::{case.get('name')}"] = "" if failure is None else _error(failure)
    return found


def _error(failure: ElementTree.Element) -> str:
    lines = [line[1:].strip() for line in (failure.text or "").splitlines() if line.startswith("E  ")]
    return next((line for line in lines if "Error" in line.split(":")[0]), failure.get("message") or "failed")


def table(whole: dict[str, dict[str, str]], numbers: dict[str, dict[str, str]]) -> str:
    """Markdown: by file, how many tests there are, how many pass, and how many do without the counting of nodes."""
    rows = ["| tests in | tests | pass | without counts of nodes |", "|---|--:|--:|--:|"]
    total: Counter[str] = Counter()
    for file, tests in sorted(whole.items()):
        row = {
            "tests": len(tests),
            "pass": sum(not became for became in tests.values()),
            "numbers": sum(not numbers.get(file, {}).get(test, "gone") for test in tests),
        }
        total.update(row)
        rows.append(f"| `{file}` | {row['tests']} | {row['pass']} | {row['numbers']} |")
    return "\n".join([*rows, f"| all | {total['tests']} | {total['pass']} | {total['numbers']} |"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="copies of onnxruntime/test/python/quantization")
    parser.add_argument("--failures", action="store_true", help="also the error of every failure")
    given = parser.parse_args(arguments)
    if not (given.folder / "op_test_utils.py").is_file():
        parser.error(f"{given.folder}: has no op_test_utils.py; pass a copy of onnxruntime's tests of quantization")
    whole, numbers = run(given.folder, counts=True), run(given.folder, counts=False)
    print(table(whole, numbers))
    if given.failures:
        for title, results in (("as they are", whole), ("without counts of nodes", numbers)):
            print(f"\n{title}:")
            for file, tests in results.items():
                print("".join(f"  {file} {test}: {became}\n" for test, became in tests.items() if became), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
