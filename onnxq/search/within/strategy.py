"""The search for the fastest recipe inside a limit of accuracy: pure, so that it can be repeated and continued.

It opens no session and builds no model: what a recipe gives, which nodes hurt and how late it is are asked of the
caller. With the same answers it takes the same way, which is what makes a killed search continue to the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import RANGES, Recipe, Rule
from onnxq.search.within.history import GIVEN_UP, KEPT, Step, StepOutcome, Suspect
from onnxq.search.within.pace import Pace
from onnxq.search.within.range_changes import Change, range_of_all, range_of_one, ranges_of
from onnxq.search.within.widening import Widening
from onnxq.verify.budget import Limits

_GAIN_DB = 0.1
"""SQNR that a change has to win to be kept where the shortfall is the same."""

_TRIED_RANGES = tuple(name for name in RANGES if name != "average")
"""The mean of the samples' extrema lies inside the extrema, where the others search by what they count."""

_SINGLE_RANGES = 3
"""Nodes, the worst, that are given each range method by themselves."""

_FREE_SHARE = 0.4
"""Share of the time after which nodes leave the integers, whatever else could be tried: that always helps."""

_SHORT_SHARE = 0.2
"""The same where wider activations are there instead, which take many attempts to choose."""

_SLOW_SHARE = 0.4
"""Share of the time that is left which one slow attempt may take."""

_DIAGNOSIS_SHARE = 0.5
"""The same for finding the nodes that hurt: the rest is for trying what that tells."""

_MANY = 16
"""Nodes from which on it is tried whether wider activations are cheaper for whole groups of neighbours."""

_LEARNED = 3
"""Attempts at leaving fewer nodes float with learned rounding."""


@dataclass
class SearchResult:
    """What the search came to.

    Attributes:
        inside: recipes within the limits with their outcomes, the one expected to be fastest first.
        best: the best of all, within the limits or not.
        outcome: what it gives.
        history: everything that was tried, in order.
        late: the time was over before the search was, so that a longer one may find more.
    """

    inside: list[tuple[Recipe, StepOutcome]]
    best: Recipe
    outcome: StepOutcome
    history: list[Step] = field(default_factory=list)
    late: bool = False


Attempt = Callable[[Recipe, float], StepOutcome]
"""Builds and measures a recipe in so many seconds, or gives up."""

Diagnose = Callable[[Recipe, float], Sequence[Suspect] | None]
"""Gives the quantized nodes of a recipe's model, the worst first; None where that takes more than so many seconds."""


@dataclass(frozen=True)
class Means:
    """What the search may do beside ranges, bias correction and learned rounding.

    Attributes:
        extras: further changes that cost nothing at inference, such as equalization.
        learn: a recipe with blocks that learn in some of the seconds left, or None; comes last of all that is free.
        wider: the preset that nodes get where this says they leave the integers, for engines that have nothing else;
            None leaves them float.
        nodes: those that can get it, in the order of the graph.
        seconds: that an attempt is expected to take, before one was made.
    """

    extras: Sequence[Change] = ()
    learn: Callable[[Recipe, float], Recipe | None] | None = None
    wider: str | None = None
    nodes: Sequence[str] = ()
    seconds: float = 0.0


_MEANS = Means()


def search(
    start: Recipe,
    limits: Limits,
    attempt: Attempt,
    diagnose: Diagnose,
    clock: Callable[[], float],
    budget: float,
    means: Means = _MEANS,
) -> SearchResult:
    """Find the recipe that is expected to be fastest of those within the limits.

    First what costs nothing at inference, in the order of the damage it can undo: ranges of all values, bias
    correction, further means, ranges of the worst nodes, learned rounding. If that is not enough, the worst nodes leave
    the integers: 1, 2, 4 … of them, then the fewest that are enough by bisection, then each that can go back goes back.
    Where they get wider activations instead, all of them do so first: a model that is inside the limits is there early,
    if there is one, and `onnxq.search.within.widening` takes back what it can where the worst nodes are not enough.

    Args:
        start: everything quantized.
        limits: what has to be kept.
        attempt: what a recipe gives.
        diagnose: the quantized nodes of a recipe's model, the worst first.
        clock: seconds so far.
        budget: seconds that all of this may take; the first attempt is made in any case, and no other one is begun that
            would not end in time, by what the last ones took.
        means: what else it may do.
    """
    return _RecipeSearch(start, limits, attempt, diagnose, Pace(clock, budget, means.seconds), means).run()


