"""Small models, planned and solved as `onnxq.quantize` would: what the tests of this package start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxq.data.feeds import Feed
from onnxq.graph.emit.rewrite import Rewrite
from onnxq.graph.types import Model, Node
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Prepared, Wishes, load_and_prepare
from onnxq.plan.decisions import NodePlan, Plan
from onnxq.plan.make_plan import ModelFacts, make_plan, wanted_by
from onnxq.plan.placement.candidates import Survey, survey
from onnxq.plan.placement.select import Selection
from onnxq.plan.solve import Solution, solve
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.probe import probe
from onnxq.stats.statistics import Statistics
from onnxq.targets import Target, target_named
from tests.graph.build import feeds_for, session


@dataclass
class Planned:
    """A small model with its plan."""

    prepared: Prepared
    plan: Plan
    recipe: Recipe
    feeds: list[Feed]

    @property
    def model(self) -> Model:
        return self.prepared.model

    def __getitem__(self, name: str) -> NodePlan:
        return self.plan.nodes[name]

    @property
    def actions(self) -> dict[str, str]:
        return {name: node.action for name, node in self.plan.nodes.items()}

    def node(self, name: str) -> Node:
        return next(node for node in self.model.graph if node.name == name)

    def statistics(self) -> Statistics:
        wanted = wanted_by(self.model, self.plan, means=True)
        return calibrate(
            self.model,
            wanted.values,
            self.feeds,
            Run(threads=1),
            image_means=wanted.image_means,
            row_means=wanted.row_means,
        )

    def solve(self, statistics: Statistics | None = None, *, correct_bias: bool = False) -> Solution:
        return solve(self.model, self.plan, statistics or self.statistics(), correct_bias=correct_bias)


def plan_of(
    proto: onnx.ModelProto,
    *,
    feeds: list[Feed] | None = None,
    target: str | Target = "cpu",
    unusable: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    **options: object,
) -> Planned:
    """Prepare and plan; feeds are drawn, and ``shapes`` replaces those of a run."""
    recipe = replace(Recipe(preset="w8a8", range="minmax"), **options)  # type: ignore[arg-type]
    chosen = target_named(target) if isinstance(target, str) else target
    prepared = load_and_prepare(proto, chosen, Clock(None))
    if feeds is None:
        opened = session(proto.SerializeToString())
        feeds = [feeds_for(opened, seed=seed) for seed in range(4)]
    seen = probe(prepared.model, feeds[0], threads=1)
    plan = make_plan(
        prepared.model,
        recipe,
        chosen,
        ModelFacts(
            {name: info.shape for name, info in seen.items()} if shapes is None else shapes,
            {name: str(info.dtype) for name, info in seen.items()},
            prepared.sources,
            prepared.op_types,
            unusable=unusable or {},
        ),
    )
    return Planned(prepared, plan, recipe, feeds)


def look_at(
    proto: onnx.ModelProto,
    *,
    dtypes: Mapping[str, str] | None = None,
    symmetric: bool = False,
    widened: bool = True,
    **options: object,
) -> Survey:
    """The first look at a model, without running it."""
    target = target_named("cpu")
    prepared = load_and_prepare(proto, target, Clock(None), Wishes(keep_halves=not widened))
    selection = Selection(replace(Recipe(), **options), prepared.sources, prepared.op_types.values())  # type: ignore[arg-type]
    return survey(prepared.model.graph, target, selection, dtypes or {}, symmetric)


def weight_of(rewrite: Rewrite, name: str) -> np.ndarray:
    """The integers of a layer's weight."""
    return rewrite.nodes[name].constants[1].values
