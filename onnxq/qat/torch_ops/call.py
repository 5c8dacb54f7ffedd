"""What an operator's function is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onnxq.errors import ModelError
from onnxq.graph.views.plain_graph import PlainNode

Function = Callable[["Call"], "Tensor | Sequence[Tensor | None]"]
"""An operator: its outputs in order, or its one output."""


__all__ = ["Call", "Function", "NodeError", "Tensor"]


class NodeError(ModelError):
    """A node that PyTorch cannot run on what it was given.

    Attributes:
        node: the node.
    """

    def __init__(self, node: PlainNode, reason: str) -> None:
        super().__init__(f"{node.op_type} {node.name!r}: {reason}")
        self.node = node


@dataclass(frozen=True)
class Call:
    """One node with the tensors that it reads.

    Integers of at most 8 bits are held as whole numbers in float32, so that gradients pass; int64 and bool are
    torch's own.

    Attributes:
        node: the node.
        inputs: its tensors; None where one is left out.
    """

    node: PlainNode
    inputs: list[Tensor | None]

    def at(self, index: int) -> Tensor | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def need(self, index: int) -> Tensor:
        """An input that is there."""
        value = self.inputs[index]
        assert value is not None
        return value

    def numbers(self, index: int) -> list[int] | None:
        """An input as a list of whole numbers; None where it is left out or empty."""
        value = self.at(index)
        return None if value is None or value.numel() == 0 else [int(v) for v in value.reshape(-1).tolist()]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute or its default."""
        return self.node.attributes.get(name, default)

    def axes(self, index: int = 1) -> list[int] | None:
        """``axes``, which older operator sets have as an attribute and newer ones as an input."""
        given = self.attribute("axes")
        return [int(axis) for axis in given] if given is not None else self.numbers(index)

    @property
    def opset(self) -> int:
        """Version of the node's operator set."""
        return self.node.opset
