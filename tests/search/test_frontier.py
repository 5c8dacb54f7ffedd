"""Which candidates are shown as unbeaten, and the command beside each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from onnxq.recipe.recipe import Recipe, Rule
from onnxq.search.frontier import how_to_get, mark_frontier


def row(name: str, ratio: float | None, size: int, loss: float | None, options: str | None = "-p x") -> dict[str, Any]:
    return {
        "name": name,
        "latency_ratio": ratio,
        "size_bytes": size,
        "loss": loss,
        "options": options,
        "frontier": False,
    }


def unbeaten(*rows: dict[str, Any]) -> list[str]:
    mark_frontier(rows)
    return [found["name"] for found in rows if found["frontier"]]


def test_what_no_other_beats_in_all_three_is_marked() -> None:
    fast, small = row("fast", 3.0, 50, 0.02), row("small", 1.5, 40, 0.03)
    exact, beaten = row("exact", 2.0, 60, 0.001), row("beaten", 1.5, 60, 0.02)
    assert unbeaten(fast, small, exact, beaten) == ["fast", "small", "exact"]
    assert unbeaten(row("one", 2.0, 50, 0.01), row("same", 2.0, 50, 0.01)) == ["one", "same"]


def test_what_was_not_timed_or_no_command_gives_is_not() -> None:
    untimed, noise = row("untimed", None, 10, 0.0), row("noise", 9.0, 10, 0.3, options=None)
    given = row("float", 1.0, 100, 0.0, options=None)
    assert unbeaten(untimed, noise, given, row("w8", 1.0, 30, None)) == ["float", "w8"]


def candidate(name: str, recipe: Recipe, sqnr: float = 30.0, finite: bool = True) -> Any:
    comparison = SimpleNamespace(finite=finite, outputs={"y": SimpleNamespace(sqnr_db=sqnr)})
    return cast(Any, SimpleNamespace(name=name, recipe=recipe, comparison=comparison))


def test_how_to_get_each() -> None:
    given = Recipe(preset="auto", exclude=("a",))
    w8a8 = given.override(preset="w8a8")
    assert how_to_get(candidate("w8a8", w8a8), given) == ("-p w8a8", None)
    assert how_to_get(candidate("w8a8 (gptq)", w8a8.override(algorithm="gptq")), given)[0] == (
        "-p w8a8 --algorithm gptq"
    )
    mixed = w8a8.override(rules=(Rule(match="b", preset="w8"),))
    assert how_to_get(candidate("mixed", mixed), given) == ("--recipe FILE", mixed.to_yaml())
    assert how_to_get(candidate("cleaned", given.override(preset="w8")), given) == ("-p float", None)
    for refused in (candidate("w8a8", w8a8, sqnr=-1.0), candidate("w8a8", w8a8, finite=False)):
        assert how_to_get(refused, given) == ("", None)
