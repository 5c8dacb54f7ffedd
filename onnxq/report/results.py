"""What the API gives back: figures as attributes, as plain data (`to_dict`) and as text (`summary`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.report.facts import inspection_facts, quantization_facts
from onnxq.report.look_tables import difference_line, difference_tables, schemes_tables
from onnxq.report.result_tables import Table, benchmark_table, inspection_tables, quantization_tables
from onnxq.report.words import decibels

if TYPE_CHECKING:
    from onnxq.graph.types import Proto
    from onnxq.plan.decisions import Plan
    from onnxq.stats.statistics import Statistics
    from onnxq.verify.benchmark import Timing
    from onnxq.verify.compare import Comparison
    from onnxq.verify.language.generation import Generated


@dataclass
class QuantizeResult:
    """A finished quantization.

    Attributes:
        output: the file that was written; None where only `model` was asked for.
        preset: the preset that was used (never "auto"); "mixed" where "auto" gave layers several forms, "float" where
            it gave the float model back.
        format: "qdq" or "qoperator"; None where no activation is quantized.
        target: name of the target.
        size_before: bytes of the float model, external data included.
        size_after: bytes of the quantized model.
        sqnr_db: signal to quantization noise of the worst output on the held-out samples, in dB; None without data.
        top1_agreement: share of held-out samples on which both models choose the same class; None where outputs are no
            classes or there is no data.
        latency_ratio: float time ÷ quantized time, medians in alternation; None where not measured.
        coverage: ``{operator: {"quantized": n, "total": n}}``.
        kept_float: (node, operator, reason) of everything that computes in float.
        seconds: duration of each step.
        warnings: one line each.
        comparison: the quantized model against the float one, optimizations on.
        unoptimized: the same with the runtime's optimizations off.
        non_finite: calibrated values with NaN or infinite elements, and how many.
        plan: every decision.
        model: the quantized model where a model, not a path, was given; else None.
        bits_per_weight: bits that a packed or stored weight takes on average, scales and zero points included; None
            where there is none, or layers run on integers.
        weights: one entry for each packed or stored weight: ``node``, ``form``, ``algorithm``, ``elements``, ``bits``
            with its share of scales and zero points, ``error_db`` (signal to quantization noise), ``shares``, the
            layer whose weight it shares, and ``output_db``, that of the layer's output where its input was calibrated.
        candidates: of the preset "auto": each whole model that was tried, with its figures and what became of it.
        choices: of the preset "auto": the form of each node, the alternatives with error and time, and the reason.
        trail: of a search for ``max_drop`` or ``min_sqnr``: everything that was tried, in order, with its figures and
            what became of it; empty where the model as given is inside the limits.
        caches: of a decoder whose caches got another form: ``form``, ``added`` (it had none), ``bytes_a_token``,
            ``layers`` with the signal to noise of each cache and what shares a scale, ``steps`` of the loop that the
            model was judged in, and ``before``, the figures with float caches; empty for others.
        recipe: YAML of the recipe that such a search found; None where there was none.
        engine: what the engine of the target said: itself, the nodes that it refused, its SQNR and times; None where it
            is the ONNX Runtime of this process.
        workload: of a language model with a cache: what it was timed on, and the latency of each kind of pass.
        generated: how it follows, on its own cache, what the float model generates behind texts; None without texts.
        float_type: "float16" or "bfloat16" where what computes in float has this type; None for float32.
        source: the float model as it was named; None where it was not a file.
        command: words of the command line that the run comes to, and ``base`` without preset and limits.
        versions: of onnxq and of what computes.
        machine: where times were measured.
        evidence: error by layer, histograms and outputs side by side (`onnxq.diagnosis.evidence`), where a report was
            asked for.
        report: the page that was written; None where none was asked for.
        trained: of a model that came with the scales of its training: how many of them were ``kept`` of those that were
            ``given``, what was ``added``, and why others were ``refused``; None for any other model.
        refused: why the model was not written, one line each; empty where it was.
        finetuned: of a model that learned end to end: ``epochs``, ``loss`` and ``sqnr_db`` before and after on held-out
            samples, and how many ``weights`` learned; None for any other model.
        reconstructed: of a model whose blocks learned: the whole ``models`` that were compared on held-out samples, the
            one ``taken`` and the ``reason`` for none, ``seconds``, ``steps`` of those ``planned``, what ``cut`` them
            short, and all of it in ``words``; None for any other model.
    """

    output: Path | None
    preset: str
    format: str | None
    target: str
    size_before: int
    size_after: int
    sqnr_db: float | None
    top1_agreement: float | None
    latency_ratio: float | None
    coverage: dict[str, dict[str, int]]
    kept_float: list[tuple[str, str, str]]
    seconds: dict[str, float]
    warnings: list[str]
    comparison: Comparison | None
    non_finite: dict[str, int]
    plan: Plan
    model: Proto | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    unoptimized: Comparison | None = None
    bits_per_weight: float | None = None
    weights: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)
    trail: list[dict[str, Any]] = field(default_factory=list)
    recipe: str | None = None
    workload: dict[str, Any] | None = None
    generated: Generated | None = None
    caches: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] | None = None
    float_type: str | None = None
    source: str | None = None
    command: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] | None = None
    report: Path | None = None
    trained: dict[str, Any] | None = None
    finetuned: dict[str, Any] | None = None
    reconstructed: dict[str, Any] | None = None
    refused: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "model": self.source,
            "output": str(self.output) if self.output is not None else None,
            "report": str(self.report) if self.report is not None else None,
            "preset": self.preset,
            "format": self.format,
            "float_type": self.float_type,
            "target": self.target,
            "engine": self.engine,
            "size_bytes": {"before": self.size_before, "after": self.size_after},
            "sqnr_db": self.sqnr_db,
            "top1_agreement": self.top1_agreement,
            "class_output": self.comparison.class_output if self.comparison is not None else None,
            "loss": self.comparison.loss if self.comparison is not None else None,
            "latency_ratio": self.latency_ratio,
            "latency_ms": self.latency_ms,
            "workload": self.workload,
            "generated": None if self.generated is None else self.generated.to_dict(),
            "coverage": self.coverage,
            "at_inference": [
                {
                    "node": n.name,
                    "op_type": n.op_type,
                    "form": n.form,
                    "outlier_channels": len(n.channels),
                    "channels": n.width or None,
                }
                if n.channels
                else {"node": n.name, "op_type": n.op_type, "form": n.form}
                for n in self.plan.nodes.values()
                if n.action == "dynamic"
            ],
            "kept_float": [{"node": n, "op_type": o, "reason": r} for n, o, r in self.kept_float],
            "outputs": self.comparison.to_dict()["outputs"] if self.comparison is not None else None,
            "outputs_unoptimized": self.unoptimized.to_dict()["outputs"] if self.unoptimized is not None else None,
            "accuracy": self.comparison.accuracy if self.comparison is not None else None,
            "perplexity": self.comparison.perplexity if self.comparison is not None else None,
            "token_agreement": self.comparison.token_agreement if self.comparison is not None else None,
            "token_divergence": self.comparison.token_divergence if self.comparison is not None else None,
            "non_finite": self.non_finite,
            "bits_per_weight": self.bits_per_weight,
            "weights": self.weights,
            "seconds": round(sum(self.seconds.values()), 4),
            "seconds_by_step": {step: round(seconds, 4) for step, seconds in self.seconds.items()},
            "candidates": self.candidates,
            "choices": self.choices,
            "trail": self.trail,
            "caches": self.caches or None,
            "recipe": self.recipe,
            "command": self.command,
            "versions": self.versions,
            "machine": self.machine,
            "evidence": self.evidence,
            "trained": self.trained,
            "finetuned": self.finetuned,
            "reconstructed": self.reconstructed,
            "refused": self.refused,
            "warnings": self.warnings,
        }

    def summary(self, *, everything: bool = False) -> str:
        """Size, latency, SQNR, coverage by operator, what stayed float and why, and warnings, as plain text.

        Args:
            everything: all nodes by name, not only the first.
        """
        result = self.to_dict()
        page = _page(quantization_facts(result), quantization_tables(result, everything=everything))
        return "\n".join([page, *([""] if self.warnings else []), *(f"warning: {line}" for line in self.warnings)])


@dataclass
class CalibrateResult:
    """A finished calibration.

    Attributes:
        output: the file with the statistics.
        seconds: duration of the calibration alone: sessions and samples, without loading and preparing.
        samples: feeds that were run.
        tensors: values that have statistics.
        warnings: one line each.
        statistics: what was saved.
    """

    output: Path
    seconds: float
    samples: int
    tensors: int
    warnings: list[str]
    statistics: Statistics

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "output": str(self.output),
            "seconds": round(self.seconds, 4),
            "samples": self.samples,
            "tensors": self.tensors,
            "warnings": self.warnings,
        }

    def summary(self) -> str:
        """One line."""
        return f"{self.output}: {self.tensors} tensors over {self.samples} samples in {self.seconds:.2f} s"


@dataclass
class BenchmarkResult:
    """Latency, size and memory of models that were timed in alternation.

    Attributes:
        rows: one entry a model, in the order given; ratios are to the first.
        warnings: one line each.
    """

    rows: list[Timing]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"models": [row.to_dict() for row in self.rows], "warnings": self.warnings}

    def summary(self) -> str:
        """A line a model."""
        return benchmark_table(self.to_dict()).text()


@dataclass
class Inspection:
    """What is in a model.

    Attributes:
        facts: how it is quantized, producer, opset, IR version, size, inputs and outputs.
        nodes: one entry a node that computes with real numbers or their integers: ``name``, ``op_type``, ``state``
            ("integer", "stored": float with weights stored as integers, "float"), ``how`` it is quantized, and
            ``reason``: why it does not run on integers, where that can be seen.
        weights: one entry a weight: ``name``, ``node``, ``shape``, ``dtype``, ``granularity`` of its scales, ``low``
            and ``high`` of the real numbers that it stands for, and of float weights ``sqnr_db`` at int8 per channel.
        coverage: ``{operator: {"quantized": n, "total": n}}``.
        schemes: the errors of every scheme for every float weight (`onnxq.plan.weights.scheme_tables`), where asked
            for.
    """

    facts: dict[str, Any]
    nodes: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    coverage: dict[str, dict[str, int]]
    schemes: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        found = {"facts": self.facts, "coverage": self.coverage, "nodes": self.nodes, "weights": self.weights}
        return found if self.schemes is None else found | {"schemes": self.schemes}

    def summary(self, *, everything: bool = False) -> str:
        """Facts and tables as plain text.

        Args:
            everything: all names and weights, not only the first.
        """
        result = self.to_dict()
        tables = inspection_tables(result, everything=everything)
        if self.schemes is not None:
            tables += schemes_tables(self.schemes, everything=everything)
        return _page(inspection_facts(result), tables)


@dataclass
class DequantizeResult:
    """A quantized model back in float.

    Attributes:
        output: the file that was written; None where only `model` was asked for.
        rewritten: quantized operators, Q and DQ nodes among them, that were given a float form, by type.
        left: operators that are quantized still, by type.
        sqnr_db: the quantized model against the float one, worst output, on a synthetic sample; None where none runs.
        warnings: one line each.
        model: the float model where a model, not a path, was given; else None.
    """

    output: Path | None
    rewritten: dict[str, int]
    left: dict[str, int]
    sqnr_db: float | None
    warnings: list[str] = field(default_factory=list)
    model: Proto | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "output": str(self.output) if self.output is not None else None,
            "rewritten": self.rewritten,
            "left": self.left,
            "sqnr_db": self.sqnr_db,
            "warnings": self.warnings,
        }

    def summary(self) -> str:
        """What was rewritten, as text."""
        rewritten = ", ".join(f"{count} {name}" for name, count in sorted(self.rewritten.items())) or "stored weights"
        ratio = "" if self.sqnr_db is None else f"\nthe quantized model on a synthetic sample: {decibels(self.sqnr_db)}"
        return f"{self.output or 'float model'}: {rewritten}{ratio}"


@dataclass
class Difference:
    """What is quantized differently between two models.

    Attributes:
        nodes: those that differ: ``node``, ``differs`` (what does), ``first`` and ``second`` (``op_type``, ``state``,
            ``how``, ``weight``, ``output``, the range of its result), and ``weight_sqnr_db``: the second model's weight
            against the first's, where both are known.
        only_first: nodes that the second model has no counterpart of.
        only_second: likewise.
        same: nodes that do not differ.
    """

    nodes: list[dict[str, Any]]
    only_first: list[dict[str, Any]]
    only_second: list[dict[str, Any]]
    same: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "nodes": self.nodes,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "same": self.same,
        }

    def summary(self, *, everything: bool = False) -> str:
        """Tables as plain text.

        Args:
            everything: all nodes, not only the first.
        """
        result = self.to_dict()
        tables = difference_tables(result, everything=everything)
        return "\n\n".join([difference_line(result), *(table.text() for table in tables)])


def _page(facts: Sequence[tuple[str, str]], tables: Sequence[Table]) -> str:
    width = max(len(name) for name, _ in facts) + 2
    lines = [f"{name:{width}}{value}" for name, value in facts]
    return "\n\n".join(["\n".join(lines), *(table.text() for table in tables)])
