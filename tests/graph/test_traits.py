"""Facts of operators stand in one table: their names exist, and no other file spells a trait out."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest

import onnxq
from onnxq.graph.traits import TRAITS, Trait, having


def test_every_operator_exists() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    known |= {schema.name for schema in runtime.get_all_operator_schema()}
    assert set(TRAITS) <= known, set(TRAITS) - known


@pytest.mark.parametrize("trait", list(Trait), ids=lambda trait: trait.name)
def test_every_trait_has_operators(trait: Trait) -> None:
    assert having(trait)


def _spelled_out(path: Path) -> list[tuple[int, frozenset[str]]]:
    """Sets and lists of words in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Set | ast.Tuple | ast.List):
            words = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            words = node.value.split()
        else:
            continue
        found.append((node.lineno, frozenset(words)))
    return found


def test_no_file_spells_a_trait_out() -> None:
    root = Path(onnxq.__file__).parent
    traits = {having(trait): trait.name for trait in Trait if len(having(trait)) > 2}
    again = [
        f"{path.relative_to(root)}:{line}: {traits[words]}"
        for path in sorted(root.rglob("*.py"))
        if path.name != "traits.py"
        for line, words in _spelled_out(path)
        if words in traits
    ]
    assert not again, again
