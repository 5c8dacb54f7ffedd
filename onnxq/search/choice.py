"""What ``auto`` chooses, from times and errors that were measured elsewhere: pure functions, the same at every call."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxq.plan.decisions import DYNAMIC as RUNS_DYNAMIC
from onnxq.plan.decisions import INTEGER, Plan
from onnxq.recipe.recipe import Recipe, Rule

FLOAT, STORED, STATIC, DYNAMIC, TOKEN = "float", "w8", "w8a8", "w8a8-dynamic", "w8a8-token"
"""The forms a layer can have, by the presets that give it."""

ROUNDED_AT_INFERENCE = frozenset(["MatMul", "Gemm", "LSTM", "Attention", "QAttention", "Gather", "Einsum"])
"""Operators that can quantize what they read at inference."""

CLEANED = "cleaned"
"""Name of the float model as preparing left it."""

MIXED = "mixed"
"""Name of a model whose layers have several forms."""

NOISE = 0.03
"""Whole models whose times differ by a smaller share count as equally fast."""

SAME_SIZE = 0.02
"""Files whose sizes differ by a smaller share count as equally large."""

SMALL_GAIN, SMALL = 0.05, 0.6
"""A speed that is higher by no more than the first share gives way to a file smaller than the second one."""

MARGIN, LEAST_US = 0.10, 1.0
"""A layer leaves the form of its model for one that takes less time by this share, and by this many µs."""

GENTLER_DB = 1.0
"""A form that is to be more exact than another has to be so by this much."""

SLOWER_BY_CHANNEL = frozenset({("Gemm", INTEGER), ("LSTM", RUNS_DYNAMIC)})
"""Operators whose integer kernels take longer with a scale for each channel, by what the plan does with them.

Measured with onnxruntime 1.32: QLinear Gemm at one row about 1.3 times as long, DynamicQuantizeLSTM about 1.15.
"""

SMALLER, SLOWER = 0.02, 0.005
"""A layer takes a form that saves this share of the model's size if that costs no more than this share of its time."""


@dataclass(frozen=True)
class Form:
    """One form of one layer.

    Attributes:
        us: time of its kernels, in µs; None where it was not measured.
        enter_us: time to convert its inputs from float, which a layer behind integers does not need.
        leave_us: time to convert its output to float, which a layer in front of integers does not need.
        sqnr_db: of its output on a real input, in dB; None where there was none.
        model_db: of the model's output if this layer alone has the form, in dB; None where that was not measured.
        size: bytes of a model of this layer alone.
    """

    us: float | None
    enter_us: float = 0.0
    leave_us: float = 0.0
    sqnr_db: float | None = None
    model_db: float | None = None
    size: int = 0

    @property
    def error_db(self) -> float | None:
        """The better known of the two errors."""
        return self.sqnr_db if self.model_db is None else self.model_db

    @property
    def spread(self) -> float | None:
        """By how much the error at the model's output is better than at the layer's own, in dB; None where unknown."""
        known = [error for error in (self.model_db, self.sqnr_db) if error is not None and math.isfinite(error)]
        return known[0] - known[1] if len(known) == 2 else None


@dataclass
class Layer:
    """One layer of a model and the forms it can have.

    Attributes:
        name: of the node in the prepared model.
        op_type: its operator.
        forms: by name.
        enters: its input comes from a float node, so that a static form has to convert it.
        leaves: a float node reads its output, so that a static form has to convert it.
        default: the form that each model gives it, by the model's preset.
        clamp: name of the Relu or Clip behind it that its static form does as well.
        guarded: it has no static form, for the sake of accuracy.
    """

    name: str
    op_type: str
    forms: dict[str, Form] = field(default_factory=dict)
    enters: bool = False
    leaves: bool = False
    default: dict[str, str] = field(default_factory=dict)
    clamp: str | None = None
    guarded: bool = False

    def cost(self, form: str) -> float | None:
        """Time of a form with the conversions that it needs where the layer stands, in µs; None where unknown.

        Between integers a form that computes in float has its input converted, and its output converted back, each
        of which takes about as long as the other way.
        """
        found = self.forms.get(form)
        if found is None or found.us is None:
            return None
        static = self.forms.get(STATIC, found)
        enters, leaves = (self.enters, self.leaves) if form == STATIC else (not self.enters, not self.leaves)
        return found.us + (static.enter_us if enters else 0.0) + (static.leave_us if leaves else 0.0)

    def alternatives(self) -> dict[str, dict[str, float | None]]:
        """Error and time of each form as plain data."""
        return {
            form: {
                "sqnr_db": None if found.sqnr_db is None else round(found.sqnr_db, 2),
                "model_sqnr_db": None if found.model_db is None else round(found.model_db, 2),
                "time_us": None if (cost := self.cost(form)) is None else round(cost, 2),
            }
            for form, found in sorted(self.forms.items())
        }


