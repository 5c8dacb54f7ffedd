"""Attention in plain operators, written as GroupQueryAttention: one kernel, and caches that may be integers.

References:
    com.microsoft GroupQueryAttention in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.attention.plain_attention import Site, find_sites, flat_behind, flat_of
from onnxq.graph.emit.common import Builder
from onnxq.graph.prepare.whole import drop_unused

MASKED = -1e4
"""What is added to a score that does not count is below this, or minus infinity."""

_OPERATOR = "GroupQueryAttention"


def is_causal(mask: Array) -> bool:
    """Whether a mask hides from each position all that come after it.

    Args:
        mask: what is added to scores, (…, queries, keys); the last query stands at the last key.
    """
    if mask.ndim < 2 or mask.shape[-1] < mask.shape[-2]:
        return False
    queries, keys = mask.shape[-2:]
    later = np.arange(keys) > np.arange(queries)[:, None] + (keys - queries)
    return bool((mask[..., later] <= MASKED).all())


def is_only_causal(mask: Array) -> bool:
    """Whether a mask hides that and nothing else, and adds nothing to what it shows."""
    if not is_causal(mask):
        return False
    queries, keys = mask.shape[-2:]
    shown = np.arange(keys) <= np.arange(queries)[:, None] + (keys - queries)
    return not mask[..., shown].any()


def group(model: ir.Model, masks: Mapping[str, list[Array]]) -> int:
    """Write every plain attention whose mask is causal as GroupQueryAttention.

    Masks stay as they are, as an input of the operator, unless nothing but causality is in them.

    Args:
        model: changed in place; inputs and outputs keep names, types and order.
        masks: contents of each mask in a few runs, by name.

    Returns:
        How many were rewritten.
    """
    sites = [site for site in find_sites(model) if site.mask is not None and _fits(site, masks)]
    if not sites:
        return 0
    builder = Builder(model)
    lengths = _lengths(builder, sites[0])
    for site in sites:
        seen = masks[site.mask_name]
        _rewrite(builder, site, lengths, None if all(is_only_causal(mask) for mask in seen) else site.mask)
    drop_unused.run(model)
    model.graph.sort()
    return len(sites)


def _fits(site: Site, masks: Mapping[str, list[Array]]) -> bool:
    seen = masks.get(site.mask_name, [])
    rank = walk.rank(site.mask)
    if not seen or not all(is_causal(mask) for mask in seen):
        return False
    if all(is_only_causal(mask) for mask in seen):
        return True
    return rank == 2 or (rank == 4 and all(mask.shape[1] in (1, site.heads) for mask in seen))


def _lengths(builder: Builder, site: Site) -> tuple[ir.Value, ir.Value]:
    """(last position of each sample, tokens in all), int32, from the shapes of new and older keys."""
    source = flat_of(site.query)
    axis = 1
    if source is None:
        source, axis = site.query, 2
    return sequence_lengths(builder, source, axis, site.past_key)


def sequence_lengths(builder: Builder, source: ir.Value, axis: int, past: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """What GroupQueryAttention takes as ``seqlens_k`` and ``total_sequence_length``.

    Args:
        builder: makes the nodes.
        source: a value with the batch along axis 0.
        axis: where its new tokens are.
        past: older keys, (batch, kv heads, length, size); None for none.
    """
    shape = builder.node("Shape", [source], builder.names.value("caches_shape"), dtype=ir.DataType.INT64)
    nodes = [shape]

    def picked(of: ir.Node, index: int, name: str) -> ir.Value:
        index_value = builder.constant("caches_index", np.array([index], np.int64))
        node = builder.node("Gather", [of.outputs[0], index_value], builder.names.value(name), dtype=ir.DataType.INT64)
        nodes.append(node)
        return node.outputs[0]

    batch, total = picked(shape, 0, "caches_batch"), picked(shape, axis, "caches_new")
    if past is not None:
        older = builder.node("Shape", [past], builder.names.value("caches_older_shape"), dtype=ir.DataType.INT64)
        nodes.append(older)
        known = picked(older, 2, "caches_older")
        joined = builder.node("Add", [total, known], builder.names.value("caches_all"), dtype=ir.DataType.INT64)
        nodes.append(joined)
        total = joined.outputs[0]
    to_int = [ir.AttrInt64("to", int(ir.DataType.INT32))]
    small = builder.node(
        "Cast", [total], builder.names.value("caches_total_1d"), attributes=to_int, dtype=ir.DataType.INT32
    )
    empty = builder.constant("caches_scalar", np.zeros(0, np.int64))
    scalar = builder.node(
        "Reshape", [small.outputs[0], empty], builder.names.value("caches_total"), dtype=ir.DataType.INT32
    )
    one = builder.constant("caches_one", np.array([1], np.int32))
    last = builder.node("Sub", [small.outputs[0], one], builder.names.value("caches_last"), dtype=ir.DataType.INT32)
    spread = builder.node(
        "Expand", [last.outputs[0], batch], builder.names.value("caches_lengths"), dtype=ir.DataType.INT32
    )
    nodes += [small, scalar, last, spread]
    builder.place_after(source, nodes)
    return spread.outputs[0], scalar.outputs[0]


def _rewrite(builder: Builder, site: Site, lengths: tuple[ir.Value, ir.Value], mask: ir.Value | None) -> None:
    graph = builder.graph
    before = site.mixture
    query, key, value = (_flat(builder, part, before) for part in (site.query, site.key, site.value))
    bias = None if mask is None else _four_axes(builder, mask, before)
    inputs = [query, key, value, site.past_key, site.past_value, *lengths, None, None, None, bias]
    attributes = [
        ir.AttrInt64("num_heads", site.heads),
        ir.AttrInt64("kv_num_heads", site.kv_heads),
        ir.AttrFloat32("scale", site.scale),
    ]
    base = site.mixture.name or "attention"
    dtype = site.value.dtype
    outputs = [ir.Value(name=builder.names.value(f"{base}_attention"), type=_type(dtype))]
    outputs += [ir.Value(name=builder.names.value(f"{base}_{part}"), type=_type(dtype)) for part in ("keys", "values")]
    outputs[0].shape = ir.Shape([None, None, site.heads * site.size])
    builder.graph.opset_imports.setdefault("com.microsoft", 1)
    node = ir.Node(
        "com.microsoft", _OPERATOR, inputs if bias is not None else inputs[:7], attributes, outputs=outputs,
        name=builder.names.node(f"{base}_{_OPERATOR}"),
    )  # fmt: skip
    graph.insert_before(before, node)
    for old, new in ((site.joined_key, outputs[1]), (site.joined_value, outputs[2])):
        if old is not None:
            _give_out(builder, old, new)
        else:
            new.name = ""
    shaped = flat_behind(site.mixture)
    if shaped is not None:
        edit.take_over(shaped.outputs[0], outputs[0])
        return
    sizes = builder.constant("heads_apart", np.array([0, 0, site.heads, site.size], np.int64))
    apart = builder.node("Reshape", [outputs[0], sizes], builder.names.value(f"{base}_apart"), dtype=dtype)
    turned = builder.node(
        "Transpose", [apart.outputs[0]], builder.names.value(f"{base}_turned"),
        attributes=[ir.AttrInt64s("perm", [0, 2, 1, 3])], dtype=dtype,
    )  # fmt: skip
    graph.insert_before(before, [apart, turned])
    edit.take_over(site.mixture.outputs[0], turned.outputs[0])


def _give_out(builder: Builder, old: ir.Value, new: ir.Value) -> None:
    """Let the graph give out ``new`` under the name of ``old``, whose readers (a Shape for the mask, say) keep it."""
    outputs = builder.graph.outputs
    outputs[outputs.index(old)] = new
    name, old.name = old.name, builder.names.value(f"{old.name}_before")
    new.name, new.type, new.shape = name, old.type, old.shape


def _type(dtype: ir.DataType | None) -> ir.TensorType | None:
    return None if dtype is None else ir.TensorType(dtype)


def _flat(builder: Builder, value: ir.Value, before: ir.Node) -> ir.Value:
    """(batch, length, heads · size) of (batch, heads, length, size)."""
    flat = flat_of(value)
    if flat is not None:
        return flat
    base, dims = value.name or "heads", walk.dims(value)
    assert dims is not None and dims[1] is not None and dims[3] is not None
    turned = builder.node(
        "Transpose", [value], builder.names.value(f"{base}_turned"),
        attributes=[ir.AttrInt64s("perm", [0, 2, 1, 3])], dtype=value.dtype,
    )  # fmt: skip
    sizes = builder.constant("heads_joined", np.array([0, 0, dims[1] * dims[3]], np.int64))
    joined = builder.node("Reshape", [turned.outputs[0], sizes], builder.names.value(f"{base}_flat"), dtype=value.dtype)
    joined.outputs[0].shape = ir.Shape([None, None, dims[1] * dims[3]])
    builder.graph.insert_before(before, [turned, joined])
    return joined.outputs[0]


def _four_axes(builder: Builder, mask: ir.Value, before: ir.Node) -> ir.Value:
    if walk.rank(mask) == 4:
        return mask
    axes = builder.constant("mask_axes", np.array([0, 1], np.int64))
    node = builder.node("Unsqueeze", [mask, axes], builder.names.value(f"{mask.name}_4d"), dtype=mask.dtype)
    builder.graph.insert_before(before, node)
    return node.outputs[0]
