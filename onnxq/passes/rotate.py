"""Turn what a transformer computes inside by orthogonal matrices, so that no channel is far larger than the others.

The residual stream x becomes x·Q: Q goes into the weights that write it, Qᵀ, behind the gains of the norm between, into
those that read it. An RMS norm computes the same for x·Q as for x, turned. A norm that subtracts the mean does so where
Q leaves the mean as it is: there the mean is taken out of what is written, and what the norm adds goes into the biases
behind it. Heads of values are turned alike, between the projection that makes them and the one that reads their
mixture. Nothing is computed for it at inference.

References:
    Ashkboos et al., QuaRot, arXiv:2404.00456; Liu et al., SpinQuant, arXiv:2405.16406 (R1 and R2). Keys would have to
    be turned between the rotary embedding and the cache, which no constant can do. Ashkboos et al., SliceGPT,
    arXiv:2401.15024, section 3.2: the mean that a norm subtracts goes into the weights before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.hadamard import Turn, turn_of, turn_of_means
from onnxq.graph import edit, walk
from onnxq.graph.types import Model, Node, Value
from onnxq.passes.residual import Norm, Stream, streams_of

TURNED = "turned"
"""Key of a model's metadata in memory: it was turned, and is not turned again."""


@dataclass(frozen=True)
class Heads:
    """A projection to values and the one that reads their mixture.

    Attributes:
        values: MatMul or Gemm that makes values, (…, kv heads · size).
        bias: Add of a constant behind it; None where there is none.
        output: MatMul or Gemm that reads (…, heads · size).
        size: of a head.
    """

    values: Node
    bias: Node | None
    output: Node
    size: int


@dataclass
class Rotated:
    """What was turned.

    Attributes:
        streams: residual streams.
        heads: projections of values.
        hadamard: the streams' matrices are Hadamard matrices, all of them.
        reasons: why others were left alone.
    """

    streams: int = 0
    heads: int = 0
    hadamard: bool = True
    reasons: list[str] = field(default_factory=list)


def rotate(model: Model, heads: list[Heads], seed: int = 0) -> Rotated:
    """Turn every residual stream that can be, and the heads that are given.

    Args:
        model: changed in place; float outputs stay. A model that was turned stays as it is.
        heads: of values (see `onnxq.graph.attention`).
        seed: of the random signs.
    """
    done = Rotated()
    if model.meta.get(TURNED):
        return done
    names = walk.Names(model)
    streams = streams_of(model)
    for index, stream in enumerate(streams):
        if stream.reason:
            done.reasons.append(f"the residual stream of '{stream.first}': {stream.reason}")
            continue
        means = any(norm.centred for norm in stream.norms)
        turn = (turn_of_means if means else turn_of)(stream.width, seed + index)
        _turn_stream(stream, turn, names)
        done.streams += 1
        done.hadamard &= turn.hadamard
    if not streams:
        done.reasons.append("no norm between layers was found")
    for pair in heads:
        _turn_heads(pair, turn_of(pair.size, seed), names)
        done.heads += 1
    if done.streams or done.heads:
        model.meta[TURNED] = True
    return done


def _turn_stream(stream: Stream, turn: Turn, names: walk.Names) -> None:
    for norm in stream.norms:
        _into_layers(norm, stream, turn, names)
    no_mean = all(norm.centred for norm in stream.norms)
    done: dict[int, Value] = {}
    for node, position, axis in stream.writers:
        old = node.inputs[position]
        if old is not None and id(old) in done:  # one bias, or table, at several places
            edit.set_input(node, position, done[id(old)])
            continue
        array = _array(node, position).astype(np.float64)
        if no_mean:
            array -= array.mean(axis, keepdims=True)
        _replace(node, position, turn.apply(array, axis), names)
        if old is not None and old.uses():
            new = node.inputs[position]
            assert new is not None
            done[id(old)] = new


