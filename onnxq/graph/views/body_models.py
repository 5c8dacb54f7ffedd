"""The body of an If, Loop or Scan as a model of its own, which takes what the body is given and reads from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph import traits, walk


@dataclass(frozen=True)
class BodyModel:
    """A body as a model.

    Attributes:
        model: its inputs keep their names.
        given: names of the body's own inputs, in order.
        captured: names of the values of the graph around it that it reads.
    """

    model: ir.Model
    given: tuple[str, ...]
    captured: tuple[str, ...]

    @property
    def dtypes(self) -> dict[str, str]:
        """Element types of the inputs."""
        known = ((value.name or "", value.dtype) for value in self.model.graph.inputs)
        return {name: dtype.numpy().name for name, dtype in known if dtype is not None and dtype != ir.DataType.STRING}


def bodies_of(model: ir.Model) -> list[tuple[ir.Node, str]]:
    """The nodes of the main graph that hold subgraphs, once for each body, with the name of its attribute."""
    return [(node, name) for node in model.graph for name, _ in walk.subgraphs(node)]


def body_model(model: ir.Model, holder: str, attribute: str, dtypes: Mapping[str, str]) -> BodyModel | None:
    """A body as a model of its own; None where the model has no such body.

    Q and DQ of the graph around it that the body reads come with it, and so do constants.

    Args:
        model: unchanged; constants are shared with it.
        holder: name of the node of the main graph that holds the body.
        attribute: of that node.
        dtypes: element types, such as "float32", by name of the values that have none.
    """
    copy = model.clone()
    node = next((n for n in copy.graph if n.name == holder), None)
    body = dict(walk.subgraphs(node)).get(attribute) if node is not None else None
    if body is None:
        return None
    return _Taken(copy, body, dtypes).run()


class _Taken:
    def __init__(self, model: ir.Model, body: ir.Graph, dtypes: Mapping[str, str]) -> None:
        self._model, self._body, self._dtypes = model, body, dtypes
        self._inside = {id(value) for value in walk.all_values(body)}
        self._made: dict[int, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._constants: list[ir.Value] = []
        self._first: list[ir.Node] = []

    def run(self) -> BodyModel:
        body, outer = self._body, self._model.graph
        given = list(body.inputs)
        ends = [value for value in body.outputs if value.producer() is not None and id(value) in self._inside]
        for node in walk.all_nodes(body):
            for position, value in enumerate(node.inputs):
                if value is not None and id(value) not in self._inside:
                    node.replace_input_with(position, self._from_outside(value))
        nodes, own = list(body), list(body.initializers.values())
        body.outputs.clear()
        body.inputs.clear()
        body.initializers.clear()
        body.remove(nodes)
        for value in given:
            value.dtype = value.dtype or self._dtype(value)
            value.shape = None
        graph = ir.Graph(
            [*given, *self._inputs],
            list(dict.fromkeys(ends)),
            nodes=[*self._first, *nodes],
            initializers=[*own, *self._constants],
            opset_imports=dict(outer.opset_imports),
            name=body.name or "body",
        )
        model = ir.Model(graph, ir_version=self._model.ir_version)
        names = tuple(value.name or "" for value in given)
        return BodyModel(model, names, tuple(value.name or "" for value in self._inputs))

    def _dtype(self, value: ir.Value) -> ir.DataType:
        return ir.DataType.from_numpy(np.dtype(self._dtypes.get(value.name or "", "float32")))

    def _from_outside(self, value: ir.Value) -> ir.Value:
        """What stands here for a value of the graph around: a constant, the end of a pair, or an input."""
        if id(value) in self._made:
            return self._made[id(value)]
        tensor = value.const_value if walk.is_constant(value) else None
        producer = value.producer()
        if tensor is not None:
            made = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
            self._constants.append(made)
        elif producer is not None and producer.op_type in traits.CONVERSIONS:
            inputs = [None if read is None else self._from_outside(read) for read in producer.inputs]
            made = ir.Value(name=value.name, type=value.type)
            attributes = list(producer.attributes.values())
            self._first.append(
                ir.Node(
                    producer.domain, producer.op_type, inputs, attributes, outputs=[made], name=producer.name,
                    version=producer.version,
                )
            )  # fmt: skip
        else:
            made = ir.Value(name=value.name, type=value.type)
            made.dtype = made.dtype or self._dtype(value)
            self._inputs.append(made)
        self._made[id(value)] = made
        return made
