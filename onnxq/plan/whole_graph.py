"""The plan for engines that compute on integers alone, or wherever they can: every node, whatever it costs.

Nothing is weighed here. With `WHOLE` all that a node reads and writes has a grid, outputs of the model too; with
`INPUTS` what the operators of the target's table read has one, and nothing behind them. Where ONNX Runtime's own plan
would leave a value float, since 8 bits are too few for it, an engine that has 16-bit activations gets these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerTensor, QParams, TensorSpec
from onnxq.graph import traits, walk
from onnxq.graph.reading.mask_values import mask_number, masked_values
from onnxq.graph.reading.ops import EDGE, ROW, Kind, OpRow, activation_positions, channel_axis, is_weight, row_of
from onnxq.graph.types import FLOAT32, Model, Node, Value
from onnxq.plan.activations.activation_grids import WIDE, of_width
from onnxq.plan.decisions import (
    FLOAT,
    FOLDED,
    INTEGER,
    PRESENT,
    Calibrated,
    Conversion,
    Decision,
    Fixed,
    NodePlan,
    Plan,
    SharedWith,
)
from onnxq.plan.placement.candidates import QUANTIZED_OPS, Quantizable, Survey, dtype_of, fold_clamps
from onnxq.plan.placement.select import Choice, Selection
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.targets import WHOLE, Target

_PRODUCTS = traits.LAYERS - {"ConvTranspose"}
"""Operators that have kernels for float8."""

_STRUCTURAL = traits.STRUCTURAL

_CUTTING = traits.CLAMPS

_FIXED_16 = {"HardSigmoid": (1.0 / 65536, 0), "Sigmoid": (1.0 / 65536, 0), "Tanh": (1.0 / 32768, 32768)}
"""(scale, zero point) that HTP wants of these in uint16."""

_QUANTIZES, _TAKES_AXES = 10, 13
"""The operator sets from which on there is a QuantizeLinear, and one with a scale for each channel."""


@dataclass(frozen=True)
class Whole:
    """What such a plan is made from.

    Attributes:
        recipe: what the user asked for.
        target: what the engine runs.
        selection: the user's choice of nodes.
        spec: the grid of activations, as the recipe's own preset has it.
        dtypes: element types seen at a run.
        unusable: values that no integers can stand for, and why.
        coarse: values that 8 bits are too few for, and why.
    """

    recipe: Recipe
    target: Target
    selection: Selection
    spec: TensorSpec
    dtypes: Mapping[str, str]
    unusable: Mapping[str, str]
    coarse: Mapping[str, str] = field(default_factory=dict)

    @property
    def outputs_too(self) -> bool:
        """Whether what nodes write has a grid."""
        return self.target.coverage == WHOLE

    def spec_of(self, node: Node, choice: Choice) -> TensorSpec:
        """The grid of what a node reads and writes: rules, and values that need it, may give it another width."""
        preset = PRESETS[choice.rule.preset or self.recipe.preset]
        spec = of_width(self.spec, preset.activation_bits) if preset.activations == "static" else self.spec
        return of_width(spec, WIDE) if self.why_wide(node, choice) else spec

    def why_wide(self, node: Node, choice: Choice) -> str:
        """What is wrong with 8 bits for a value that a node touches; empty where nothing is, or a rule decides."""
        if choice.rule.preset is not None:
            return ""
        if node.op_type in self.target.rough_in_8 and widens(self.recipe, self.target):
            return f"{node.op_type} of 8 bits is rounded badly by {self.target.name}"
        touched = (value.name or "" for value in (*node.inputs, *node.outputs) if value is not None)
        return next((f"value {name!r} {self.coarse[name]}" for name in touched if name in self.coarse), "")

    def is_float(self, value: Value | None) -> bool:
        """Whether a value is known to be float32."""
        return value is not None and dtype_of(value, self.dtypes) == "float32"


def plan_whole(model: Model, asked: Whole) -> Plan:
    """Decide what each node and value becomes.

    Args:
        model: the prepared model, whose nodes have rows (`onnxq.graph.emit.wrapped.mark_rows`).
        asked: recipe, target, and what a run has shown.
    """
    masked = masked_values(model.graph)
    if widens(asked.recipe, asked.target):
        asked = replace(asked, coarse=_with_moved(model, {**{n: _mask(v) for n, v in masked.items()}, **asked.coarse}))
    found = _survey(model, asked, masked)
    if asked.outputs_too:
        fold_clamps(found, asked.spec.symmetric, drop=False)
    nodes: dict[str, NodePlan] = {}
    for node in found.order:
        name = node.name or ""
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        candidate, before = found.candidates.get(name), found.folded.get(name)
        if name in found.present:
            nodes[name] = NodePlan(name, op_type, PRESENT, "quantized already")
        elif before is not None:
            nodes[name] = NodePlan(name, op_type, FOLDED, f"done by the output range of {before.node.name!r}")
        elif candidate is not None:
            folds = candidate.clamp.name if candidate.clamp is not None else None
            nodes[name] = NodePlan(
                name,
                op_type,
                INTEGER,
                _why_16(asked.why_wide(node, candidate.choice)),
                folds=folds,
                weights=_weights(candidate, asked),
                finest=asked.target.finest,
            )
        else:
            nodes[name] = NodePlan(name, op_type, FLOAT, found.kept.get(name, ""))
    values = _Values(model, found, asked)
    return Plan(nodes, values.decided, conversions=values.conversions())


def widens(recipe: Recipe, target: Target) -> bool:
    """Whether single values of a model with 8-bit activations may have 16 on a target that runs integers alone."""
    preset = PRESETS[recipe.preset]
    static = preset.activations == "static" and not preset.float8 and preset.activation_bits < WIDE
    return static and target.coverage == WHOLE and QType.UINT16 in target.activations


def _mask(number: float) -> str:
    return f"carries an attention mask ({number:.4g}), whose range leaves no resolution for the rest"


def _why_16(reason: str) -> str:
    return f"16-bit activations: {reason}" if reason else ""


def _with_moved(model: Model, coarse: Mapping[str, str]) -> dict[str, str]:
    """These values, and what is made of them by operators that move elements or cut them off."""
    found = dict(coarse)
    for node in walk.all_nodes(model.graph):
        row = row_of(node)
        source = node.inputs[0] if node.inputs else None
        follows = node.op_type in _CUTTING or (row is not None and row.kind is Kind.PASSING)
        if follows and source is not None and (source.name or "") in found:
            found.setdefault(node.outputs[0].name or "", found[source.name or ""])
    return found


def _survey(model: Model, asked: Whole, masked: Mapping[str, float]) -> Survey:
    found = Survey()
    for node in walk.all_nodes(model.graph):
        name = node.name or ""
        if node.op_type in QUANTIZED_OPS:
            found.present.add(name)
            found.order.append(node)
            continue
        touched = any(map(asked.is_float, (*node.inputs, *node.outputs)))
        if node.op_type in _STRUCTURAL or EDGE in node.meta or not touched:
            continue
        found.order.append(node)
        choice = asked.selection.of(name, node.op_type)
        row = node.meta.get(ROW)
        reason = choice.reason or _why_not(node, row, asked, masked)
        if reason is not None or not isinstance(row, OpRow):
            found.kept[name] = reason or f"{asked.target.name} does not run {node.op_type} on integers"
        else:
            found.candidates[name] = Quantizable(node, row, choice)
    return found


def _why_not(node: Node, row: object, asked: Whole, masked: Mapping[str, float]) -> str | None:
    if not isinstance(row, OpRow):
        return None
    if (opset := _opset_of(node)) < _QUANTIZES:
        return f"operator set {opset}, from which the model cannot be raised, has no QuantizeLinear"
    if asked.spec.dtype.is_float and node.op_type not in _PRODUCTS:
        return "only products have kernels for float8"
    values = [node.inputs[i] for i in activation_positions(node, row)] + list(node.outputs)
    if all(walk.is_constant(value) for value in node.inputs if value is not None):
        return "all its inputs are constant"
    for value in values:
        if value is None:
            continue
        if (value.name or "") in asked.unusable:
            return f"value {value.name!r} {asked.unusable[value.name or '']}"
        number = masked.get(value.name or "", mask_number(value))
        if number is not None and asked.spec_of(node, asked.selection.of(node.name or "", node.op_type)).bits < WIDE:
            return f"it {_mask(number)}"
    return None


def _opset_of(node: Node) -> int:
    return walk.opset(node.graph) if node.graph is not None else _TAKES_AXES


def _weights(candidate: Quantizable, asked: Whole) -> dict[int, TensorSpec]:
    """Grids of the constants of a node."""
    node, row = candidate.node, candidate.row
    specs: dict[int, TensorSpec] = {}
    if row.weight is not None and is_weight(node, row):
        specs[row.weight] = _weight(node, row.weight, candidate.choice, asked)
    for position in activation_positions(node, row):
        if walk.is_constant(node.inputs[position]):
            specs[position] = asked.spec_of(node, candidate.choice)
    return specs


def _weight(node: Node, position: int, choice: Choice, asked: Whole) -> TensorSpec:
    recipe, target = asked.recipe, asked.target
    array = walk.const_array(node.inputs[position])
    assert array is not None
    if asked.spec.dtype.is_float:
        return asked.spec
    if node.op_type.endswith("Normalization"):  # HTP multiplies by it as by another activation
        return replace(asked.spec, dtype=QType.UINT8, grid_bits=None)
    per_channel = recipe.per_channel if choice.rule.per_channel is None else choice.rule.per_channel
    by_channel = per_channel and node.op_type in target.per_channel and _opset_of(node) >= _TAKES_AXES
    axis = channel_axis(node, array.ndim) if by_channel else None
    bits = choice.rule.bits or recipe.bits or PRESETS[choice.rule.preset or recipe.preset].bits
    layer = node.op_type in traits.LAYERS
    small = bits <= 4 and QType.INT4 in target.weights and layer
    dtype = QType.INT4 if small else target.weight
    used = None if small else min(bits, target.weight_bits)
    return TensorSpec(
        dtype,
        PerTensor() if axis is None else PerAxis(axis),
        symmetric=True,
        narrow_range=True,
        grid_bits=used if used is not None and used < dtype.bits and layer else None,
    )


class _Values:
    """A decision for each value that has a grid, inputs first, in graph order, and what is read on a second one."""

    def __init__(self, model: Model, found: Survey, asked: Whole) -> None:
        self._asked = asked
        self._specs = {name: asked.spec_of(c.node, c.choice) for name, c in found.candidates.items()}
        self._readers = _readers(found)
        self._writers = {output.name or "": c for c in found.candidates.values() for output in c.outputs}
        self.decided: dict[str, Decision] = {}
        self._held: dict[str, TensorSpec] = {}
        for value in model.graph.inputs:
            if value.name in self._readers:
                self._decide(value.name or "", _own(None, self._widest(value.name or ""), asked))
        for node in model.graph:
            for output in node.outputs:
                self._output(node, output)

    def _decide(self, name: str, decision: Decision) -> None:
        self.decided[name] = decision
        if isinstance(decision, SharedWith):
            self._held[name] = self._held[decision.value]
        elif isinstance(decision, Calibrated):
            self._held[name] = decision.spec
        elif isinstance(decision, Fixed):
            self._held[name] = decision.params.spec

    def _widest(self, name: str) -> TensorSpec:
        """The grid of what is computed in float: the finest of those of the nodes that read it."""
        return max((self._specs[reader] for reader in self._readers[name]), key=lambda spec: spec.bits)

    def _output(self, node: Node, output: Value) -> None:
        name, asked = output.name or "", self._asked
        writer, read = self._writers.get(name), name in self._readers
        if not asked.is_float(output) or (writer is None and not read):
            return
        if writer is None or not asked.outputs_too:
            if read:
                self._decide(name, _own(row_of(node), self._widest(name), asked))
        elif read or output.uses() or not _left_float(output, node, asked):
            self._decide(name, self._written(writer, output))

    def _written(self, writer: Quantizable, output: Value) -> Decision:
        node, row, spec = writer.node, writer.row, self._specs[writer.node.name or ""]
        if row.kind is Kind.PASSING and output is node.outputs[0]:
            source = node.inputs[0]
            held = self._held.get(source.name or "") if source is not None else None
            if source is not None and held is not None and source.dtype == FLOAT32 and not walk.is_constant(source):
                self._specs[node.name or ""] = held  # what only moves elements has the width of what it moves
                return SharedWith(source.name or "")
        if spec.dtype is QType.UINT16 and node.op_type in _FIXED_16 and writer.clamp is None:
            scale, zero = _FIXED_16[node.op_type]
            return Fixed(QParams(spec, np.array(scale, np.float32), np.array(zero, np.uint16)))
        return _own(row, spec, self._asked)

    def conversions(self) -> dict[str, Conversion]:
        """The values that some nodes read in another width than they are written in."""
        found = {}
        for name, held in self._held.items():
            others = [reader for reader in self._readers.get(name, ()) if self._specs[reader].bits != held.bits]
            if others:
                decision = _again(self.decided[name], self._specs[others[0]], self._asked)
                found[name] = Conversion(decision, frozenset(others))
        return found


def _readers(found: Survey) -> dict[str, list[str]]:
    """By value, the nodes that read it on integers."""
    readers: dict[str, list[str]] = {}
    for name, candidate in found.candidates.items():
        for position in activation_positions(candidate.node, candidate.row):
            value = candidate.node.inputs[position]
            if value is not None and not walk.is_constant(value):
                readers.setdefault(value.name or "", []).append(name)
    return readers


def _again(first: Decision, spec: TensorSpec, asked: Whole) -> Calibrated:
    """How the second grid of a value is found: as the first one."""
    if isinstance(first, Calibrated):
        return replace(first, spec=spec)
    return Calibrated(spec, asked.recipe.range)


def _left_float(output: Value, node: Node, asked: Whole) -> bool:
    return output.is_graph_output() and node.op_type in asked.recipe.float_outputs


def _own(row: OpRow | None, spec: TensorSpec, asked: Whole) -> Calibrated:
    within = row.fixed_range if row is not None else None
    if spec.dtype.is_float:  # its small numbers lose nothing to the large ones, so that nothing is clipped
        return Calibrated(spec, "minmax", within=within)
    return Calibrated(spec, asked.recipe.range if within is None else "minmax", within=within)
