"""Recipes: immutable, checked when they are made, and the same after a trip through YAML."""

from __future__ import annotations

import glob
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import RecipeError
from onnxq.recipe.patterns_of_names import matches
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import FORMATS, RANGES, Recipe, Rule

# PyYAML reads three kinds of line end, which no name has, as spaces.
letters = st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029")
names = st.lists(st.text(letters, min_size=1), max_size=3).map(tuple)
flags = st.none() | st.booleans()
limits = st.none() | st.floats(-100, 200)
falls = st.none() | st.floats(0, 200)
rules = st.builds(Rule, st.text(letters), quantize=flags, range=st.none() | st.sampled_from(RANGES), per_channel=flags)
recipes = st.builds(
    Recipe, preset=st.sampled_from(sorted(PRESETS)), format=st.none() | st.sampled_from(FORMATS),
    range=st.sampled_from(RANGES), percentile=st.floats(50, 100, exclude_min=True), per_channel=st.booleans(),
    symmetric=flags, bias_correct=st.booleans(), target=st.text(letters), include=names, exclude=names, op_types=names,
    rules=st.lists(rules, max_size=3).map(tuple), min_sqnr=limits, max_drop=falls,
)  # fmt: skip


@given(recipes)
def test_a_recipe_is_the_same_after_a_trip_through_yaml(recipe: Recipe) -> None:
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text) == recipe
    assert Recipe.from_yaml(text).to_yaml() == text


def test_yaml_holds_what_differs_from_the_default() -> None:
    assert Recipe().to_yaml() == "preset: auto\n"
    recipe = Recipe(preset="w8a8", exclude=("head*",), rules=(Rule("stem", quantize=False),))
    assert recipe.to_yaml() == "preset: w8a8\nexclude:\n- head*\nrules:\n- match: stem\n  quantize: false\n"


