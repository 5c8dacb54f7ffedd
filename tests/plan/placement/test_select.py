"""What the user chose, by patterns over the user's own names and operators."""

from __future__ import annotations

import re

import pytest

from onnxq.errors import RecipeError
from onnxq.plan.placement.select import Choice, Selection
from onnxq.recipe.recipe import Recipe, Rule

NODES = {
    "stem": "Conv",
    "layer1.0/conv": "Conv",
    "layer1.0/relu": "Relu",
    "layer1.1/conv": "Conv",
    "head[0]": "Gemm",
}


def choose(name: str, sources: dict[str, tuple[str, ...]] | None = None, **options: object) -> Choice:
    names = sources or {node: (node,) for node in NODES}
    return Selection(Recipe(**options), names, NODES.values()).of(name, NODES[name])  # type: ignore[arg-type]


def named_by(pattern: str) -> set[str]:
    return {name for name in NODES if choose(name, include=(pattern,)).insisted}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", {"stem"}),
        ("*", set(NODES)),
        ("layer1.*", {"layer1.0/conv", "layer1.0/relu", "layer1.1/conv"}),
        ("layer1.?/conv", {"layer1.0/conv", "layer1.1/conv"}),
        ("layer1.[!0]/*", {"layer1.1/conv"}),
        ("head[0]", {"head[0]"}),  # a full name is taken as it is, whatever it holds
    ],
)
def test_patterns(pattern: str, expected: set[str]) -> None:
    assert named_by(pattern) == expected


def test_patterns_tell_capitals_apart() -> None:
    with pytest.raises(RecipeError, match="'STEM' matches no node"):
        choose("stem", include=("STEM",))


def test_without_a_wish_every_node_may_be_quantized_and_none_has_to() -> None:
    assert choose("stem") == Choice(None, False, Rule(match=""))


def test_the_reason_says_which_option_it_was() -> None:
    assert choose("stem", exclude=("st*",)).reason == "excluded by --exclude"
    assert choose("stem", include=("head*",)).reason == "not named by --include"
    assert choose("stem", op_types=("Gemm",)).reason == "its operator is not named by --op-type"
    assert choose("stem", rules=(Rule("stem", quantize=False),)).reason == "excluded by a rule of the recipe"


def test_exclusion_wins_over_everything() -> None:
    choice = choose(
        "stem", exclude=("stem",), include=("stem",), op_types=("Conv",), rules=(Rule("stem", quantize=True),)
    )
    assert choice.reason == "excluded by --exclude" and not choice.insisted
    assert choose("stem", include=("stem",), rules=(Rule("*", quantize=False),)).reason is not None


def test_what_is_named_is_insisted_on() -> None:
    assert choose("stem", include=("stem",)).insisted
    assert choose("stem", op_types=("Conv",)).insisted
    assert choose("stem", rules=(Rule("stem", quantize=True),)).insisted


def test_include_and_op_type_both_have_to_hold() -> None:
    both = {"include": ("layer1.*",), "op_types": ("Conv",)}
    assert [name for name in NODES if choose(name, **both).reason is None] == ["layer1.0/conv", "layer1.1/conv"]


def test_a_rule_that_says_quantize_is_an_exception_to_include_and_to_op_type() -> None:
    rules = (Rule("stem", quantize=True),)
    for options in ({"include": ("head*",)}, {"op_types": ("Gemm",)}):
        choice = choose("stem", rules=rules, **options)
        assert choice.reason is None and choice.insisted


def test_the_last_rule_that_matches_wins_key_by_key() -> None:
    rules = (Rule("*", quantize=False, range="entropy"), Rule("layer1.*", quantize=True), Rule("*/relu", range="mse"))
    assert choose("stem", rules=rules).reason is not None
    conv, relu = choose("layer1.0/conv", rules=rules).rule, choose("layer1.0/relu", rules=rules).rule
    assert (conv.quantize, conv.range) == (True, "entropy")
    assert (relu.quantize, relu.range) == (True, "mse")


def test_names_of_nodes_that_were_folded_away_select_what_took_them_in() -> None:
    sources = {node: (node,) for node in NODES} | {"stem": ("stem", "bn1")}
    assert choose("stem", sources, exclude=("bn1",)).reason == "excluded by --exclude"
    assert choose("head[0]", sources, exclude=("bn1",)).reason is None


def test_operators_may_be_those_of_the_users_model() -> None:
    sources = {"fc": ("fc", "bias")}
    given = {"fc": "MatMul", "bias": "Add"}
    for op_type in ("MatMul", "Add", "Gemm"):
        assert Selection(Recipe(op_types=(op_type,)), sources, ["Gemm"], given).of("fc", "Gemm").insisted
    with pytest.raises(RecipeError, match="no 'Conv' node; it has Add, Gemm, MatMul"):
        Selection(Recipe(op_types=("Conv",)), sources, ["Gemm"], given)


def test_a_node_that_preparing_removed_is_still_a_name_of_the_users_model() -> None:
    given = {"stem": "Conv", "dropout": "Dropout"}
    selection = Selection(Recipe(exclude=("dropout",)), {"stem": ("stem",)}, ["Conv"], given)
    assert selection.of("stem", "Conv").reason is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ("layer1.0/cnov",)}, "--exclude: 'layer1.0/cnov' matches no node; did you mean 'layer1.0/conv'?"),
        ({"include": ("stem", "stam")}, "--include: 'stam' matches no node; did you mean 'stem'?"),
        ({"rules": (Rule("layer9.*"),)}, "rule: 'layer9.*' matches no node"),
        ({"include": ("zzz",)}, "--include: 'zzz' matches no node; onnxq inspect --verbose lists the names; a"),
        ({"op_types": ("Conv2d",)}, "--op-type: the model has no 'Conv2d' node; it has Conv, Gemm, Relu"),
    ],
)
def test_what_matches_nothing_is_an_error_that_names_what_is_near(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        choose("stem", **options)
    assert "\n" not in str(caught.value)
