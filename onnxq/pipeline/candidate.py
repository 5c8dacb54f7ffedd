"""One model on its way: built from a recipe, measured beside others, verified, and written if it is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.pipeline.gate import Verdict
from onnxq.pipeline.learned.compensating import Rounded
from onnxq.pipeline.learned.learning_record import LearningRecord
from onnxq.plan.decisions import Plan
from onnxq.plan.weights.weight_errors import LayerWeight
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.session import Session
from onnxq.stats.statistics import Statistics
from onnxq.verify.benchmark import Timing
from onnxq.verify.compare import Comparison


@dataclass
class Candidate:
    """A model and all that is known of it so far.

    Attributes:
        name: its preset, or "mixed", "cleaned" or "float"; a search adds in brackets how it differs from that.
        model: the quantized model; None where float is given back.
        recipe: what it was made by; its preset is not "auto".
        form: "qdq" or "qoperator".
        plan: every decision.
        statistics: what the ranges came from; None where none were needed.
        non_finite: calibrated values with NaN or infinite elements, and how many.
        warnings: one line each.
        weights: bits and error of the weights of layers whose activations stay float.
        rounded: values that are rounded as in training although what reads them computes in float.
        compensated: weights that were rounded by how they are used; None where none were to be.
        content: what is measured, and written if it is chosen: contents of the model, or a file that has them; empty
            before, and where the model was verified a layer at a time.
        session: None until it was opened, and where that failed.
        verdict: what was found so far; its timings are those of the last alternation, with the ratio of the fastest
            runs while there are others to choose from.
        briefly: it was compared on a few samples, since a faster one was inside the budget on all.
        refused: why it cannot be chosen; empty where it can.
        candidates: name, ``latency_ratio``, ``latency_ms``, ``sqnr_db``, ``top1_agreement``, ``size_bytes`` and
            ``verdict`` of each whole model that it was chosen from.
        choices: ``node``, ``op_type``, ``choice``, ``alternatives`` and ``reason`` of each node.
        trail: everything that a search for the limits tried.
        caches: what became of caches of keys and values; empty where they stay as they are.
        finetuned: what learning end to end changed; empty where there was none.
        reconstructed: what letting blocks learn came to; None where that was not tried.
    """

    name: str
    model: Model | None
    recipe: Recipe
    form: str
    plan: Plan
    statistics: Statistics | None = None
    non_finite: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    weights: tuple[LayerWeight, ...] = ()
    rounded: list[str] = field(default_factory=list)
    compensated: Rounded | None = None
    content: bytes | Path = b""
    session: Session | None = None
    verdict: Verdict = field(default_factory=Verdict)
    briefly: bool = False
    refused: str = ""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    trail: list[dict[str, Any]] = field(default_factory=list)
    caches: dict[str, Any] = field(default_factory=dict)
    finetuned: dict[str, Any] = field(default_factory=dict)
    reconstructed: LearningRecord | None = None

    @property
    def quantized(self) -> Model:
        """The model, where float is not given back."""
        assert self.model is not None
        return self.model

    @property
    def preset(self) -> str:
        """The name without what a search added to it."""
        return self.name.partition(" ")[0]

    @property
    def size(self) -> int:
        """Of the content, in bytes."""
        return io.size_of(self.content)

    @property
    def comparison(self) -> Comparison | None:
        """With float; None before."""
        return self.verdict.comparison

    @property
    def timing(self) -> Timing | None:
        """Beside float, in its last alternation; None before."""
        return self.verdict.timings[1] if self.verdict.timings else None

    @property
    def beside(self) -> Timing | None:
        """The float model in the same alternation."""
        return self.verdict.timings[0] if self.verdict.timings else None

    @property
    def signature(self) -> tuple[object, ...]:
        """What distinguishes the plans of two models that would run alike."""
        nodes = tuple(
            (
                name,
                node.action,
                node.form,
                node.folds,
                node.float_output,
                node.algorithm,
                repr(sorted(node.weights.items())),
            )
            for name, node in self.plan.nodes.items()
        )
        ranges = self.recipe.range if self.plan.values else None
        rewritten = (self.recipe.equalize, self.recipe.smooth, self.recipe.reconstructs, bool(self.compensated), ranges)
        return (nodes, tuple(self.plan.values), rewritten)

    def take(self, other: Candidate) -> None:
        """Become what another build made of the same recipe; name and figures stay."""
        for part in ("model", "recipe", "form", "plan", "statistics", "non_finite", "warnings", "weights", "rounded"):
            setattr(self, part, getattr(other, part))
        self.compensated, self.content, self.reconstructed = other.compensated, other.content, other.reconstructed