@dataclass(frozen=True)
class LayerChoice:
    """The form of one layer, and why."""

    form: str
    reason: str


def fastest_forms(layers: Iterable[Layer], base: str) -> dict[str, LayerChoice]:
    """For each layer its fastest form; one that gains less than the margin over the base's stays as the base has it.

    Where a layer's weights are a large part of the model, a form that stores them in less is taken if that costs next
    to no time.

    Args:
        layers: with their times.
        base: preset of the model whose layers these are.
    """
    known = list(layers)
    whole = [layer.forms[FLOAT] for layer in known if FLOAT in layer.forms]
    least_saved = max(SMALLER * sum(form.size for form in whole), 1.0)
    most_lost = SLOWER * sum(form.us or 0.0 for form in whole)
    choices = {}
    for layer in known:
        default = layer.default.get(base, FLOAT)
        # Stored weights are dequantized at load: the same kernels as float's, and a smaller file.
        usable = [form for form in layer.forms if form != FLOAT or STORED not in layer.forms]
        costs = {form: cost for form in usable if (cost := layer.cost(form)) is not None}
        best = min(costs, key=lambda form: (costs[form], form), default=default)
        held = costs.get(default, layer.cost(default))
        if best == default or held is None or held - costs[best] < max(MARGIN * held, LEAST_US):
            best, reason = default, _kept(layer, default)
        else:
            reason = f"{costs[best]:.1f} µs here, {held:.1f} µs as {default}"
        if best in costs and best in layer.forms:
            limit, size = costs[best] + most_lost, layer.forms[best].size - least_saved
            smaller = [form for form in costs if costs[form] <= limit and layer.forms[form].size <= size]
            if smaller:
                fastest, best = best, min(smaller, key=lambda form: (layer.forms[form].size, costs[form], form))
                saved = (layer.forms[fastest].size - layer.forms[best].size) / 1e6
                reason = f"{saved:.1f} MB smaller than as {fastest}, for {costs[best] - costs[fastest]:.1f} µs"
        choices[layer.name] = LayerChoice(best, reason)
    return choices


def _kept(layer: Layer, form: str) -> str:
    costs = {other: cost for other in layer.forms if other != form and (cost := layer.cost(other)) is not None}
    held = layer.cost(form)
    if held is None or not costs:
        return "the only form that was measured" if held is not None else "placed by the target's table"
    second = min(costs, key=lambda other: (costs[other], other))
    if held <= costs[second]:
        return f"{held:.1f} µs here, next is {second} with {costs[second]:.1f} µs"
    return f"{held:.1f} µs here; {second} with {costs[second]:.1f} µs would gain too little"


def by_damage(layers: Iterable[Layer], form: str = STATIC) -> list[Layer]:
    """The layers of a form whose error is known, the worst first; ties by name."""
    errors = {layer.name: (layer, layer.forms[form].error_db) for layer in layers if form in layer.forms}
    known = [(error, name, layer) for name, (layer, error) in errors.items() if error is not None]
    return [layer for _, _, layer in sorted(known, key=lambda entry: entry[:2])]


def gentler(layer: Layer, form: str = STATIC) -> str:
    """The fastest form of a layer with clearly less error than ``form``; float where there is no other."""
    worst = layer.forms[form]
    costs = {
        other: cost
        for other, found in layer.forms.items()
        if other not in (form, FLOAT) and (cost := layer.cost(other)) is not None
        if _more_exact(found, worst)
    }
    return min(costs, key=lambda other: (costs[other], other), default=FLOAT)


def _more_exact(one: Form, other: Form) -> bool:
    """Whether a form has clearly less error than another, by the same measure of both; so it is where none is known."""
    pair = (one.model_db, other.model_db)
    if None in pair:
        pair = (one.sqnr_db, other.sqnr_db)
    return pair[0] is None or pair[1] is None or pair[0] > pair[1] + GENTLER_DB


