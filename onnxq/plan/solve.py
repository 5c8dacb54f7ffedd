"""Turn a plan into numbers: statistics → ranges → parameters, weights → integers. The result tells an emitter all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxq.core.affine import params_from_range, quantize
from onnxq.core.spec import QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import DynamicRewrite, NodeRewrite, Rewrite, SecondGrid, read_by
from onnxq.graph.reading.ops import clamp_bounds
from onnxq.graph.spilled import spill_of
from onnxq.graph.types import Model, Node
from onnxq.plan.activations.dynamic import dynamic_rewrite
from onnxq.plan.activations.value_wishes import names_of_casts
from onnxq.plan.decisions import (
    DYNAMIC,
    INTEGER,
    STORAGE,
    Calibrated,
    Decision,
    Derived,
    Fixed,
    Plan,
    SharedWith,
)
from onnxq.plan.given import Given, ends
from onnxq.plan.spread_weights import Spread
from onnxq.plan.weight_wishes import on_given_grids
from onnxq.plan.weights.constants import Weights, node_rewrite
from onnxq.plan.weights.pack import InOrder, Report, pack_weights
from onnxq.plan.weights.weight_errors import LayerWeight, weight_report
from onnxq.stats.ranges import compute_range
from onnxq.stats.statistics import Statistics

SHARED_WIDENING = 1.2
"""A Concat's inputs share one range only if none becomes wider than this factor: a quarter of a bit at most is lost."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Solution:
    """A plan with its numbers.

    Attributes:
        rewrite: what the emitter is told.
        ranges: (low, high) of each value that was calibrated.
        notes: what the user should know.
        weights: bits and error of the weights of layers whose activations stay float.
    """

    rewrite: Rewrite
    ranges: dict[str, Range]
    notes: tuple[str, ...]
    weights: tuple[LayerWeight, ...] = ()


def solve(
    model: Model,
    plan: Plan,
    statistics: Statistics | None,
    percentile: float = 99.99,
    correct_bias: bool = True,
    report: Report | None = None,
    given: Given | None = None,
    way: Spread | InOrder | None = None,
) -> Solution:
    """Compute every parameter and quantize every constant that a plan names.

    Args:
        model: the prepared model; not changed.
        plan: the decisions.
        statistics: of the values that the plan calibrates; None where it calibrates none.
        percentile: share of the values in percent that the range method "percentile" keeps.
        correct_bias: take what rounding the weights adds to the mean of a layer's output from its bias.
        report: shows the progress of weights that take long.
        given: what the model was trained with.
        way: as for `pack_weights`.

    Raises:
        CalibrationError: the statistics lack a value that the plan needs.
    """
    nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
    clamps = _clamps(plan, nodes)
    ranges = _Ranges(plan, statistics, percentile, clamps)
    values = {name: ranges.params(name) for name in plan.values}
    converted = {name: SecondGrid(ranges.second(name), found.readers) for name, found in plan.conversions.items()}
    notes: list[str] = []
    known = {**(given.weights if given is not None else {}), **on_given_grids(nodes, plan.nodes)}
    weights = Weights(known, spill_of(model))
    rewrites: dict[str, NodeRewrite] = {}
    storage: dict[str, dict[int, QTensor]] = {}
    dynamic: dict[str, DynamicRewrite] = {}
    for name, node_plan in plan.nodes.items():
        node = nodes[name]
        if node_plan.action == STORAGE:
            storage[name] = {i: weights.of(node, i, spec) for i, spec in node_plan.weights.items()}
        elif node_plan.action == INTEGER:
            read = read_by(name, values, converted)
            rewrites[name] = node_rewrite(node, node_plan, read, weights, statistics if correct_bias else None)
        elif node_plan.action == DYNAMIC:
            dynamic[name] = dynamic_rewrite(node, node_plan, weights)
    packed, errors = pack_weights(nodes, plan, weights, statistics, notes, report, way)
    outer = names_of_casts(model.graph)
    sources = {**outer, **{name: outer.get(root, root) for name, root in plan.sources.items()}}
    rewrite = Rewrite(values, rewrites, storage, dynamic, packed, {}, plan.fixed, converted, sources)
    return Solution(rewrite, ranges.found, tuple(notes), tuple(weight_report(nodes, rewrite, errors, weights.errors)))


