"""Float-equivalent clean-up: what the rest of onnxq may rely on in a graph.

Afterwards functions are inlined, constants are initializers and not inputs, constant expressions are folded,
BatchNormalization and per-channel arithmetic sit inside the layer they follow, Gemm has one form, every node has a
unique name and every value that onnx can infer has a type and shape. The outputs are those of the model that came in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.graph import names, walk
from onnxq.graph.prepare.folding import deduplicate, fold_affine, fold_constants, lift_constants
from onnxq.graph.prepare.neighbours import ahead, axes_pairs, focus, hoist, line_convs, pool_order, right_sides, stacks
from onnxq.graph.prepare.operators import (
    bounds,
    broadcast,
    gather_nd,
    gelu,
    gemm,
    hard_swish,
    narrow_convs,
    pads,
    pooling,
    softmax_axis,
    unit_axes,
)
from onnxq.graph.prepare.whole import (
    branches,
    drop_unused,
    eliminate,
    functions,
    initializer_inputs,
    ir_version,
    loop_constants,
    lower_opset,
    on_integers,
    opset,
    shapes,
    widen,
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


STEPS = {
    "widen": "computing in float32",
    "opset": "changing its operator set",
    "folding": "folding its constants",
    "affine": "folding BatchNormalization and arithmetic into its layers",
    "padding": "moving Pad into Conv",
    "pooling": "rewriting its pools",
    "gemm": "rewriting its fully connected layers",
    "gelu": "joining Gelu",
    "eliminate": "dropping Identity, Dropout and Cast",
    "branches": "taking in the branches that are always taken",
    "loop_constants": "reading what loops do not change from outside",
    "unused": "dropping what nothing reads",
    "deduplicate": "joining equal constants",
    "functions": "inlining its functions",
    "gather_nd": "writing GatherND as Gather",
    "bounds": "writing Max and Min as Clip",
    "hard_swish": "joining HardSwish",
    "hoist": "moving arithmetic and activations to the layer they follow",
    "ahead": "folding single numbers into the layer behind them",
    "pool_order": "moving PRelu behind a pool",
    "stacks": "reducing without a stack",
    "focus": "joining the phases of an image in one operator",
    "right_sides": "multiplying with constants on the right",
    "axes_pairs": "dropping axes that are put in and taken out",
    "softmax_axis": "joining the axes behind a Softmax",
    "unit_axes": "transposing without axes of one element",
    "broadcast": "spreading constants",
    "line_convs": "computing convolutions over one axis as those over two",
    "narrow_convs": "computing several positions of narrow layers at a time",
    "join_gelu": "writing Gelu as one operator",
    "on_integers": "narrowing masks, and dividing instead of Reciprocal",
}
"""What `prepare` does that could be left out, by the key in `PrepareReport.changes`, as messages call it."""


def prepare(
    model: ir.Model,
    *,
    min_opset: int = 13,
    without: Collection[str] = (),
    widened: Collection[ir.DataType] = (),
    integers: bool = False,
    lacking: Collection[str] = (),
) -> PrepareReport:
    """Clean a model up in place without changing what it computes.

    Args:
        model: changed in place; names, types and order of its inputs and outputs stay (initializers that were also
            inputs are inputs no longer).
        min_opset: raise the default operator set to this where it is lower; where the converter cannot, the model
            keeps its own and a note says so.
        without: keys of `STEPS` that are left out.
        widened: element types that become float32 inside (see `onnxq.graph.prepare.whole.widen`).
        integers: it is to be run on integers alone (see `onnxq.graph.prepare.whole.on_integers`).
        lacking: operators that the engine has nothing for, and that are written with others where they can be.

    Returns:
        What was done, and notes on what could not be.
    """
    before = walk.opset(model)
    shapes.remember_declared(model)
    report = PrepareReport()
    count = report.changes
    if "functions" not in without:
        count["functions"] = functions.inline(model, report.notes)
    if "opset" not in without:
        count["opset"] = lower_opset.run(model)
    joins = "Erf" in lacking and any(node.op_type == "Erf" for node in walk.all_nodes(model.graph))
    count["names"] = names.make_unique(model)
    count["inputs"] = initializer_inputs.remove_initializers(model)
    ir_version.settle(model)
    count["constants"] = lift_constants.lift(model)
    if widened and "widen" not in without:
        count["widen"] = widen.run(model, widened)
    ranks = shapes.forget(model)
    shapes.infer(model, report.notes, folded=False)
    if before >= opset.OLDEST:
        _fold_constants(model, report, without)
    shapes.recall(model, ranks)
    if "opset" not in without and opset.raise_to(model, max(min_opset, gelu.OPSET if joins else 0), report.notes):
        count["opset"] = 1
        count["names"] += names.make_unique(model)
        count["constants"] += lift_constants.lift(model)
        shapes.infer(model, report.notes, folded=True)
        shapes.recall(model, ranks)
    _simplify(model, report, without)
    _speed_up(model, report, {*without, *(_ON_PROCESSORS if integers else ())})
    if integers:
        count.update(_run({"on_integers": on_integers.run}, model, without))
    if joins:
        count.update(_run({"join_gelu": gelu.join}, model, without))
    count.update(_run({"gelu": gelu.run, "deduplicate": deduplicate.run}, model, without))
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


_Pass = Callable[[ir.Model], int]

_BEFORE: dict[str, _Pass] = {"branches": branches.run, "eliminate": eliminate.run, "folding": fold_constants.run}
"""Before all else: the converter does better where shapes are known, and so does inference."""

_PASSES: dict[str, _Pass] = {
    "eliminate": eliminate.run,
    "branches": branches.run,
    "loop_constants": loop_constants.run,
    "folding": fold_constants.run,
    "right_sides": right_sides.run,
    "gemm": gemm.run,
    "gather_nd": gather_nd.run,
    "bounds": bounds.run,
    "hard_swish": hard_swish.run,
    "hoist": hoist.run,
    "affine": fold_affine.run,
    "ahead": ahead.run,
    "pool_order": pool_order.run,
    "stacks": stacks.run,
    "focus": focus.run,
    "axes_pairs": axes_pairs.run,
    "padding": pads.run,
    "pooling": pooling.run,
    "unused": drop_unused.run,
}

_FORMS: dict[str, _Pass] = {
    "softmax_axis": softmax_axis.run,
    "unit_axes": unit_axes.run,
    "broadcast": broadcast.run,
    "line_convs": line_convs.run,
    "hoist": hoist.run,
    "axes_pairs": axes_pairs.run,
    "narrow_convs": narrow_convs.run,
}


_ON_PROCESSORS = ("narrow_convs",)
"""Forms for the kernels of processors, with Reshape and Transpose that other engines run as operators of their own."""


def _run(passes: dict[str, _Pass], model: ir.Model, without: Collection[str]) -> Counter[str]:
    return Counter({name: change(model) for name, change in passes.items() if name not in without})


def _fold_constants(model: ir.Model, report: PrepareReport, without: Collection[str]) -> None:
    for _ in range(_ROUNDS):
        done = _run(_BEFORE, model, without)
        report.changes.update(done)
        if not done.total():
            break
        shapes.infer(model, report.notes, folded=False)
    shapes.infer(model, report.notes, folded=True)


def _simplify(model: ir.Model, report: PrepareReport, without: Collection[str]) -> None:
    for _ in range(_ROUNDS):
        done = _run(_PASSES, model, without)
        report.changes.update(done)
        if not done.total():
            return
        shapes.infer(model, report.notes, folded=True)


def _speed_up(model: ir.Model, report: PrepareReport, without: Collection[str]) -> None:
    """Give the operators that are left the form that the runtime has the fastest kernel for."""
    done = _run(_FORMS, model, without)
    if done.total():
        shapes.infer(model, report.notes, folded=True)
        done.update(_run({"axes_pairs": axes_pairs.run}, model, without))
        report.changes.update(done)