def test_a_recipe_as_a_user_writes_it() -> None:
    recipe = Recipe.from_yaml(
        "preset: w8a8\nrange: entropy\npercentile: 100\nexclude: stem\ninclude: [a*, b]\nop_types: [Conv]\n"
        "min_sqnr: 20\nrules:\n  - {match: 'layer1.*', range: minmax}\n"
    )
    assert recipe == Recipe(
        preset="w8a8", range="entropy", percentile=100, exclude=("stem",), include=("a*", "b"), op_types=("Conv",),
        min_sqnr=20, rules=(Rule("layer1.*", range="minmax"),),
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "range:\npercentile: null\nrules:\ninclude: ~\n"])
def test_what_is_left_empty_has_its_default(text: str) -> None:
    assert Recipe.from_yaml(text) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnage: mse", "recipe: no key 'rnage'; did you mean 'range'? There are preset, format, range,"),
        ("zzz: 1", "recipe: no key 'zzz'; there are preset"),
        ("1: 2", "recipe: no key 1; there are preset"),
        ("rules: [{match: a, rnge: mse}]", "recipe: rule 1: no key 'rnge'; did you mean 'range'? There are match,"),
        ("rules: [{match: a}, {quantize: true}]", "recipe: rule 2 has no 'match'; write a node name or a pattern"),
        ("rules: [{match: }]", "recipe: rule 1 has no 'match'"),
        ("rules: {match: a}", "recipe: rules must be a list of mappings"),
        ("rules: [a]", "recipe: rules must be a list of mappings"),
        ("rules: [{match: 3}]", "recipe: rule 1: match is 3 (int); it takes text"),
        ("rules: [{match: a, quantize: 'no'}]", "recipe: rule 1: quantize is 'no' (str); it takes true or false"),
        ("rules: [{match: a, range: msee}]", "rule range: no 'msee'; did you mean 'mse'?"),
        ("- preset: w8", "recipe: a list, not a mapping; write keys and values, such as 'preset: w8a8'"),
        ("w8a8", "recipe: a str, not a mapping"),
        ("a: [1", "recipe: not YAML (line 1, column 6: expected ',' or ']'"),
        ("preset: w8a9", "--preset: no 'w8a9'; did you mean 'w8a8'? There are auto, w8a8, w8"),
        ("preset: 8", "recipe: preset is 8 (int); it takes text"),
        ("format: onnx", "--format: no 'onnx'; there are qdq, qoperator"),
        ("range: max", "--range: no 'max'; did you mean 'minmax'?"),
        ("percentile: '99'", "recipe: percentile is '99' (str); it takes a number"),
        ("percentile: true", "recipe: percentile is True (bool)"),
        ("percentile: 50", "--percentile: 50 is not in (50, 100]"),
        ("percentile: .nan", "--percentile: nan is not in (50, 100]"),
        ("per_channel: 1", "recipe: per_channel is 1 (int); it takes true or false"),
        ("symmetric: perhaps", "recipe: symmetric is 'perhaps' (str); it takes true or false"),
        ("min_sqnr: high", "recipe: min_sqnr is 'high' (str)"),
        ("min_sqnr: .nan", "--min-sqnr: must be a number, not nan"),
        ("max_drop: .nan", "--max-drop: nan is no fall"),
        ("max_drop: -1", "--max-drop: -1 is no fall; 0 allows none"),
        ("include: 3", "include: 3 is not a list of names; write [name, name]"),
        ("exclude: [a, 3]", "exclude: ['a', 3] is not a list of names"),
        ("op_types: {Conv: true}", "op_types: {'Conv': True} is not a list of names"),
    ],
)
def test_what_makes_no_sense_is_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        Recipe.from_yaml(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_field_is_checked() -> None:
    for field in fields(Recipe):
        with pytest.raises(RecipeError, match=f"{field.name}"):
            Recipe.from_yaml(f"{field.name}: {{a: 1}}")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("préset: w8", "utf8")
    with pytest.raises(RecipeError, match=f"--recipe {path}: no key 'préset'; did you mean 'preset'"):
        Recipe.from_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read .it is not UTF-8 text.; pass a YAML file"):
        Recipe.from_file(path)
    with pytest.raises(RecipeError, match="cannot be read .No such file or directory."):
        Recipe.from_file(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read .Is a directory."):
        Recipe.from_file(tmp_path)
    path.write_text(Recipe(range="entropy").to_yaml())
    assert Recipe.from_file(str(path)) == Recipe(range="entropy")


def test_options_win_over_the_recipe_and_what_is_not_given_does_not() -> None:
    recipe = Recipe(preset="w8a8", range="entropy", exclude=("a",), bias_correct=False)
    assert recipe.override(range=None, include=(), exclude=()) == recipe
    changed = recipe.override(range="mse", exclude=["b"], per_channel=False, percentile=99)
    assert changed == Recipe(
        preset="w8a8", range="mse", exclude=("b",), bias_correct=False, per_channel=False, percentile=99
    )
    assert recipe.override(symmetric=False).symmetric is False
    with pytest.raises(RecipeError, match="recipe: no key 'rang'; did you mean 'range'"):
        recipe.override(rang="mse")
    with pytest.raises(RecipeError, match="--range: no 'best'"):
        recipe.override(range="best")
    with pytest.raises(RecipeError, match="exclude: 3 is not a list of names"):
        recipe.override(exclude=3)


def test_rules_join_in_their_order_key_by_key() -> None:
    chosen = (
        Rule("*", quantize=False, range="entropy"),
        Rule("layer?.conv", quantize=True, per_channel=False),
        Rule("layer1.*", range="minmax"),
        Rule("bn1", per_channel=True),
    )
    recipe = Recipe(rules=chosen)
    assert recipe.rule_for(["stem"]) == Rule("", quantize=False, range="entropy")
    assert recipe.rule_for(["layer2.conv"]) == Rule("", quantize=True, range="entropy", per_channel=False)
    assert recipe.rule_for(["layer1.conv"]) == Rule("", quantize=True, range="minmax", per_channel=False)
    assert recipe.rule_for(["layer1.conv", "bn1"]).per_channel is True
    assert Recipe(rules=chosen[::-1]).rule_for(["layer1.conv"]) == Rule(
        "", quantize=False, range="entropy", per_channel=False
    )
    assert recipe.rule_for([]) == Recipe().rule_for(["stem"]) == Rule("")


@given(st.text(min_size=1))
def test_a_name_matches_itself_whatever_it_holds(name: str) -> None:
    assert matches(name, name)
    assert matches("*", name)
    assert matches("?" * len(name), name)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'range'"):
        Recipe().range = "entropy"  # type: ignore[misc]
    assert hash(Recipe(rules=(Rule("a"),))) == hash(Recipe(rules=(Rule("a"),)))


def test_presets_that_win_accuracy_back_and_their_options_survive_yaml() -> None:
    recipe = Recipe(
        preset="llm-int8",
        smooth="auto",
        outliers=8.0,
        adaround=True,
        rules=(Rule("a", smooth=0.25), Rule("b", smooth="auto", preset="zeroquant")),
    )
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    for name in ("w8a8-smooth", "llm-int8", "zeroquant"):
        assert Recipe.from_yaml(Recipe(preset=name).to_yaml()).preset == name
    assert Recipe(preset="w8a8-smooth").smooths
    assert Recipe(rules=(Rule("a", preset="w8a8-smooth"),)).smooths
    assert not Recipe(preset="w8a8").smooths
    assert Recipe(rules=(Rule("a", preset="zeroquant"),)).learns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: llm-int4", "no 'llm-int4'; did you mean 'llm-int8'"),
        ("preset: w8a8\nsmoth: 0.5", "no key 'smoth'; did you mean 'smooth'"),
        ("preset: w8a8\noutlier: 6", "no key 'outlier'; did you mean 'outliers'"),
        ("preset: w8a8\nsmooth: 1.5", "--smooth: 1.5 is not in 0…1"),
        ("preset: w8a8\nsmooth: best", "--smooth: 'best' is neither a number in 0…1 nor 'auto'"),
        ("preset: w8a8\nsmooth: true", "smooth is True"),
        ("preset: llm-int8\noutliers: 0", "--outliers: 0 is no magnitude"),
        ("preset: w8a8\nrules: [{match: a, smooth: 2}]", "rule smooth: 2 is not in 0…1"),
        ("preset: w8a8\nrules: [{match: a, smoth: 0.5}]", "rule 1: no key 'smoth'; did you mean 'smooth'"),
    ],
)
def test_what_is_wrong_with_smoothing_and_outliers_is_named(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Recipe.from_yaml(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab[]*?!", max_size=4), st.booleans()), max_size=8),
    st.lists(st.text("ab[]*?!", max_size=4), max_size=3),
)
def test_rules_are_found_as_if_each_were_asked(patterns: list[tuple[str, bool]], names: list[str]) -> None:
    matching = [glob.escape(text) if escaped else text for text, escaped in patterns]
    recipe = Recipe(rules=tuple(Rule(match, range=RANGES[index % 4]) for index, match in enumerate(matching)))
    last = [index for index, match in enumerate(matching) if any(matches(match, name) for name in names)]
    assert recipe.rule_for(names) == (Rule("", range=RANGES[last[-1] % 4]) if last else Rule(""))