class _Ranges:
    """Ranges of values, shared along operators that only move elements and, where it costs little, through Concat."""

    def __init__(self, plan: Plan, statistics: Statistics | None, percentile: float, clamps: dict[str, Range]) -> None:
        self._plan = plan
        self._statistics, self._percentile = statistics, percentile
        self._clamps = clamps
        self._parent: dict[str, str] = {}
        self.found: dict[str, Range] = {}
        self._params: dict[str, QParams] = {}
        for name, decision in plan.values.items():
            if isinstance(decision, Calibrated):
                self.found[name] = self._calibrated(name, decision)
            elif isinstance(decision, Fixed):
                self.found[name], self._params[name] = ends(decision), decision.params
        for name, decision in plan.values.items():
            if isinstance(decision, Derived):
                self._join(name, decision)

    def _calibrated(self, name: str, decision: Calibrated) -> Range:
        if self._statistics is None or name not in self._statistics:
            raise CalibrationError(
                f"value {name!r}: the statistics do not have it; run onnxq calibrate on this very model"
            )
        method, percentile = decision.range_method, self._percentile
        low, high = compute_range(self._statistics[name], decision.spec, method, percentile=percentile)
        bound_low, bound_high = self._clamps.get(name, decision.within or (-np.inf, np.inf))
        low, high = max(low, bound_low), min(high, bound_high)
        return (low, max(high, min(low, 0.0) + decision.least)) if decision.least else (low, high)

    def second(self, name: str) -> QParams:
        """Scale and zero point of the second grid of a value.

        What only moves elements holds what its source holds, whatever samples showed of it: where the source is masked,
        calibration leaves out the padding, and with it the mask. What was cut off on a coarser grid need not fit again.
        """
        decision, root = self._plan.conversions[name].decision, self._root(name)
        if isinstance(decision, Fixed):
            return decision.params
        if root in self.found and _spec(self._plan, self._plan.values[root]).bits < decision.spec.bits:
            return params_from_range(*self.found[root], decision.spec)
        shown = root if self._statistics is not None and root in self._statistics else name
        return params_from_range(*self._calibrated(shown, decision), decision.spec)

    def params(self, name: str) -> QParams:
        """Scale and zero point of a value."""
        root = self._root(name)
        decision = self._plan.values[root]
        if root not in self._params:
            low, high = self.found[root]
            params = params_from_range(low, high, _spec(self._plan, decision))
            for bounds in self._bounds(root):
                params = _clamping(params, bounds)
            self._params[root] = params
        return self._params[root]

    def _root(self, name: str) -> str:
        while True:
            decision = self._plan.values[name]
            if name in self._parent:
                name = self._parent[name]
            elif isinstance(decision, SharedWith):
                name = decision.value
            else:
                return name

    def _join(self, name: str, decision: Derived) -> None:
        roots = list(dict.fromkeys(self._root(value) for value in decision.values))
        each = [self.found[root] for root in roots]
        low, high = min(r[0] for r in each), max(r[1] for r in each)
        self.found[name] = (low, high)
        if any(isinstance(self._plan.values[root], Fixed) for root in roots):  # those keep what they were trained with
            if len(roots) == 1:
                self._parent[name] = roots[0]
            return
        shareable = all(
            high - low <= SHARED_WIDENING * (r[1] - r[0]) and self._within_clamp(root, low, high)
            for root, r in zip(roots, each, strict=True)
        )
        if shareable:
            for root in roots:
                self._parent[root] = name

    def _within_clamp(self, root: str, low: float, high: float) -> bool:
        return all(bounds[0] <= low and high <= bounds[1] for bounds in self._bounds(root))

    def _bounds(self, root: str) -> list[Range]:
        """Bounds of the clamps that were folded away on values which share these parameters."""
        return [
            bounds for name, bounds in self._clamps.items() if name in self._plan.values and self._root(name) == root
        ]


def clamps_exactly(params: QParams, bounds: Range) -> bool:
    """Whether saturation to the grid does just what a clamp to ``bounds`` before quantization does.

    True if both bounds round to the ends of the grid or beyond: then everything a clamp would change becomes the same
    integer without it.
    """
    scalar = QParams(params.spec, params.scale.reshape(()), params.zero_point.reshape(()))
    ends = quantize(np.array(bounds, np.float32), scalar)
    return bool(ends[0] == params.spec.qmin and ends[1] == params.spec.qmax)


def _clamping(params: QParams, bounds: Range) -> QParams:
    """The parameters with a scale that is no larger than lets saturation do the work of a clamp to ``bounds``."""
    spec, zero_point, scale = params.spec, params.zero_point, float(params.scale.reshape(()))
    if bounds[1] == 0.0:  # nothing lies above the zero point, even where nothing was seen below it either
        zero_point = np.full_like(zero_point, spec.qmax)
    zero = int(zero_point.reshape(()))
    for bound, steps in ((bounds[0], spec.qmin - zero), (bounds[1], spec.qmax - zero)):
        if steps and bound and np.isfinite(bound):
            scale = min(scale, bound / (steps - np.copysign(0.5, steps)))  # it rounds to the end from half a step on
    narrow = np.full_like(params.scale, max(scale, _SMALLEST_SCALE))
    while not clamps_exactly(QParams(spec, narrow, zero_point), bounds) and narrow > _SMALLEST_SCALE:
        narrow = np.asarray(np.nextafter(narrow, np.float32(0)))  # past a tie, or a scale rounded up
    return QParams(spec, narrow, zero_point)


def _spec(plan: Plan, decision: Decision) -> TensorSpec:
    if isinstance(decision, Calibrated):
        return decision.spec
    specs = [d.spec for d in plan.values.values() if isinstance(d, Calibrated)]
    given = [replace(d.params.spec, symmetric=False) for d in plan.values.values() if isinstance(d, Fixed)]
    return [*specs, *given][0]


def _clamps(plan: Plan, nodes: dict[str, Node]) -> dict[str, Range]:
    """Bounds of each clamp that was folded away, by the value it wrote."""
    bounds: dict[str, Range] = {}
    for node_plan in plan.nodes.values():
        if node_plan.folds is not None:
            clamp = nodes[node_plan.folds]
            bounds[clamp.outputs[0].name or ""] = clamp_bounds(clamp)
    return bounds
