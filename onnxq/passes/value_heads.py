"""Heads of values: the projection that makes them and the one that reads their mixture, with attention between."""

from __future__ import annotations

from onnxq.graph import walk
from onnxq.graph.attention.cache_ports import attentions
from onnxq.graph.attention.plain_attention import RunFacts, find_sites, flat_behind, flat_of
from onnxq.graph.types import FLOAT32, Model, Node, Value
from onnxq.passes.rotate import Heads

_GIVEN_OUT = "the model gives its values out, and they would change"


def value_heads(model: Model, seen: RunFacts) -> tuple[list[Heads], list[str]]:
    """Every pair of projections that can be turned head by head, and why others cannot.

    Args:
        model: unchanged.
        seen: shapes of its values in one run.
    """
    found: list[Heads] = []
    reasons: list[str] = []

    def add(name: str, value: Value | None, mixed: Value | None, size: int, reason: str = "") -> None:
        pair = None if reason else _pair(value, mixed, size)
        if isinstance(pair, Heads):
            found.append(pair)
        else:
            reasons.append(
                f"the heads of '{name}': {reason or 'no layers with weights of their own stand around them'}"
            )

    for node in attentions(model):
        given = len(node.outputs) > 2 and node.outputs[2].is_graph_output()
        value = walk.input_at(node, 2)
        shape = seen.shape(value)
        size = shape[-1] // max(walk.attr_int(node, "kv_num_heads"), 1) if shape else 0
        add(node.name or "", value, node.outputs[0], size, _GIVEN_OUT if given else "")
    for site in find_sites(model, seen):
        shaped = flat_behind(site.mixture, seen)
        reason = _GIVEN_OUT if site.past_value is not None else ""
        mixed = shaped.outputs[0] if shaped is not None else None
        add(site.mixture.name or "", flat_of(site.value, seen), mixed, site.size, reason)
    return found, reasons


def _pair(value: Value | None, mixed: Value | None, size: int) -> Heads | None:
    if value is None or mixed is None or not size:
        return None
    made = value.producer()
    bias = None
    if made is not None and made.op_type == "Add" and made.domain == "":
        constant = next((i for i, v in enumerate(made.inputs) if walk.is_constant(v)), None)
        inner = made.inputs[1 - constant] if constant is not None else None
        array = walk.const_array(made.inputs[constant]) if constant is not None else None
        if inner is None or walk.only_use(inner) is not made or array is None or array.shape[-1] % size:
            return None
        bias, made = made, inner.producer()
    reader = walk.only_use(mixed)
    alone = walk.only_use(value) is not None
    if not alone or made is None or reader is None or not _is_layer(made) or not _is_layer(reader):
        return None
    if reader.inputs[0] is not mixed or _width(made, 1) % size or _width(reader, 0) % size:
        return None
    if made.op_type == "Gemm" and len(made.inputs) > 2 and made.inputs[2] is not None:
        own = walk.const_array(made.inputs[2])
        if own is None or own.shape[-1:] != (_width(made, 1),):
            return None
    return Heads(made, bias, reader, size)


def _is_layer(node: Node) -> bool:
    weight = walk.input_at(node, 1)
    array = walk.const_array(weight)
    plain = node.op_type in ("MatMul", "Gemm") and node.domain == "" and not walk.attr_int(node, "transA")
    return plain and array is not None and array.ndim == 2 and weight is not None and weight.dtype == FLOAT32


def _width(node: Node, axis: int) -> int:
    """Inputs (0) or outputs (1) of a layer."""
    array = walk.const_array(node.inputs[1])
    assert array is not None
    return int(array.shape[1 - axis if walk.outputs_first(node) else axis])
