"""What a lint finds, and the facts that its rules look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxq.core.dtypes import Array
from onnxq.graph import walk
from onnxq.graph.types import Model, Node, Value


@dataclass(frozen=True)
class LintFinding:
    """One thing that does not fit a target.

    Attributes:
        rule: its name.
        node: the node, or input of the model, that it is about.
        op_type: operator of the node; empty for an input or the model.
        why: what is there, and why it matters on this target.
        remedy: what to do.
        refuses: the target would not run the model so, or not rightly; else it would only be slower or coarser.
        fixable: ``--fix`` makes it right.
    """

    rule: str
    node: str
    op_type: str
    why: str
    remedy: str
    refuses: bool = True
    fixable: bool = False

    def __str__(self) -> str:
        where = f"{self.op_type} {self.node!r}" if self.op_type else self.node
        return f"{where}: {self.rule}: {self.why}; {self.remedy}"


@dataclass
class LintResult:
    """Everything that was found.

    Attributes:
        target: name of the target.
        findings: in graph order.
        fixed: how often each rule was made right, by its name.
        output: the file that was written; None for none.
        engine: what the target's engine is, where it was asked; None where it is not here.
        warnings: one line each.
    """

    target: str
    findings: list[LintFinding]
    fixed: dict[str, int] = field(default_factory=dict)
    output: str | None = None
    engine: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether the target would refuse the model, or run it wrongly."""
        return any(finding.refuses for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "target": self.target,
            "refused": self.refused,
            "findings": [asdict(finding) for finding in self.findings],
            "fixed": self.fixed,
            "output": self.output,
            "engine": self.engine,
            "warnings": self.warnings,
        }

    def summary(self) -> str:
        """A line a finding."""
        return "\n".join(map(str, self.findings)) or f"nothing found for {self.target}"


@dataclass(frozen=True)
class GridNode:
    """A QuantizeLinear or DequantizeLinear.

    Attributes:
        node: the node.
        is_quantize: which of the two.
        constant: it dequantizes a constant.
        scale: its scale; None where that is no constant.
        zero_point: its zero point; None where it is left out or no constant.
        kind: integer type, in lower case; empty where it is not known.
    """

    node: Node
    is_quantize: bool
    constant: bool
    scale: Array | None
    zero_point: Array | None
    kind: str


def pairs_of(model: Model) -> Iterator[GridNode]:
    """Every Q and DQ of a model, subgraphs included, of either domain."""
    for node in walk.all_nodes(model.graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or not node.inputs or node.inputs[0] is None:
            continue
        is_quantize = node.op_type == "QuantizeLinear"
        zero = walk.input_at(node, 2)
        typed = zero if zero is not None else (node.outputs[0] if is_quantize else node.inputs[0])
        kind = typed.dtype.name.lower() if typed.dtype is not None else ("uint8" if is_quantize else "")
        scale, zero_point = walk.const_array(walk.input_at(node, 1)), walk.const_array(zero)
        yield GridNode(node, is_quantize, walk.is_constant(node.inputs[0]), scale, zero_point, kind)


def dequantizer(value: Value | None) -> Node | None:
    """The DQ that writes a value; None where something else does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def readers(node: Node) -> list[tuple[Node, int]]:
    """The nodes that read what a node writes, and at which input."""
    return [(use.node, use.idx) for output in node.outputs for use in output.uses()]
