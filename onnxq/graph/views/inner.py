"""Values inside subgraphs of If, Loop and Scan, handed out by the nodes around them until the main graph has them.

A branch of an If hands out what it computed and the other branch an empty array. A Loop carries a sequence to which
each iteration adds its array, so that shapes may change from one to the next; what lies deeper is added to the same
sequence. A Scan stacks its iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.traits import Trait, having

Chain = tuple[tuple[ir.Node, ir.Graph], ...]
"""The way to a body: each node that holds the next body, outermost first."""

_NOT_RUN = -1
"""What stands for the shape of a value in a branch that was not taken."""


def chains(graph: ir.Graph, above: Chain = ()) -> dict[int, Chain]:
    """The way to each body of a graph, by the body's id."""
    found: dict[int, Chain] = {}
    for node in graph:
        for _, body in walk.subgraphs(node):
            chain = (*above, (node, body))
            found[id(body)] = chain
            found |= chains(body, chain)
    return found


def why_hidden(chain: Chain, version: int) -> str:
    """Why the values of a body cannot be handed out; empty where they can.

    Args:
        chain: the way to the body.
        version: default operator set of the model.
    """
    kinds = [node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}" for node, _ in chain]
    for kind in kinds:
        if kind not in having(Trait.HOLDS_GRAPHS):
            return f"{kind} does not hand out values of its subgraph"
    if "Scan" in kinds[:-1]:
        return f"{kinds[-1]} lies in the subgraph of a Scan, which hands out arrays of one shape only"
    for kind, since in (("Loop", 13), ("Scan", 9)):
        if kind in kinds and version < since:
            return f"{kind} hands out such values from operator set {since} on, and the model has {version}"
    return ""


def own_values(body: ir.Graph) -> list[ir.Value]:
    """The values that a body computes or is given for each run, without those of subgraphs inside it."""
    values = [*body.inputs, *(output for node in body for output in node.outputs)]
    return [value for value in values if value.name]


def float_names(model: ir.Model) -> list[str]:
    """Names of all float32 values of subgraphs that can be handed out."""
    version = walk.opset(model)
    return [
        value.name or ""
        for chain in chains(model.graph).values()
        if not why_hidden(chain, version)
        for value in own_values(chain[-1][1])
        if value.dtype == ir.DataType.FLOAT
    ]


def expose(model: ir.Model, names: Iterable[str], *, shapes: bool = False) -> dict[str, str]:
    """Let a model also give values of its subgraphs.

    Args:
        model: changed in place.
        names: values of subgraphs; those that are none, hold no real numbers, or cannot be handed out, are left out.
        shapes: give not the arrays but their shapes.

    Returns:
        Name of the output by name of the value. What the output holds `arrays_of` and `shape_of` can read.
    """
    wanted = set(names)
    free = walk.Names(model)
    version = walk.opset(model)
    added: dict[str, str] = {}
    for key in chains(model.graph) if wanted else ():
        chain = chains(model.graph)[key]  # anew: the nodes on the way may have been replaced
        known = [value for value in own_values(chain[-1][1]) if value.name in wanted]
        values = [value for value in known if value.dtype is None or walk.is_float(value)]
        if not values or why_hidden(chain, version):
            continue
        outputs = _Lift(chain, values, free, shapes).run()
        model.graph.outputs.extend(outputs)
        added |= {value.name or "": output.name or "" for value, output in zip(values, outputs, strict=True)}
    return added


def arrays_of(result: Any) -> list[Array]:
    """The arrays that an output made by `expose` holds; none for a body that was not run."""
    arrays = result if isinstance(result, list) else [result]
    return [array for array in arrays if array.size]


def shape_of(result: Any) -> tuple[int, ...] | None:
    """The first shape in an output made by `expose`; None for a body that was not run."""
    for entry in result if isinstance(result, list) else [result]:
        rows = entry.reshape(-1, entry.shape[-1]) if entry.ndim > 1 else entry[None]
        for row in rows:
            if _NOT_RUN not in row:
                return tuple(int(length) for length in row)
    return None


