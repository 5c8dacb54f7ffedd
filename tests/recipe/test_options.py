"""An option has one name in the recipe, in Python and on the command line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path

import click
import pytest

import onnxq
from onnxq.cli.commands.cmd_quantize import command
from onnxq.recipe.recipe import FORMATS, RANGES, RECIPE_OPTIONS, Recipe
from onnxq.recipe.recipe_options import RecipeOptions
from onnxq.recipe.unused import USES
from onnxq.recipe.values import field_types
from onnxq.request.run_options import Options, RunOptions
from onnxq.stats.ranges import RANGE_METHODS
from onnxq.targets import TARGETS

SPELLED_OTHERWISE = {"range_method": "range", "stats": "statistics", "no_benchmark": "benchmark", "no_cache": "cache"}
ONLY_FROM_PYTHON = {"seconds", "progress"}
IMAGES = {"preprocess", "mean", "std", "bgr", "resize", "crop"}  # of `onnxq.Images`
PLACE = {
    "runs_on",
    "place",
    "provider",
    "provider_options",
    "engine",
    "node_modules",
    "ray_address",
}  # of `onnxq.RunsOn`
OF_THE_COMMAND_LINE = {"model", "output", "recipe", "as_json", "verbose", "help_all", "custom_ops"} | IMAGES | PLACE
PASSED_ON = {"recipe_file", "used", "kept_as"}  # made of the argument ``recipe``; given by a model's folder


def named_by_the_command() -> set[str]:
    names = {parameter.name or "" for parameter in command.params}
    return {SPELLED_OTHERWISE.get(name, name) for name in names} - OF_THE_COMMAND_LINE


def taken_by_keyword() -> set[str]:
    """What `onnxq.quantize` takes: what its signature names, and what `onnxq.QuantizeOptions` lists."""
    named = set(inspect.signature(onnxq.quantize).parameters) - {"options"}
    listed = set(onnxq.QuantizeOptions.__annotations__)
    assert not named & listed
    return named | listed


def test_recipe_python_and_command_line_have_the_same_options() -> None:
    run = {field.name for field in fields(Options)} - PASSED_ON
    takes = taken_by_keyword()
    assert {*RECIPE_OPTIONS, *run} - PLACE == takes - OF_THE_COMMAND_LINE
    assert {*RECIPE_OPTIONS, *run} - PLACE == named_by_the_command() | ONLY_FROM_PYTHON


def test_choices_are_written_once() -> None:
    choices = {p.name: tuple(p.type.choices) for p in command.params if isinstance(p.type, click.Choice)}
    assert choices["range_method"] == RANGES == tuple(RANGE_METHODS)
    assert choices["format"] == FORMATS
    assert {form for target in TARGETS.values() for form in target.formats} == set(FORMATS)


def test_presets_are_asked_about_options_that_exist() -> None:
    assert set(USES) <= set(RECIPE_OPTIONS)


def test_types_come_from_the_annotations() -> None:
    @dataclass
    class Made:
        flag: bool
        share: float | None
        name: str | None
        either: float | str | None
        several: tuple[str, ...]

    assert field_types(Made) == {"flag": (bool,), "share": (int, float), "name": (str,), "either": (int, float, str)}


@pytest.mark.parametrize("name", RECIPE_OPTIONS)
def test_every_option_is_documented(name: str) -> None:
    assert f"\n    {name}: " in (inspect.getdoc(Recipe) or "")
    assert any(f"\n    {name}: " in (inspect.getdoc(place) or "") for place in (onnxq.quantize, RecipeOptions))


@pytest.mark.parametrize("listed", [RecipeOptions, RunOptions])
def test_every_option_by_keyword_is_documented(listed: type) -> None:
    for name in listed.__annotations__:
        assert f"\n    {name}: " in (inspect.getdoc(listed) or ""), name


def test_an_option_that_is_none_is_named_with_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(onnxq.RecipeError, match="no option 'block_sise'.*block_size"):
        onnxq.quantize("absent.onnx", tmp_path / "out.onnx", block_sise=32)  # type: ignore[call-arg]
