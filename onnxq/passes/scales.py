"""Scale the channels of a value and take the scales back in the layers that read it: the model computes the same.

This is how activation-aware weight quantization and SmoothQuant shift difficulty between activations and weights.

References:
    Xiao et al., SmoothQuant, arXiv:2211.10438, section 4; Lin et al., AWQ, arXiv:2306.00978, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import ModelError
from onnxq.graph import edit, walk
from onnxq.graph.types import Model, Node, Value
from onnxq.passes.absorb import absorb
from onnxq.plan.weights.needed_moments import layer_input


@dataclass(frozen=True)
class Scaled:
    """Where the scales of a value went.

    Attributes:
        into: nodes whose constants took them up; empty where a Mul was added.
        added: name of the Mul that was added; None where there was no need to.
    """

    into: tuple[str, ...] = ()
    added: str | None = None

    @property
    def how(self) -> str:
        """In words."""
        return f"folded into {', '.join(map(repr, self.into))}" if self.added is None else f"a Mul {self.added!r}"


def scale_channels(model: Model, value_name: str, layers: Sequence[str], scales: Array) -> Scaled:
    """Multiply the channels of a value by ``scales`` and divide the rows of the layers' weights by them.

    Where the layers are all that reads the value, what makes it takes up the scales: the scale and shift of a
    normalization, the weight and bias of a layer, a constant factor; also through an activation with
    f(s·x) = s·f(x), and through what only reshapes. Where something else reads it too (a residual connection), or
    nothing there can take them up, a Mul in front of the layers multiplies by them. Constants that other nodes read
    as well are copied first.

    Args:
        model: changed in place.
        value_name: the value; its last axis are the channels.
        layers: names of MatMul and Gemm nodes that multiply it with a constant matrix.
        scales: (channels,), positive and finite.

    Raises:
        ModelError: there is no such layer, it does not read the value, the scales do not fit it, or they take a weight
            out of the range of its type. Nothing was changed then.
    """
    factors = scales.astype(np.float64)
    nodes = {node.name: node for node in walk.all_nodes(model.graph)}
    chosen = [nodes[name] for name in dict.fromkeys(layers) if name in nodes]
    value = _checked(value_name, chosen, set(layers) - set(nodes), factors)
    weights = [_divided(node, factors) for node in chosen]
    names = walk.Names(model)
    changes = absorb(value, factors) if _only_layers_read(value, chosen) else None
    if changes is None:
        array_type = walk.const_array(chosen[0].inputs[1])
        assert array_type is not None
        product = edit.multiply_by(model.graph, value, factors.astype(array_type.dtype), names, f"{value_name}_scaled")
        for node in chosen:
            edit.set_input(node, 0, product)
        producer = product.producer()
        found = Scaled(added=producer.name if producer is not None else None)
    else:
        for change in changes:
            old = change.node.inputs[change.position]
            edit.set_constant(change.node, change.position, change.array, names, f"{old.name}_scaled" if old else "")
        found = Scaled(tuple(dict.fromkeys(change.node.name or "" for change in changes)))
    for node, array in zip(chosen, weights, strict=True):
        old = node.inputs[1]
        edit.set_constant(node, 1, array, names, f"{old.name}_scaled" if old is not None else "")
    return found


def _checked(name: str, layers: Sequence[Node], missing: set[str], factors: Array) -> Value:
    if missing or not layers:
        raise ModelError(f"scale_channels: the model has no node {min(missing, default='')!r}; name layers of it")
    if factors.ndim != 1 or not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelError(f"value {name!r}: scales have to be positive, finite and of one axis")
    for node in layers:
        read = layer_input(node)
        if read != (name, factors.size):
            raise ModelError(
                f"{node.op_type} {node.name!r}: does not multiply {factors.size} channels of {name!r} with a constant; "
                "name layers that do"
            )
    value = layers[0].inputs[0]
    assert value is not None
    return value


def _only_layers_read(value: Value, layers: Sequence[Node]) -> bool:
    known = {id(node) for node in layers}
    uses = [use for use in value.uses() if use.node.op_type not in ("Shape", "Size")]
    return not value.is_graph_output() and all(use.idx == 0 and id(use.node) in known for use in uses)


def _divided(node: Node, factors: Array) -> Array:
    array = walk.const_array(node.inputs[1])
    assert array is not None
    transposed = walk.outputs_first(node)
    along = factors if transposed else factors[:, None]
    with np.errstate(over="ignore"):
        divided: Array = (array.astype(np.float64) / along).astype(array.dtype)
    if not np.isfinite(divided).all():
        raise ModelError(f"{node.op_type} {node.name!r}: scaled weights do not fit {array.dtype}; use milder scales")
    return divided