class _Lift:
    """Hands the values of one body up, level by level."""

    def __init__(self, chain: Chain, values: Sequence[ir.Value], free: walk.Names, shapes: bool) -> None:
        self._chain = chain
        self._values = values
        self._free = free
        self._shapes = shapes

    def run(self) -> list[ir.Value]:
        """The values that the main graph has of them."""
        first = self._chain[0][0]
        assert first.graph is not None
        carried: list[ir.Value] = []
        if any(node.op_type == "Loop" for node, _ in self._chain):
            starts = [
                self._node("SequenceEmpty", [], index, [ir.AttrInt64("dtype", int(self._dtype(index)))])
                for index in range(len(self._values))
            ]
            first.graph.insert_before(first, starts)
            carried = [node.outputs[0] for node in starts]
        return self._from(0, carried)

    def _from(self, level: int, carried: Sequence[ir.Value]) -> list[ir.Value]:
        """Values of the graph of that level, which hold what ``carried`` held and what the body has to add."""
        if level == len(self._chain):
            body = self._chain[-1][1]
            kind = "Shape" if self._shapes else "Identity"
            made = [self._add(body, kind, [value], index) for index, value in enumerate(self._values)]
            return self._join(body, carried, made)
        node, body = self._chain[level]
        graph = node.graph
        assert graph is not None
        if node.op_type == "If":
            for _, branch in walk.subgraphs(node):
                inside = self._from(level + 1, carried) if branch is body else self._nothing(branch, carried)
                branch.outputs.extend(inside)
            return self._more_outputs(node, len(list(node.outputs)))
        if node.op_type == "Scan":
            before = len(body.outputs)
            body.outputs.extend(self._from(level + 1, ()))
            for name in ("scan_output_axes", "scan_output_directions"):
                if numbers := walk.attr_ints(node, name):
                    longer = (*numbers, *[0] * len(self._values))
                    node.attributes[name] = ir.AttrInt64s(name, longer)
            return self._join(graph, carried, self._more_outputs(node, before))
        states = len(body.inputs) - 2
        inputs = [ir.Value(name=self._free.value(f"{value.name}_before")) for value in self._values]
        body.inputs.extend(inputs)
        inside = self._from(level + 1, inputs)
        given = list(body.outputs)
        body.outputs.clear()
        body.outputs.extend([*given[: 1 + states], *inside, *given[1 + states :]])
        return self._more_states(node, states, len(given) - 1, carried)

    def _nothing(self, branch: ir.Graph, carried: Sequence[ir.Value]) -> list[ir.Value]:
        made = []
        for index in range(len(self._values)):
            if self._shapes:
                empty = ir.tensor([_NOT_RUN], dtype=ir.DataType.INT64)
            else:
                dtype = self._dtype(index)
                empty = ir.Tensor(np.zeros(0, dtype.numpy()), dtype=dtype)
            made.append(self._add(branch, "Constant", [], index, [ir.AttrTensor("value", empty)]))
        return self._join(branch, carried, made)

    def _join(self, graph: ir.Graph, carried: Sequence[ir.Value], made: list[ir.Value]) -> list[ir.Value]:
        if not carried:
            return made
        pairs = enumerate(zip(carried, made, strict=True))
        return [self._add(graph, "SequenceInsert", [before, new], index) for index, (before, new) in pairs]

    def _more_outputs(self, node: ir.Node, before: int) -> list[ir.Value]:
        """Further outputs behind the first ``before``, of which the last may have been left out."""
        given = len(node.outputs)
        node.resize_outputs(before + len(self._values))
        for output in node.outputs[given:before]:
            output.name = ""
        added = list(node.outputs[before:])
        for value, output in zip(self._values, added, strict=True):
            output.name = self._free.value(f"{value.name}_inside")
        return added

    def _more_states(self, node: ir.Node, states: int, before: int, carried: Sequence[ir.Value]) -> list[ir.Value]:
        """A Loop with further states, in the place of ``node``."""
        graph = node.graph
        assert graph is not None
        inputs = [walk.input_at(node, index) for index in range(2 + states)]
        count = len(self._values)
        new = ir.Node(
            node.domain, node.op_type, [*inputs, *carried], list(node.attributes.values()),
            num_outputs=before + count, name=node.name, version=node.version,
        )  # fmt: skip
        graph.insert_after(node, [new])
        kept = [*new.outputs[:states], *new.outputs[states + count :]]
        for index, output in enumerate(kept):
            if index < len(node.outputs) and node.outputs[index].name:
                edit.take_over(node.outputs[index], output)
            else:
                output.name = ""
        graph.remove(node, safe=True)
        added = list(new.outputs[states : states + count])
        for value, output in zip(self._values, added, strict=True):
            output.name = self._free.value(f"{value.name}_inside")
        return added

    def _dtype(self, index: int) -> ir.DataType:
        return ir.DataType.INT64 if self._shapes else self._values[index].dtype or ir.DataType.FLOAT

    def _add(
        self, graph: ir.Graph, op_type: str, inputs: list[ir.Value], index: int, attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        node = self._node(op_type, inputs, index, attributes)
        graph.append(node)
        return node.outputs[0]

    def _node(self, op_type: str, inputs: list[ir.Value], index: int, attributes: Sequence[ir.Attr]) -> ir.Node:
        base = f"{self._values[index].name}_{op_type}"
        output = ir.Value(name=self._free.value(base))
        return ir.Node("", op_type, inputs, attributes, outputs=[output], name=self._free.node(base))
