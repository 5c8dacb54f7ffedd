"""The search on made-up models: it finds planted layers, keeps its budget, repeats itself and can be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import OnnxqError
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.search.within.history import GIVEN_UP, KEPT, StepOutcome, Suspect
from onnxq.search.within.learned_candidates import learned, unlearned
from onnxq.search.within.state import SearchState
from onnxq.search.within.strategy import Means, SearchResult, search
from onnxq.verify.budget import Limits

START = Recipe(preset="w8a8")
NODES = [f"n{i}" for i in range(20)]


@dataclass
class Network:
    """Nodes whose errors add up: each costs so many points unless it is float, and so many µs if it is."""

    damage: Mapping[str, float]
    order: Sequence[str]
    price: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)
    """Points won by changes of the whole recipe: a range method, "equalize", "adaround"."""
    seconds: float = 1.0
    now: float = 0.0
    asked: list[Recipe] = field(default_factory=list)
    fails_without_nodes: bool = True
    learns: bool = False
    wider: str | None = None
    nodes: Sequence[str] = ()
    diagnosis: float = 0.0
    """Seconds to find the nodes that hurt."""
    expected: float = 0.0
    """Seconds that the first attempts are expected to take."""
    together: float = 0.0
    """Points that are lost as long as half of the nodes are quantized, whichever they are."""

    def floats(self, recipe: Recipe) -> set[str]:
        return {rule.match for rule in recipe.rules if rule.quantize is False or rule.preset == "w8a16"}

    def attempt(self, recipe: Recipe, seconds: float) -> StepOutcome:
        self.asked.append(recipe)
        self.now += self.seconds
        left = self.floats(recipe)
        if self.fails_without_nodes and left == set(self.order):
            return StepOutcome(failure="nothing would be quantized")
        drop = sum(points for node, points in self.damage.items() if node not in left)
        drop += self.together if 2 * len(left) <= len(self.nodes) else 0.0
        won = self.free.get(recipe.range, 0.0)
        won += sum(points for name, points in self.free.items() if getattr(recipe, name, False) is True)
        drop = max(0.0, drop - won)
        cost = 100.0 + sum(self.price.get(node, 1.0) for node in left)
        return StepOutcome(drop, 40.0 - drop, cost, 1000 + len(left))

    def diagnose(self, recipe: Recipe, seconds: float) -> list[Suspect] | None:
        if self.diagnosis > seconds:
            self.now += seconds
            return None
        self.now += self.diagnosis
        return [Suspect(n, self.damage.get(n, 0.0), price=self.price.get(n, 1.0)) for n in self.order]

    def search(self, max_drop: float = 0.5, budget: float = 1e6) -> SearchResult:
        extras = [("equalization", lambda recipe: replace(recipe, equalize=True))]
        limits = Limits(max_drop=max_drop)
        learn = learned if self.learns else None
        means = Means(extras, learn, self.wider, self.nodes, self.expected)
        return search(START, limits, self.attempt, self.diagnose, lambda: self.now, budget, means)


def test_a_start_inside_the_limits_is_the_result_and_nothing_else_is_tried() -> None:
    network = Network({"n0": 0.3}, NODES)
    found = network.search()
    assert (found.best, len(network.asked), found.inside[0][0]) == (START, 1, START)
    assert [step.tried for step in found.history] == ["as given"]


def test_where_nothing_is_float_the_nodes_that_hurt_get_wider_activations() -> None:
    network = Network({"n3": 3.0, "n7": 2.0, "n9": 0.2}, ["n3", "n7", "n9", *NODES[10:]], wider="w8a16")
    found = network.search()
    assert found.best.rules == (Rule("n3", preset="w8a16"), Rule("n7", preset="w8a16"))
    assert not any(rule.quantize is False for recipe in network.asked for rule in recipe.rules)
    assert any(step.tried == "2 nodes (n3 …) w8a16" for step in found.history)


def test_where_no_nodes_alone_are_to_blame_all_get_wider_activations_and_groups_give_them_back() -> None:
    network = Network(
        {"n3": 3.0}, ["n3", "n4"], {}, {"minmax": 0.1}, wider="w8a16", nodes=NODES, together=5.0,
        fails_without_nodes=False,
    )  # fmt: skip
    found = network.search()
    assert [step.tried for step in found.history][:2] == ["as given", "all nodes w8a16"]
    assert 10 < len(network.floats(found.best)) < 20
    assert "n3" in network.floats(found.best)
    assert any(step.tried.startswith("all nodes w8a16 but 2 nodes (n") for step in found.history)


def test_a_model_with_wider_activations_is_there_before_time_ends() -> None:
    network = Network(
        {"n3": 3.0}, ["n3", "n4"], wider="w8a16", nodes=NODES, together=5.0, fails_without_nodes=False
    )  # fmt: skip
    found = network.search(budget=3.0)
    assert network.floats(found.best) == set(NODES)
    assert found.inside
    assert found.late


def test_a_range_that_hurts_with_wider_activations_is_not_kept() -> None:
    class Narrow(Network):
        def attempt(self, recipe: Recipe, seconds: float) -> StepOutcome:
            outcome = super().attempt(recipe, seconds)
            assert outcome.drop is not None
            lost = 9.0 if recipe.range == "minmax" and len(self.floats(recipe)) > 10 else 0.0
            return replace(outcome, drop=outcome.drop + lost)

    network = Narrow(
        {}, ["n3"], wider="w8a16", nodes=NODES, together=5.0, fails_without_nodes=False, free={"minmax": 1.0}
    )  # fmt: skip
    found = network.search()
    assert any(step.recipe.range == "minmax" and step.verdict == KEPT for step in found.history)
    assert found.inside
    assert found.best.range == START.range
    assert len(network.floats(found.best)) < len(NODES)


@pytest.mark.parametrize("change", ["minmax", "entropy", "equalize", "adaround"])
def test_what_costs_nothing_is_enough_where_it_can_be(change: str) -> None:
    network = Network({"n0": 3.0}, NODES, free={change: 2.8})
    found = network.search()
    assert found.outcome.cost == 100.0
    assert found.best == replace(START, **({"range": change} if change in ("minmax", "entropy") else {change: True}))


def test_blocks_learn_before_nodes_leave_the_integers() -> None:
    network = Network({"n0": 3.0}, NODES, free={"reconstruct": 2.8}, learns=True)
    found = network.search(budget=400.0)
    assert found.best.reconstruct and not network.floats(found.best)
    assert 0.0 < found.best.minutes <= 400.0 / 60.0 / 2
    assert "reconstruction" in [step.tried for step in found.history]


def test_where_learning_is_not_enough_nodes_leave_the_integers_without_it() -> None:
    network = Network({"n0": 3.0}, NODES, free={"reconstruct": 1.0}, learns=True)
    found = network.search()
    assert network.floats(found.best) == {"n0"}
    assert sum(recipe.reconstruct for recipe in network.asked) == 1


def test_blocks_learn_only_where_that_makes_sense() -> None:
    assert learned(START, 400.0) == replace(START, reconstruct=True, minutes=200.0 / 60.0)
    assert learned(START, 1e6) == replace(START, reconstruct=True)  # the recipe's own minutes are enough
    assert learned(START, 30.0) is None  # too little time
    assert learned(replace(START, preset="w8a8-dynamic"), 400.0) is None
    assert unlearned(Recipe(preset="w8a8-learned", reconstruct=True)) == Recipe(preset="w8a8")


def test_changes_that_help_add_up() -> None:
    network = Network({"n0": 3.0}, NODES, free={"percentile": 1.5, "equalize": 1.2})
    assert network.search().best == replace(START, range="percentile", equalize=True)


@given(st.sets(st.sampled_from(NODES), min_size=1, max_size=6), st.permutations(NODES))
def test_the_planted_nodes_and_no_others_leave_the_integers(bad: set[str], order: list[str]) -> None:
    """Whatever the ranking: harmless nodes that it puts in front are given back."""
    found = Network(dict.fromkeys(bad, 1.0), order).search()
    assert Network({}, order).floats(found.best) == bad
    assert found.outcome.drop == 0.0
    assert found.outcome.cost == 100.0 + len(bad)


def test_cheap_nodes_go_first_where_that_is_faster() -> None:
    damage = {"n0": 3.0, "n1": 2.0, "n2": 2.0}
    found = Network(damage, NODES, price={"n0": 500.0, "n1": 1.0, "n2": 1.0}).search(max_drop=3.0)
    assert found.outcome.cost == 102.0


def test_all_but_one_node_is_tried_before_giving_up() -> None:
    found = Network(dict.fromkeys(NODES, 1.0), NODES).search(max_drop=1.0)
    assert found.inside
    assert found.outcome.drop == 1.0


def test_nothing_is_inside() -> None:
    network = Network(dict.fromkeys(NODES, 1.0), NODES, fails_without_nodes=True)
    found = network.search(max_drop=0.5)
    assert not found.inside
    assert not found.late
    assert found.outcome.drop == 1.0, "the best of those outside is given"


@pytest.mark.parametrize("attempts", [1, 2, 5, 9])
def test_the_budget_ends_it(attempts: int) -> None:
    network = Network(dict.fromkeys(NODES[:5], 1.0), NODES)
    found = network.search(budget=attempts)
    assert found.late
    assert len(network.asked) == attempts
    assert found.outcome.drop == min(step.outcome.drop or 0.0 for step in found.history)


@given(st.floats(1.0, 9.0), st.floats(0.0, 60.0), st.floats(10.0, 90.0), st.booleans())
def test_nothing_is_begun_that_would_end_after_the_time_that_was_given(
    seconds: float, diagnosis: float, budget: float, wide: bool
) -> None:
    """A clock that is moved by hand: attempts and the diagnosis take what they take."""
    network = Network(
        dict.fromkeys(NODES[:5], 1.0), NODES, seconds=seconds, diagnosis=diagnosis, wider="w8a16" if wide else None,
        nodes=NODES if wide else (), fails_without_nodes=not wide, expected=seconds,
    )  # fmt: skip
    found = network.search(budget=budget)
    assert network.now <= budget + 1e-6
    assert found.late or found.inside
    if wide and 2 * seconds <= budget:
        assert found.inside, "all nodes with wider activations come first"


def test_the_longest_of_the_latest_attempts_tells_what_the_next_one_takes() -> None:
    """Other work comes: an attempt that took 1 s takes 10 s, and with 9 s left no further one is begun."""

    class Busy(Network):
        def attempt(self, recipe: Recipe, seconds: float) -> StepOutcome:
            self.seconds = 10.0 if self.now >= 11.0 else 1.0
            return super().attempt(recipe, seconds)

    network = Busy(dict.fromkeys(NODES[:5], 1.0), NODES)
    found = network.search(budget=40.0)
    assert network.now == 31.0
    assert found.late


def test_the_first_attempt_is_made_without_any_time() -> None:
    found = Network({"n0": 1.0}, NODES).search(budget=0.0)
    assert (len(found.history), found.late) == (1, True)


@given(st.integers(0, 40), st.integers(1, 8), st.sampled_from([0.1, 0.5, 1.5]))
def test_what_was_broken_off_is_not_taken_for_a_failure(first: int, count: int, damage: float) -> None:
    """An attempt that is given up says nothing: the search is then late, whatever else it found."""

    class Slow(Network):
        def attempt(self, recipe: Recipe, seconds: float) -> StepOutcome:
            outcome = super().attempt(recipe, seconds)
            if first < len(self.asked) <= first + count:
                return StepOutcome(failure="given up", gave_up=True)
            return outcome

    network = Slow(dict.fromkeys(NODES[:9], damage), NODES)
    found = network.search()
    broken_off = [step for step in found.history if step.outcome.gave_up]
    assert found.late == bool(broken_off)
    assert all(step.verdict == GIVEN_UP and not step.inside for step in broken_off)
    assert not any(step.outcome.gave_up for step in found.history if step.recipe in dict(found.inside))
    if not broken_off:
        assert found.inside or len(network.asked) > len(NODES) // 2


def test_giving_up_in_the_descent_does_not_end_in_fewer_nodes() -> None:
    """With 4 of 8 nodes float the time is over: fewer were not enough, so nothing below 4 is looked at again."""

    class Slow(Network):
        def attempt(self, recipe: Recipe, seconds: float) -> StepOutcome:
            if len(self.floats(recipe)) >= 4:
                self.asked.append(recipe)
                return StepOutcome(failure="given up", gave_up=True)
            return super().attempt(recipe, seconds)

    network = Slow(dict.fromkeys(NODES[:8], 1.0), NODES)
    found = network.search()
    assert not found.inside
    assert found.late
    assert 3 not in {len(network.floats(recipe)) for recipe in network.asked}


def test_more_time_is_never_worse() -> None:
    costs = []
    for budget in range(1, 60, 3):
        network = Network({"n3": 1.0, "n9": 1.0, "n15": 1.0}, NODES)
        found = network.search(budget=budget)
        costs.append(found.outcome.cost if found.inside else 1e9)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 103.0


def test_no_recipe_is_tried_twice_and_the_way_is_always_the_same() -> None:
    first, second = (Network({"n3": 1.0, "n9": 1.0}, NODES, free={"minmax": 0.2}) for _ in range(2))
    assert first.search() == second.search()
    assert first.asked == second.asked
    assert len(set(first.asked)) == len(first.asked)


def test_a_model_that_fails_is_never_chosen() -> None:
    limits = Limits(min_sqnr=10.0)
    found = search(
        START, limits, lambda r, s: StepOutcome(sqnr_db=99.0, failure="broken"), lambda r, s: [], lambda: 0.0, 1.0
    )
    assert not found.inside
    assert found.history[0].to_dict()["verdict"] == "broken"


@pytest.mark.parametrize(
    ("outcome", "limits", "missing"),
    [
        (StepOutcome(0.4, 20.0), Limits(0.5, 20.0), 0.0),
        (StepOutcome(0.7, 20.0), Limits(0.5), 0.2),
        (StepOutcome(0.7, 18.0), Limits(None, 20.0), 2.0),
        (StepOutcome(None, 18.0), Limits(0.5), float("inf")),
        (StepOutcome(0.0, None), Limits(None, 1.0), float("inf")),
        (StepOutcome(float("nan"), 18.0), Limits(0.5), float("inf")),
        (StepOutcome(-1.0, 18.0, failure="x"), Limits(0.5), float("inf")),
    ],
)
def test_how_far_outside_the_limits(outcome: StepOutcome, limits: Limits, missing: float) -> None:
    assert outcome.shortfall(limits) == pytest.approx(missing)


def test_worst_nodes_get_ranges_of_their_own() -> None:
    def attempt(recipe: Recipe, seconds: float) -> StepOutcome:
        own = recipe.rule_for(["bad"]).range
        return StepOutcome(0.0 if own == "minmax" and recipe.range == "mse" else 1.0, 20.0, 1.0, 1)

    suspects = [Suspect("bad", 1.0)]
    found = search(START, Limits(0.5), attempt, lambda recipe, seconds: suspects, lambda: 0.0, 1.0)
    assert found.best == replace(START, rules=(Rule("bad", range="minmax"),))


class Killed(Exception):
    """Stands for the end of the process."""


def continued(path: Path, network: Network, die_at: int | None, *, resume: bool) -> SearchResult:
    """A search whose answers are kept in a file, and which may die at some attempt."""
    state = SearchState(path, "key", resume=resume)
    made = 0

    def attempt(recipe: Recipe, seconds: float) -> StepOutcome:
        nonlocal made
        known = state.outcome(recipe, seconds)
        if known is not None:
            return known
        made += 1
        if made == die_at:
            raise Killed("in the middle")
        outcome = network.attempt(recipe, seconds)
        state.put_outcome(recipe, outcome, seconds)
        return outcome

    def diagnose(recipe: Recipe, seconds: float) -> list[Suspect] | None:
        suspects = state.suspects(recipe)
        if suspects is None:
            suspects = network.diagnose(recipe, seconds)
            state.put_suspects(recipe, suspects)
        return suspects

    return search(START, Limits(0.5), attempt, diagnose, state.clock, 1e6)


@pytest.mark.parametrize("die_at", [1, 2, 6, 11])
def test_a_killed_search_goes_on_where_it_was_to_the_same_result(tmp_path: Path, die_at: int) -> None:
    def network() -> Network:
        return Network({"n3": 1.0, "n9": 1.0, "n15": 1.0}, NODES, free={"minmax": 0.2})

    straight = continued(tmp_path / "a", whole := network(), None, resume=False)
    with pytest.raises(Killed, match="middle"):
        continued(tmp_path / "b", before := network(), die_at, resume=False)
    resumed = continued(tmp_path / "b", after := network(), None, resume=True)
    steps, expected = ([(step.recipe, step.outcome) for step in found.history] for found in (resumed, straight))
    assert steps == expected
    assert (resumed.best, resumed.outcome) == (straight.best, straight.outcome)
    assert before.asked + after.asked == whole.asked, "nothing is measured twice"


def test_without_resume_a_search_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "state"
    continued(path, Network({"n0": 1.0}, NODES), None, resume=False)
    continued(path, again := Network({"n0": 1.0}, NODES), None, resume=False)
    assert again.asked


def test_a_state_of_something_else_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "state"
    SearchState(path, "one", resume=False).put_outcome(START, StepOutcome(1.0), 1.0)
    state = SearchState(path, "two", resume=True)
    assert state.outcome(START, 1.0) is None
    assert "another model, data or recipe" in state.note


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 1, "key": "k", "outcomes": 3, "suspects": {}}'])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state"
    path.write_text(content)
    with pytest.raises(OnnxqError, match="is not the state of a search"):
        SearchState(path, "k", resume=True)
    with pytest.raises(OnnxqError, match="is not the state of a search"):
        SearchState(path, "k", resume=False)
    assert path.read_text() == content


def test_a_state_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OnnxqError, match=r"--search-state .*cannot be written"):
        SearchState(tmp_path / "no" / "state", "k", resume=False)


@pytest.mark.parametrize(
    "damage",
    [
        {"outcome": {"drop": "much"}},
        {"outcome": {"unknown": 1}},
        {"outcome": {"failure": None}},
        {"outcome": []},
        {"seconds": "long"},
        {"passed": None},
    ],
)
def test_a_state_with_damaged_records_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    path = tmp_path / "state"
    SearchState(path, "k", resume=False).put_outcome(START, StepOutcome(1.0, 30.0, 5.0, 7), 10.0)
    content = json.loads(path.read_text())
    (known,) = content["outcomes"].values()
    known.update(damage)
    path.write_text(json.dumps(content))
    with pytest.raises(OnnxqError, match="is not the state of a search"):
        SearchState(path, "k", resume=True)


def test_statistics_that_an_earlier_process_gathered_are_paid_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("onnxq.search.within.state.time.monotonic", lambda: now[0])
    first = SearchState(tmp_path / "state", "k", resume=False)
    now[0] += 10.0
    first.pay(("equalize",), 8.0)
    first.put_outcome(START, StepOutcome(1.0), 20.0)
    assert first.clock() == 10.0
    again = SearchState(tmp_path / "state", "k", resume=True)
    assert again.outcome(START, 20.0) is not None
    assert again.paid(("equalize",)) == 8.0
    now[0] += 9.0
    again.pay(("equalize",), 9.0)
    assert again.clock() == 10.0


def test_an_attempt_that_was_broken_off_is_made_again_with_more_time(tmp_path: Path) -> None:
    state = SearchState(tmp_path / "state", "k", resume=False)
    state.put_outcome(START, StepOutcome(failure="given up", gave_up=True), 10.0)
    assert state.outcome(START, 10.0) is not None
    assert state.outcome(START, 30.0) is None
