"""Decisions as data: what each value and each node becomes, and why, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from onnxq.core.spec import QParams, TensorSpec


@dataclass(frozen=True)
class Calibrated:
    """Parameters from the value's own statistics.

    Attributes:
        spec: the grid.
        range_method: how the statistics become a range.
        within: (low, high) that the value has by definition (Softmax lies in 0…1), or outside which its readers tell
            nothing apart: the range is no wider.
        least: width that the range has at least, in the units of the value; its high end gives way.
        zeros: nothing but zeros makes a range too.
    """

    spec: TensorSpec
    range_method: str
    within: tuple[float, float] | None = None
    least: float = 0.0
    zeros: bool = False


@dataclass(frozen=True, eq=False)
class Fixed:
    """Parameters that the model brought along, from training.

    Attributes:
        params: scale and zero point, of the target's type.
        limits: smallest and largest integer that occurs, where a Clip has to see to that; None: those of the type.
    """

    params: QParams
    limits: tuple[int, int] | None = None


@dataclass(frozen=True)
class SharedWith:
    """The same parameters as another value, because the operator between them only moves elements."""

    value: str


@dataclass(frozen=True)
class Derived:
    """Parameters that follow from those of other values by a rule.

    Attributes:
        values: the values they follow from.
        rule: ``union`` (Concat: one range over all inputs, so that their integers are copied as they are).
    """

    values: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Keep:
    """Stays float."""

    reason: str


Decision = Calibrated | Fixed | SharedWith | Derived | Keep


@dataclass(frozen=True)
class Conversion:
    """A second grid of a value, of another width: some of its readers take from it what the first one left.

    Attributes:
        decision: how the second grid is found.
        readers: names of the nodes that read it.
    """

    decision: Calibrated | Fixed
    readers: frozenset[str]


INTEGER, STORAGE, FOLDED, FLOAT, PRESENT = "integer", "storage", "folded", "float", "present"
DYNAMIC, WEIGHT, HALF = "dynamic", "weight", "half"
"""What can become of a node: runs on integers; computes in float with stored integers; is done by the range of the node
before it; stays float; was quantized before onnxq saw it; runs on integers with dynamic scales; computes in
float with a kernel that reads packed weights; computes in a 16-bit float type."""


_PROMISED = frozenset({INTEGER, DYNAMIC, WEIGHT})
_DEQUANTIZED = (
    "onnxruntime joins it with a neighbour and computes it in float, dequantizing its weight at each inference"
)


@dataclass(frozen=True)
class NodePlan:
    """What becomes of one node.

    Attributes:
        name: the node's name in the prepared model.
        op_type: its operator, with the domain where that is not ONNX's own.
        action: `INTEGER`, `STORAGE`, `FOLDED`, `FLOAT`, `PRESENT`, `DYNAMIC`, `WEIGHT` or `HALF`.
        reason: why, in words; empty where the action is `INTEGER` for the plain reason that it pays.
        folds: name of the Relu or Clip behind it that its output's range replaces.
        float_output: its products are scaled back to float at once.
        adds: name of the Add behind it whose constant the kernel adds to these.
        weights: how its constants become integers, by input position.
        float_us: estimated time of the float kernel, in microseconds a sample; None where shapes are unknown.
        int_us: the same for the integer kernel.
        form: which of several forms an action takes, in the words of its emitter.
        algorithm: how its weights are rounded.
        accuracy_level: of a kernel that has levels.
        outliers: magnitude from which input channels are to be computed in float; None for none.
        channels: those that are.
        width: of how many.
        wide: why it computes in float32 where the recipe asks for a 16-bit type; empty where it does not.
        trained: its weight's integers are those that the model brought along.
        finest: least step that its products may have, in steps of its output's grid.
        grids: scale and zero point of constants for which the user gives them, by input position.
    """

    name: str
    op_type: str
    action: str
    reason: str = ""
    folds: str | None = None
    float_output: bool = False
    adds: str | None = None
    weights: dict[int, TensorSpec] = field(default_factory=dict)
    float_us: float | None = None
    int_us: float | None = None
    form: str = ""
    algorithm: str = "rtn"
    accuracy_level: int = 0
    outliers: float | None = None
    channels: tuple[int, ...] = ()
    width: int = 0
    wide: str = ""
    trained: bool = False
    finest: float = 0.0
    grids: dict[int, QParams] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Every decision, by the names of the prepared model.

    Attributes:
        nodes: one entry for each node that computes with real numbers, in graph order.
        values: one entry for each activation that has an integer form.
        conversions: the second grid of those that have one.
        notes: what the user should know about the plan as a whole.
        guarded: nodes that stay float for the sake of accuracy, whatever is faster; only the user overrides it.
    """

    nodes: dict[str, NodePlan]
    values: dict[str, Decision]
    notes: tuple[str, ...] = ()
    guarded: frozenset[str] = frozenset()
    conversions: dict[str, Conversion] = field(default_factory=dict)

    @property
    def calibrated(self) -> list[str]:
        """Names of the values whose statistics the plan needs."""
        names = {name: None for name, decision in self.values.items() if isinstance(decision, Calibrated)}
        again = (name for name, found in self.conversions.items() if isinstance(found.decision, Calibrated))
        return list(names | dict.fromkeys(again))

    @property
    def fixed(self) -> dict[str, tuple[int, int] | None]:
        """The limits of each value whose parameters are given."""
        return {name: decision.limits for name, decision in self.values.items() if isinstance(decision, Fixed)}

    @property
    def widened(self) -> frozenset[str]:
        """Names of the values whose ranges have a least width."""
        return frozenset(name for name, found in self.values.items() if isinstance(found, Calibrated) and found.least)

    @property
    def sources(self) -> dict[str, str]:
        """The value whose parameters each value has that takes another's, because its elements are only moved there."""
        found: dict[str, str] = {}
        for name in self.values:
            root = name
            while isinstance(decision := self.values[root], SharedWith):
                root = found[name] = decision.value
        return found

    def grid_read(self, value: str, reader: str) -> TensorSpec | None:
        """The grid on which a node reads a value; None where the value has none."""
        second = self.conversions.get(value)
        decision = self.values.get(value) if second is None or reader not in second.readers else second.decision
        while isinstance(decision, SharedWith | Derived):
            decision = self.values.get(decision.value if isinstance(decision, SharedWith) else decision.values[0])
        if isinstance(decision, Fixed):
            return decision.params.spec
        return decision.spec if isinstance(decision, Calibrated) else None

    def coverage(self) -> dict[str, dict[str, int]]:
        """``{operator: {"quantized": n, "total": n}}``; integer, folded and storage nodes count as quantized."""
        table: dict[str, dict[str, int]] = {}
        for node in self.nodes.values():
            row = table.setdefault(node.op_type, {"quantized": 0, "total": 0})
            row["total"] += 1
            row["quantized"] += node.action != FLOAT
        return dict(sorted(table.items()))

    def kept_float(self) -> list[tuple[str, str, str]]:
        """(node, operator, reason) of everything that computes in float."""
        return [(n.name, n.op_type, n.reason) for n in self.nodes.values() if n.action in (FLOAT, STORAGE)]

    def as_run(self, dequantized: Collection[str]) -> Plan:
        """The plan with what the runtime really does: these layers read integers and multiply in float."""
        found = {name: node for name in dequantized if (node := self.nodes.get(name)) and node.action in _PROMISED}
        changed = {name: replace(node, action=STORAGE, reason=_DEQUANTIZED) for name, node in found.items()}
        return replace(self, nodes={**self.nodes, **changed}) if changed else self

    def counts(self, *actions: str) -> int:
        """How many nodes have one of the actions."""
        return sum(node.action in actions for node in self.nodes.values())

    def with_node(self, node: NodePlan) -> Plan:
        """A copy in which one node's plan is replaced."""
        return replace(self, nodes={**self.nodes, node.name: node})