@dataclass
class _RecipeSearch:
    _start: Recipe
    _limits: Limits
    _attempt: Attempt
    _diagnose: Diagnose
    _pace: Pace
    _means: Means
    _known: dict[Recipe, StepOutcome] = field(default_factory=dict)
    _history: list[Step] = field(default_factory=list)
    _late: bool = False

    def run(self) -> SearchResult:
        if not self._inside(self._try("as given", self._start)):
            if self._means.wider is not None and self._means.nodes and not self._out_of_time():
                self._all_wide(self._start)
            base = self._free()
            if not self._inside(self._known[base]):
                self._leave_integers(base)
        return self._found()

    # Attempts.

    def _try(self, words: str, recipe: Recipe, against: Recipe | None = None, share: float = 1.0) -> StepOutcome:
        """Attempt a recipe once; ``against`` is what it has to beat to be worth keeping."""
        if recipe in self._known:
            return self._known[recipe]
        started = self._pace.clock()
        outcome = self._known[recipe] = self._attempt(recipe, self._pace.left * share)
        seconds = max(self._pace.clock() - started, 0.0)
        if len(self._known) > 1 and not (recipe.adaround or recipe.reconstructs or outcome.failure):
            self._pace.took(seconds)
        # What was broken off says nothing about the recipe: the search is not complete.
        self._late = self._late or outcome.gave_up
        inside = self._inside(outcome)
        if inside:
            verdict = "inside the limit"
        elif outcome.gave_up:
            verdict = GIVEN_UP
        elif against is not None and self._better(outcome, self._known[against]):
            verdict = KEPT
        else:
            verdict = "outside the limit" if against is None else "no better"
        self._history.append(Step(words, outcome, seconds, inside, verdict, recipe))
        return outcome

    def _inside(self, outcome: StepOutcome) -> bool:
        return outcome.shortfall(self._limits) <= 0.0

    def _better(self, outcome: StepOutcome, than: StepOutcome) -> bool:
        """Whether an outcome is closer to the limits; SQNR decides where the metric does not tell them apart."""
        missing, before = outcome.shortfall(self._limits), than.shortfall(self._limits)
        if missing != before:
            return missing < before
        if math.isinf(missing):
            return False
        return _db(outcome) > _db(than) + _GAIN_DB

    def _out_of_time(self, share: float = 1.0) -> bool:
        """Whether so much of the budget is spent, or another attempt would take more than all of it."""
        full = not self._pace.room()
        self._late = self._late or full
        return full or self._pace.clock() >= share * self._pace.budget

    def _suspects(self, recipe: Recipe) -> Sequence[Suspect]:
        """The nodes that hurt; none where there is no time to find them and to try something."""
        if self._out_of_time():
            return ()
        found = self._diagnose(recipe, self._pace.left * _DIAGNOSIS_SHARE)
        self._late = self._late or found is None
        return found or ()

    # What costs nothing at inference.

    def _free(self) -> Recipe:
        """The best recipe that is as fast as the first one; the first that is inside the limits ends it."""
        best = self._start
        share = _FREE_SHARE if len(self._known) == 1 else _SHORT_SHARE
        for words, change in self._changes():
            if self._out_of_time(share):
                return best
            changed = change(best)
            if changed == best:
                continue
            outcome = self._try(words, changed, against=best)
            if self._inside(outcome):
                return changed
            if self._better(outcome, self._known[best]):
                best = changed
        static = PRESETS[best.preset].activations == "static"
        if static and not best.adaround and not self._out_of_time(share):
            learned = replace(best, adaround=True)
            if self._inside(self._try("AdaRound", learned, against=best, share=_SLOW_SHARE)):
                return learned
        blocks = self._means.learn(best, self._pace.left) if self._means.learn is not None else None
        if blocks is not None and self._inside(self._try("reconstruction", blocks, against=best)):
            return blocks  # else nodes leave the integers from what takes no minutes each time
        return best

    def _changes(self) -> list[Change]:
        if PRESETS[self._start.preset].activations != "static":
            return list(self._means.extras)
        suspects = self._suspects(self._start)
        ranges = [range_of_all(name) for name in _TRIED_RANGES if name != self._start.range]
        helped = [suspect for suspect in suspects if suspect.range is not None]
        if helped:
            ranges.append((f"range of {_named(helped)}, as diagnosed", ranges_of(helped)))
        single: list[Change] = []
        for suspect in [suspect for suspect in suspects if suspect.ranged and not suspect.by_weights][:_SINGLE_RANGES]:
            single += [range_of_one(suspect, name) for name in _TRIED_RANGES]
        weights: list[Change] = [("the other bias correction", lambda r: replace(r, bias_correct=not r.bias_correct))]
        weights += self._means.extras
        by_weights = sum(suspect.damage for suspect in suspects if suspect.by_weights)
        others = sum(suspect.damage for suspect in suspects if not suspect.by_weights)
        return [*weights, *ranges, *single] if by_weights > others else [*ranges, *weights, *single]

    # Nodes that leave the integers.

    def _all_wide(self, base: Recipe) -> StepOutcome:
        return self._try(self._left(self._means.nodes), self._leave(base, self._means.nodes))

    def _dearer(self, base: Recipe, outcome: StepOutcome) -> bool:
        """Whether it takes as long as with all nodes wider, which is inside the limits: conversions can cost more."""
        every = self._known.get(self._leave(base, self._means.nodes)) if self._means.nodes else None
        return every is not None and self._inside(every) and outcome.cost >= every.cost

    def _widen(self, base: Recipe) -> None:
        """Groups of neighbours get back what nodes that hurt by themselves do not account for."""
        nodes = self._means.nodes
        if not nodes or self._out_of_time() or not self._inside(self._all_wide(base)):
            return

        def attempt(wide: Sequence[str]) -> StepOutcome:
            kept = set(wide)
            back = [node for node in nodes if node not in kept]
            if not back:
                return self._all_wide(base)
            return self._try(f"{self._left(nodes)} but {_named_nodes(back)}", self._leave(base, wide))

        Widening(attempt, self._inside, self._out_of_time).fewest(nodes)

    def _leave_integers(self, base: Recipe) -> None:
        if self._means.wider is not None and self._means.nodes and base != self._start and not self._out_of_time():
            # What was best with 8 bits need not be with 16: a narrow range cuts off what now has room.
            base = self._start if self._better(self._all_wide(self._start), self._all_wide(base)) else base
        suspects = self._suspects(base)
        order = [suspect.node for suspect in suspects]
        cheap = [suspect.node for suspect in sorted(suspects, key=_damage_by_price)]
        best = self._fewest(base, order)
        if cheap != order and (best is None or len(best) > 1) and not self._out_of_time():
            other = self._fewest(base, cheap)
            best = min(
                (n for n in (best, other) if n), key=lambda n: self._known[self._leave(base, n)].cost, default=None
            )
        if best is not None:
            self._other_forms(base, best)
            self._with_learned(base, order, len(best))
        if self._means.wider is not None and (best is None or len(best) > _MANY):
            self._widen(base)

    def _fewest(self, base: Recipe, order: list[str]) -> list[str] | None:
        """The nodes that have to be float: the shortest start of the order that is enough, less what can go back.

        None where none is enough, or time is over.
        """
        too_few, enough, most = 0, None, len(order)
        count = min(1, most)
        while count > too_few and not self._out_of_time():
            outcome = self._try(self._left(order[:count]), self._leave(base, order[:count]))
            if self._inside(outcome):
                enough = count
            elif outcome.gave_up or self._dearer(base, outcome):  # nothing is known of it, and others take as long
                break
            elif outcome.failure:  # with so many left float, nothing is left to quantize
                most = count - 1
            else:
                too_few = count
            count = min(2 * max(too_few, 1), most) if enough is None else (too_few + enough) // 2
        return None if enough is None else self._give_back(base, order[:enough])

    def _give_back(self, base: Recipe, floats: list[str]) -> list[str]:
        """Quantize again what need not be float: in halves, quarters … down to single nodes, the mildest first."""
        chunk, end = max(1, len(floats) // 2), len(floats)
        while len(floats) > 1 and not self._out_of_time():
            if end <= 0:
                if chunk == 1:
                    break
                chunk, end = chunk // 2, len(floats)
            left = floats[: max(0, end - chunk)] + floats[end:]
            if left and self._worth(base, left, floats):
                floats = left
            end -= chunk
        return floats

    def _worth(self, base: Recipe, floats: list[str], than: list[str]) -> bool:
        outcome = self._try(self._left(floats), self._leave(base, floats))
        return self._inside(outcome) and outcome.cost <= self._known[self._leave(base, than)].cost

    def _other_forms(self, base: Recipe, floats: list[str]) -> None:
        """What left the integers may find its scales at inference, or be stored as integers, and be inside still."""
        if self._means.wider is not None:
            return
        forms = (("w8a8-dynamic", "with dynamic scales"), ("w8", "float, with weights stored in 8 bits"))
        for preset, words in forms:
            if preset != base.preset and not self._out_of_time():
                self._try(f"{_named_nodes(floats)} {words}", _without(base, floats, preset))

    def _with_learned(self, base: Recipe, order: list[str], enough: int) -> None:
        """With learned rounding fewer nodes may have to stay float."""
        learned = replace(base, adaround=True)
        tried = self._known.get(learned)
        if base.adaround or tried is None or tried.failure or not self._better(tried, self._known[base]):
            return
        too_few, attempts = 0, 0
        while (count := (too_few + enough) // 2) > too_few and attempts < _LEARNED and not self._out_of_time():
            words = f"AdaRound, {self._left(order[:count])}"
            if self._inside(self._try(words, self._leave(learned, order[:count]), share=_SLOW_SHARE)):
                enough = count
            else:
                too_few = count
            attempts += 1

    def _leave(self, base: Recipe, nodes: Sequence[str]) -> Recipe:
        return _without(base, nodes, self._means.wider)

    def _left(self, nodes: Sequence[str]) -> str:
        every = self._means.wider is not None and len(nodes) == len(self._means.nodes)
        return f"{'all nodes' if every else _named_nodes(nodes)} {self._means.wider or 'float'}"

    # The result.

    def _found(self) -> SearchResult:
        inside = [(recipe, outcome) for recipe, outcome in self._known.items() if self._inside(outcome)]
        inside.sort(key=lambda entry: (entry[1].cost, entry[1].size, -_db(entry[1])))
        if inside:
            best, outcome = inside[0]
        else:
            best, outcome = min(
                self._known.items(), key=lambda entry: (entry[1].shortfall(self._limits), -_db(entry[1]))
            )
        return SearchResult(inside, best, outcome, self._history, self._late)


def _db(outcome: StepOutcome) -> float:
    return -math.inf if outcome.sqnr_db is None or math.isnan(outcome.sqnr_db) else outcome.sqnr_db


def _damage_by_price(suspect: Suspect) -> float:
    """For sorting: the most damage for a microsecond first; what costs nothing to leave float before all others."""
    if suspect.damage <= 0.0:
        return 0.0
    return -suspect.damage / suspect.price if suspect.price > 0.0 else -math.inf


def _without(recipe: Recipe, nodes: Sequence[str], preset: str | None = None) -> Recipe:
    """The nodes are left float, or have another preset."""
    rules = [Rule(node, quantize=False) if preset is None else Rule(node, preset=preset) for node in nodes]
    return replace(recipe, rules=(*recipe.rules, *rules))


def _named(suspects: Sequence[Suspect]) -> str:
    return _named_nodes([suspect.node for suspect in suspects])


def _named_nodes(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes ({nodes[0]} …)"