def as_recipe(recipe: Recipe, base: str, layers: Iterable[Layer], choices: Mapping[str, str]) -> Recipe:
    """The recipe that gives each layer its form: rules by node over a preset.

    The user's own rules come last and win.

    Args:
        recipe: the user's.
        base: preset of all that has no rule.
        layers: those to choose for.
        choices: the form by name of the layer.
    """
    rules = []
    for layer in layers:
        form = choices.get(layer.name, layer.default.get(base, FLOAT))
        if form == layer.default.get(base, FLOAT):
            continue
        pattern = glob.escape(layer.name)
        if form == FLOAT:
            rules.append(Rule(match=pattern, quantize=False))
        else:
            insist = True if form == STATIC else None  # the table leaves it float, the measurement does not
            plain = "rtn" if form == STORED else None  # whatever the rest is rounded by: that may need second moments
            rules.append(Rule(match=pattern, preset=form, quantize=insist, algorithm=plain))
    return replace(recipe, preset=base, rules=(*rules, *recipe.rules))


def by_tensor(recipe: Recipe, plan: Plan) -> Recipe | None:
    """The recipe with one scale a weight where kernels take longer with more; None where there is no such node.

    Args:
        recipe: of the plan. Its own rules win.
        plan: every decision.
    """
    names = [node.name for node in plan.nodes.values() if (node.op_type, node.action) in SLOWER_BY_CHANNEL]
    if not names or not recipe.per_channel:
        return None
    rules = (Rule(match=glob.escape(name), per_channel=False) for name in names)
    return replace(recipe, rules=(*rules, *recipe.rules))


@dataclass(frozen=True)
class Outcome:
    """What was measured of one whole model.

    Attributes:
        name: of the candidate.
        ratio: float time ÷ its time.
        size: bytes.
        sqnr_db: of its worst output, in dB.
        refused: why it cannot be chosen; empty where it can.
    """

    name: str
    ratio: float
    size: int
    sqnr_db: float | None = None
    refused: str = ""


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that can be chosen, the best first.

    The fastest wins. Of those that are as fast to within the noise, or nearly so in a much smaller file, the smallest
    file does, of those as small the least
    error, and of those the first by name.
    """
    left = [outcome for outcome in outcomes if not outcome.refused]
    order: list[Outcome] = []
    while left:
        fastest = max(outcome.ratio for outcome in left)
        tied = [outcome for outcome in left if outcome.ratio >= fastest * (1 - NOISE)]
        least = SMALL * min(outcome.size for outcome in tied)
        tied += [o for o in left if o not in tied and o.ratio >= fastest * (1 - SMALL_GAIN) and o.size <= least]
        smallest = min(outcome.size for outcome in tied)
        tied = [outcome for outcome in tied if outcome.size <= smallest * (1 + SAME_SIZE)]
        best = min(tied, key=lambda outcome: (-_whole_db(outcome.sqnr_db), outcome.name))
        order.append(best)
        left.remove(best)
    return order


def _whole_db(sqnr_db: float | None) -> float:
    return 0.0 if sqnr_db is None else float(min(max(round(min(max(sqnr_db, -999.0), 999.0)), -999), 999))


def insisted(recipe: Recipe) -> bool:
    """Whether the user asked for some nodes to be quantized whatever that costs."""
    return bool(recipe.include or recipe.op_types or any(rule.quantize for rule in recipe.rules))


def choices_table(
    nodes: Sequence[tuple[str, str, str, str]], layers: Mapping[str, Layer], reasons: Mapping[str, LayerChoice]
) -> list[dict[str, Any]]:
    """For each node of a plan what was chosen, the alternatives with error and time, and the reason.

    Args:
        nodes: (name, operator, form, reason of the plan) in the plan's order.
        layers: those that were measured.
        reasons: why a layer has its form, where that was a matter of measurement.
    """
    table = []
    for name, op_type, form, planned in nodes:
        layer, chosen = layers.get(name), reasons.get(name)
        if chosen is not None and chosen.form == form:
            reason = chosen.reason
        else:
            reason = planned or ("placed by the target's table" if layer is None else _kept(layer, form))
        alternatives = layer.alternatives() if layer is not None else {}
        table.append({"node": name, "op_type": op_type, "choice": form, "alternatives": alternatives, "reason": reason})
    return table