def _into_layers(norm: Norm, stream: Stream, turn: Turn, names: walk.Names) -> None:
    """Fold the gains of a norm, and the matrix of the stream, into the layers that read it."""
    gains = np.ones(turn.size)
    if norm.shift is not None:
        shift = _array(*norm.shift)
        for layer in norm.layers:
            behind = _shift_behind(layer, np.broadcast_to(shift.astype(np.float64).reshape(-1), (turn.size,)), names)
            if behind is not None and any(node is layer for node, _, _ in stream.writers):
                stream.writers.append((behind, 1, 0))
        _replace(*norm.shift, np.zeros_like(shift), names)
    if norm.gain is not None:
        old = _array(*norm.gain)
        gains = gains * old.astype(np.float64).reshape(-1)
        _replace(*norm.gain, np.ones_like(old), names)
    for layer in norm.layers:
        axis = 1 if walk.outputs_first(layer) else 0
        weight = _array(layer, 1).astype(np.float64)
        scaled = weight * (gains if axis == 1 else gains[:, None])
        _replace(layer, 1, turn.apply(scaled, axis), names)


def _shift_behind(layer: Node, shift: Array, names: walk.Names) -> Node | None:
    """Add what a layer makes of a constant to what it gives: in its bias, in the Add behind it, or in a new one.

    Returns:
        The new Add, where there is one.
    """
    weight = _array(layer, 1).astype(np.float64)
    made = weight @ shift if walk.outputs_first(layer) else shift @ weight
    if not made.any():
        return None
    node: Node = layer
    place, new = 2, None
    if layer.op_type == "MatMul":
        behind = walk.only_use(layer.outputs[0])
        places = [i for i, v in enumerate(behind.inputs) if walk.is_constant(v)] if behind is not None else []
        is_bias = behind is not None and behind.op_type == "Add" and len(places) == 1
        if is_bias and behind is not None and _array(behind, places[0]).shape[-1:] == made.shape:
            node, place = behind, places[0]
        else:
            assert layer.graph is not None
            zeros = edit.add_initializer(
                layer.graph, names.value(f"{layer.name}.shift"), np.zeros(made.shape, np.float32)
            )
            node = Node("", "Add", [layer.outputs[0], zeros], num_outputs=1, name=names.node(f"{layer.name}.shifted"))
            edit.put_behind(layer.outputs[0], node, names, f"{layer.name}.unshifted")
            place, new = 1, node
    old = _array(node, place).astype(np.float64) if walk.input_at(node, place) is not None else np.zeros(())
    _replace(node, place, old + made, names)
    return new


def _turn_heads(heads: Heads, turn: Turn, names: walk.Names) -> None:
    behind = walk.only_use(heads.values.outputs[0])  # a bias may have come from the norm in front
    is_bias = behind is not None and behind.op_type == "Add" and any(map(walk.is_constant, behind.inputs))
    for node, position in ((heads.values, 1), (heads.values, 2), (heads.bias or (behind if is_bias else None), -1)):
        if node is None or (position == 2 and len(node.inputs) < 3):
            continue
        place = position if position > 0 else next(i for i, v in enumerate(node.inputs) if walk.is_constant(v))
        axis = 0 if position == 1 and walk.outputs_first(node) else -1
        _replace(node, place, _by_head(_array(node, place), axis, turn), names)
    axis = 1 if walk.outputs_first(heads.output) else 0
    _replace(heads.output, 1, _by_head(_array(heads.output, 1), axis, turn), names)


def _by_head(array: Array, axis: int, turn: Turn) -> Array:
    """Each head of an axis turned by one matrix."""
    moved = np.moveaxis(array, axis, -1)
    apart = moved.reshape(*moved.shape[:-1], moved.shape[-1] // turn.size, turn.size)
    return np.moveaxis(turn.apply(apart).reshape(moved.shape), -1, axis)


def _array(node: Node, position: int) -> Array:
    array = walk.const_array(node.inputs[position])
    assert array is not None
    return array


def _replace(node: Node, position: int, array: Array, names: walk.Names) -> None:
    old = node.inputs[position]
    base = f"{old.name}_turned" if old is not None else "turned"
    edit.set_constant(node, position, np.ascontiguousarray(array, np.float32), names, base)
