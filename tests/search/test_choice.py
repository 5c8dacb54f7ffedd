"""What `auto` chooses from times and errors that are given."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from onnxq.plan.decisions import NodePlan, Plan
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.search.choice import (
    NOISE,
    SMALL,
    SMALL_GAIN,
    Form,
    Layer,
    Outcome,
    as_recipe,
    by_damage,
    by_tensor,
    fastest_forms,
    gentler,
    ranked,
)
from onnxq.search.demotion.stored_weights import affordable, together

STATIC, DYNAMIC, TOKEN, STORED, FLOAT = "w8a8", "w8a8-dynamic", "w8a8-token", "w8", "float"


def layer(name: str = "n", *, default: str = STATIC, enters: bool = False, leaves: bool = False, **us: Form) -> Layer:
    forms = {key.replace("_", "-"): form for key, form in us.items()}
    return Layer(name, "MatMul", forms, enters, leaves, {STATIC: default})


def test_a_form_has_to_gain_more_than_the_margin() -> None:
    close = layer(w8a8=Form(100.0), w8a8_dynamic=Form(92.0))
    clear = layer(w8a8=Form(100.0), w8a8_dynamic=Form(80.0))
    tiny = layer(w8a8=Form(3.0), w8a8_dynamic=Form(2.5))
    assert [fastest_forms([one], STATIC)["n"].form for one in (close, clear, tiny)] == [STATIC, DYNAMIC, STATIC]


def test_ties_are_broken_by_name() -> None:
    tied = layer(w8a8=Form(100.0), w8a8_token=Form(50.0), w8a8_dynamic=Form(50.0))
    assert fastest_forms([tied], STATIC)["n"].form == DYNAMIC


def test_conversions_count_where_the_layer_stands() -> None:
    forms = {STATIC: Form(10.0, enter_us=6.0, leave_us=4.0), FLOAT: Form(15.0)}
    between_floats = Layer("n", "Conv", dict(forms), enters=True, leaves=True)
    between_integers = Layer("n", "Conv", dict(forms))
    assert [between_floats.cost(form) for form in (STATIC, FLOAT)] == [20.0, 15.0]
    assert [between_integers.cost(form) for form in (STATIC, FLOAT)] == [10.0, 25.0]
    assert between_floats.cost(DYNAMIC) is None


def test_float_is_a_layers_form_only_where_its_weight_cannot_be_stored() -> None:
    stored = layer(w8a8=Form(30.0), float=Form(10.0), w8=Form(10.1))
    small = layer(w8a8=Form(30.0), float=Form(10.0))
    assert [fastest_forms([one], STATIC)["n"].form for one in (stored, small)] == [STORED, FLOAT]


def test_a_large_table_takes_the_smaller_form_for_next_to_no_time() -> None:
    table = layer("table", default=FLOAT, float=Form(2.0, size=40_000_000), w8a8_dynamic=Form(9.0, size=10_000_000))
    work = layer("work", w8a8=Form(5000.0, size=5_000_000), float=Form(9000.0, size=20_000_000))
    choices = fastest_forms([table, work], STATIC)
    assert choices["table"].form == DYNAMIC and "30.0 MB smaller" in choices["table"].reason
    slow = layer("table", default=FLOAT, float=Form(2.0, size=40_000_000), w8a8_dynamic=Form(900.0, size=10_000_000))
    assert fastest_forms([slow, work], STATIC)["table"].form == FLOAT


def test_an_unmeasured_layer_stays_as_the_table_has_it() -> None:
    choice = fastest_forms([layer()], STATIC)["n"]
    assert choice.form == STATIC and choice.reason == "placed by the target's table"


def test_damage_to_the_model_counts_more_than_that_to_the_layer() -> None:
    first = layer("first", w8a8=Form(1.0, sqnr_db=20.0, model_db=50.0))
    last = layer("last", w8a8=Form(1.0, sqnr_db=40.0, model_db=35.0))
    unknown = layer("unknown", w8a8=Form(1.0))
    assert [one.name for one in by_damage([first, last, unknown])] == ["last", "first"]


def test_the_gentler_form_is_more_exact_and_then_the_fastest() -> None:
    one = layer(
        w8a8=Form(10.0, sqnr_db=30.0), w8a8_dynamic=Form(11.0, sqnr_db=30.5), w8a8_token=Form(14.0, sqnr_db=36.0),
        w8=Form(30.0, sqnr_db=45.0), float=Form(30.0),
    )  # fmt: skip
    assert gentler(one) == TOKEN
    assert gentler(layer(w8a8=Form(10.0, sqnr_db=30.0), w8a8_dynamic=Form(11.0, sqnr_db=20.0))) == FLOAT


def test_rules_name_the_nodes_and_leave_the_users_last() -> None:
    layers = [layer("a[0]"), layer("b"), layer("c"), layer("d", default=FLOAT)]
    user = Rule("b", range="minmax")
    recipe = as_recipe(Recipe(rules=(user,)), STATIC, layers, {"a[0]": DYNAMIC, "b": FLOAT, "c": STATIC, "d": STATIC})
    assert recipe.preset == STATIC
    assert recipe.rules == (
        Rule("a[[]0]", preset=DYNAMIC), Rule("b", quantize=False), Rule("d", preset=STATIC, quantize=True), user,
    )  # fmt: skip
    assert recipe.rule_for(["a[0]"]).preset == DYNAMIC and recipe.rule_for(["a0"]).preset is None
    assert as_recipe(Recipe(), STATIC, layers, {}).rules == ()


def test_the_ranking_is_by_time_then_size_then_error_then_name() -> None:
    outcomes = [
        Outcome("float", 1.0, 1000, math.inf),
        Outcome("slow", 1.5, 100, 60.0),
        Outcome("large", 2.0, 400, 50.0),
        Outcome("b", 1.99, 250, 40.2),
        Outcome("a", 1.98, 252, 39.9),
        Outcome("rough", 2.0, 251, 30.0),
        Outcome("refused", 9.0, 10, 90.0, "too much error"),
    ]
    assert [outcome.name for outcome in ranked(outcomes)] == ["a", "b", "rough", "large", "slow", "float"]


@given(st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 10**6), st.floats(-50, 100)), max_size=6), st.randoms())
def test_the_ranking_is_whole_and_does_not_depend_on_the_order(rows: list[tuple[float, int, float]], random) -> None:  # type: ignore[no-untyped-def]
    outcomes = [Outcome(f"m{i}", ratio, size, db) for i, (ratio, size, db) in enumerate(rows)]
    shuffled = random.sample(outcomes, len(outcomes))
    assert ranked(outcomes) == ranked(shuffled)
    assert sorted(o.name for o in ranked(outcomes)) == sorted(o.name for o in outcomes)
    if outcomes:
        first, fastest = ranked(outcomes)[0], max(outcome.ratio for outcome in outcomes)
        assert first.ratio >= (1 - SMALL_GAIN) * fastest
        if first.ratio < (1 - NOISE) * fastest:  # what is slower than noise has to be much smaller
            assert first.size <= SMALL * min(o.size for o in outcomes if o.ratio >= (1 - NOISE) * fastest)


def test_one_scale_a_weight_is_for_kernels_that_are_faster_with_it() -> None:
    nodes = [
        NodePlan("fc [1]", "Gemm", "integer"),
        NodePlan("rnn", "LSTM", "dynamic"),
        NodePlan("mm", "MatMul", "integer"),
        NodePlan("left", "Gemm", "float"),
    ]
    plan = Plan({node.name: node for node in nodes}, {})
    own = Rule("rnn", per_channel=True)
    recipe = by_tensor(Recipe(rules=(own,)), plan)
    assert recipe is not None and recipe.rules[-1] == own
    assert {name: recipe.rule_for([name]).per_channel for name in plan.nodes} == {
        "fc [1]": False,
        "rnn": True,
        "mm": None,
        "left": None,
    }
    assert by_tensor(Recipe(per_channel=False), plan) is None
    assert by_tensor(Recipe(), Plan({"mm": nodes[2]}, {})) is None


def test_weights_that_several_layers_read_are_in_a_file_once() -> None:
    forms = {"float": Form(1.0, size=500), "w8": Form(1.0, size=100)}
    order = [Layer(name, "Conv", dict(forms)) for name in "abcd"]
    assert affordable(together(order, ["w", "w", "w", "v"]), 1000, 1500) == 1
    assert affordable(together(order, ["w", "x", "y", "v"]), 1000, 1500) == 1
    assert affordable(together(order, ["w", "x", "x", "v"]), 1000, 1900) == 2
    assert affordable(together(order, ["w", "w", "w", "v"]), 1000, 9000) == 2
