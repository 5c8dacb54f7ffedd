"""A damaged state of a search is said in one line, never met later on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from onnxq.errors import OnnxqError
from onnxq.recipe.recipe import Recipe
from onnxq.search.within.history import StepOutcome, Suspect
from onnxq.search.within.state import SearchState

RECIPE = Recipe(preset="w8a8")
VALUES: list[Any] = [None, True, -1, 1.5, "text", [], {}, [1], {"a": 1}, float("nan"), 10**400]


def written(path: Path) -> dict[str, Any]:
    state = SearchState(path, "key", resume=False)
    state.put_outcome(RECIPE, StepOutcome(0.1, 30.0, 5.0, 100), 3.0)
    state.put_suspects(RECIPE, [Suspect("conv", 0.1, "mse", price=2.0)])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in JSON with each of its keys."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def test_any_damage_is_one_line_or_a_state_that_works(tmp_path: Path) -> None:
    path, chance = tmp_path / "s.json", random.Random(0)
    content = written(path)
    assert SearchState(path, "key", resume=True).outcome(RECIPE, 1.0) == StepOutcome(0.1, 30.0, 5.0, 100)
    refused = 0
    for _ in range(400):
        damaged = json.loads(json.dumps(content))
        holder, key = chance.choice(places(damaged))
        match chance.randrange(3):
            case 0:
                holder.pop(key)
            case 1:
                holder[key] = chance.choice(VALUES)
            case _ if isinstance(holder, dict):
                holder["other"] = holder.pop(key)
            case _:
                holder.append(3)
        path.write_text(json.dumps(damaged))
        try:
            state = SearchState(path, "key", resume=True)
            state.outcome(RECIPE, 1.0)
            state.suspects(RECIPE)
            state.clock()
        except OnnxqError as error:
            refused += 1
            assert "is not the state of a search" in str(error)
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"null", b'{"format": 1}'])
def test_what_is_no_state(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(OnnxqError, match="is not the state of a search"):
        SearchState(path, "key", resume=True)
