"""Float-equivalent clean-up: what the rest of onnxq may rely on in a graph.

Afterwards functions are inlined, constants are initializers and not inputs, constant expressions are folded,
BatchNormalization and per-channel arithmetic sit inside the layer they follow, Gemm has one form, every node has a
unique name and every value that onnx can infer has a type and shape. The outputs are those of the model that came in.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.graph import names, walk
from onnxq.graph.check import check_sizes
from onnxq.graph.prepare import (
    affine,
    constants,
    deduplicate,
    eliminate,
    folding,
    functions,
    gelu,
    gemm,
    inputs,
    ir_version,
    opset,
    padding,
    pooling,
    shapes,
    unused,
)

_ROUNDS = 20
"""Folding one thing makes another foldable; chains are short, this bounds them."""


@dataclass
class PrepareReport:
    """What `prepare` did.

    Attributes:
        notes: what could not be done, each a sentence for the user.
        changes: how often each pass changed something.
        qdq_nodes: QuantizeLinear and DequantizeLinear nodes that the model holds already.
        opset: the default operator set before and after.
    """

    notes: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    qdq_nodes: int = 0
    opset: tuple[int, int] = (0, 0)

    @property
    def has_qdq(self) -> bool:
        """Whether the model is quantized already, in whole or in part."""
        return self.qdq_nodes > 0


def prepare(model: ir.Model, *, min_opset: int = 13) -> PrepareReport:
    """Clean a model up in place without changing what it computes.

    Args:
        model: changed in place; names, types and order of its inputs and outputs stay (initializers that were also
            inputs are inputs no longer).
        min_opset: raise the default operator set to this where it is lower; where the converter cannot, the model
            keeps its own and a note says so.

    Returns:
        What was done, and notes on what could not be.

    Raises:
        ModelError: the model makes values too large for any memory out of constants.
    """
    before = walk.opset(model)
    report = PrepareReport()
    count = report.changes
    count["functions"] = functions.inline(model, report.notes)
    count["names"] = names.make_unique(model)
    count["inputs"] = inputs.remove_initializers(model)
    ir_version.settle(model)
    count["constants"] = constants.lift(model)
    shapes.infer(model, report.notes, folded=False)
    if before >= opset.OLDEST:
        _fold_constants(model, report)
    if opset.raise_to(model, min_opset, report.notes):
        count["opset"] = 1
        count["names"] += names.make_unique(model)
        count["constants"] += constants.lift(model)
        shapes.infer(model, report.notes, folded=True)
    _simplify(model, report)
    check_sizes(model)
    count["gelu"] = gelu.run(model)
    count["deduplicate"] = deduplicate.run(model)
    names.make_unique(model)
    ir_version.settle(model)
    for body in walk.all_graphs(model.graph):
        body.opset_imports.update(model.graph.opset_imports)  # a body has those of the model
    report.notes[:] = dict.fromkeys(report.notes)
    report.changes = +count
    report.qdq_nodes = sum(
        node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in walk.all_nodes(model.graph)
    )
    report.opset = (before, walk.opset(model))
    return report


def _fold_constants(model: ir.Model, report: PrepareReport) -> None:
    """Before all else: the converter does better where shapes are known, and so does inference."""
    for _ in range(_ROUNDS):
        done = Counter({"eliminate": eliminate.run(model), "folding": folding.run(model)})
        report.changes.update(done)
        if not done.total():
            break
        shapes.infer(model, report.notes, folded=False)
    shapes.infer(model, report.notes, folded=True)


def _simplify(model: ir.Model, report: PrepareReport) -> None:
    for _ in range(_ROUNDS):
        done = Counter(
            {
                "eliminate": eliminate.run(model),
                "folding": folding.run(model),
                "gemm": gemm.run(model),
                "affine": affine.run(model),
                "padding": padding.run(model),
                "pooling": pooling.run(model),
                "unused": unused.run(model),
            }
        )
        report.changes.update(done)
        if not done.total():
            return
        shapes.infer(model, report.notes, folded=True)
