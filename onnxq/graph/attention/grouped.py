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
from onnxq.graph.attention.plain_attention import RunFacts, Site, find_sites, flat_behind, flat_of, of_lengths_alone
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


def group(model: ir.Model, masks: Mapping[str, list[Array]], seen: RunFacts) -> dict[str, int]:
    """Write every plain attention whose mask is causal as GroupQueryAttention.

    Masks stay as they are, as an input of the operator, unless nothing but causality is in them.

    Args:
        model: changed in place; inputs and outputs keep names, types and order.
        masks: contents of each mask in a few runs, by name.
        seen: from the same runs.

    Returns:
        The size of a head by name of each operator that was written.
    """
    sites = [site for site in find_sites(model, seen) if site.mask is not None and _fits(site, masks)]
    if not sites:
        return {}
    builder = Builder(model)
    writer = _Writer(builder, seen, _lengths(builder, sites[0], seen))
    written = {}
    for site in sites:
        written[writer.rewrite(site, None if _says_nothing_more(site, masks) else site.mask)] = site.size
    drop_unused.run(model)
    for old in [value for site in sites for value in (site.joined_key, site.joined_value) if value is not None]:
        joining = old.producer()
        if old.uses() and joining is not None and joining.op_type == "Concat" and _asked_for_shape_alone(old):
            _stand_in(builder, old, joining)
    drop_unused.run(model)
    model.graph.sort()
    return written


def _fits(site: Site, masks: Mapping[str, list[Array]]) -> bool:
    seen = masks.get(site.mask_name, [])
    if not any(mask.ndim > 1 and mask.shape[-2] > 1 for mask in seen) or not all(is_causal(mask) for mask in seen):
        return False
    if _says_nothing_more(site, masks):
        return True
    return all(mask.ndim == 2 or (mask.ndim == 4 and mask.shape[1] in (1, site.heads)) for mask in seen)


def _says_nothing_more(site: Site, masks: Mapping[str, list[Array]]) -> bool:
    """Whether a mask hides later tokens and nothing else, in these runs and so in all of the same lengths."""
    return site.mask is not None and of_lengths_alone(site.mask) and all(map(is_only_causal, masks[site.mask_name]))


def _lengths(builder: Builder, site: Site, seen: RunFacts) -> tuple[ir.Value, ir.Value]:
    """(last position of each sample, tokens in all), int32, from the shapes of new and older keys."""
    source = flat_of(site.query, seen)
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


class _Writer:
    """Writes sites of one model."""

    def __init__(self, builder: Builder, seen: RunFacts, lengths: tuple[ir.Value, ir.Value]) -> None:
        self._builder, self._seen, self._lengths = builder, seen, lengths

    def rewrite(self, site: Site, mask: ir.Value | None) -> str:
        """Put GroupQueryAttention in the place of a site; its name."""
        builder, before = self._builder, site.mixture
        query, key, value = (self._flat(part, before) for part in (site.query, site.key, site.value))
        bias = None if mask is None else self._four_axes(mask, before)
        inputs = [query, key, value, site.past_key, site.past_value, *self._lengths, None, None, None, bias]
        attributes = [
            ir.AttrInt64("num_heads", site.heads),
            ir.AttrInt64("kv_num_heads", site.kv_heads),
            ir.AttrFloat32("scale", site.scale),
        ]
        base = site.mixture.name or "attention"
        dtype = site.value.dtype
        parts = ("attention", "keys", "values")
        outputs = [ir.Value(name=builder.names.value(f"{base}_{part}"), type=_type(dtype)) for part in parts]
        outputs[0].shape = ir.Shape([None, None, site.heads * site.size])
        builder.graph.opset_imports.setdefault("com.microsoft", 1)
        node = ir.Node(
            "com.microsoft", _OPERATOR, inputs if bias is not None else inputs[:7], attributes, outputs=outputs,
            name=builder.names.node(f"{base}_{_OPERATOR}"),
        )  # fmt: skip
        builder.graph.insert_before(before, node)
        for old, new in ((site.joined_key, outputs[1]), (site.joined_value, outputs[2])):
            if old is not None:
                _give_out(builder, old, new)
            else:
                new.name = ""
        self._lead_out(site, outputs[0])
        return node.name or ""

    def _lead_out(self, site: Site, flat: ir.Value) -> None:
        """Let (batch, length, heads · size) stand where the mixture of heads stood."""
        builder, base = self._builder, site.mixture.name or "attention"
        shaped = flat_behind(site.mixture, self._seen)
        if shaped is not None:
            edit.take_over(shaped.outputs[0], flat)
            return
        sizes = builder.constant("heads_apart", np.array([0, 0, site.heads, site.size], np.int64))
        apart = builder.node("Reshape", [flat, sizes], builder.names.value(f"{base}_apart"), dtype=flat.dtype)
        turned = builder.node(
            "Transpose", [apart.outputs[0]], builder.names.value(f"{base}_turned"),
            attributes=[ir.AttrInt64s("perm", [0, 2, 1, 3])], dtype=flat.dtype,
        )  # fmt: skip
        builder.graph.insert_before(site.mixture, [apart, turned])
        edit.take_over(site.mixture.outputs[0], turned.outputs[0])

    def _flat(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """(batch, length, heads · size) of (batch, heads, length, size)."""
        flat = flat_of(value, self._seen)
        if flat is not None:
            return flat
        builder, base, shape = self._builder, value.name or "heads", self._seen.shape(value)
        width = shape[1] * shape[3]
        turned = builder.node(
            "Transpose", [value], builder.names.value(f"{base}_turned"),
            attributes=[ir.AttrInt64s("perm", [0, 2, 1, 3])], dtype=value.dtype,
        )  # fmt: skip
        sizes = builder.constant("heads_joined", np.array([0, 0, width], np.int64))
        joined = builder.node(
            "Reshape", [turned.outputs[0], sizes], builder.names.value(f"{base}_flat"), dtype=value.dtype
        )
        joined.outputs[0].shape = ir.Shape([None, None, width])
        builder.graph.insert_before(before, [turned, joined])
        return joined.outputs[0]

    def _four_axes(self, mask: ir.Value, before: ir.Node) -> ir.Value:
        if len(self._seen.shape(mask)) == 4:
            return mask
        builder = self._builder
        axes = builder.constant("mask_axes", np.array([0, 1], np.int64))
        node = builder.node("Unsqueeze", [mask, axes], builder.names.value(f"{mask.name}_4d"), dtype=mask.dtype)
        builder.graph.insert_before(before, node)
        return node.outputs[0]


def _give_out(builder: Builder, old: ir.Value, new: ir.Value) -> None:
    """Let the graph give out ``new`` under the name of ``old``, whose readers (a Shape for the mask, say) keep it."""
    outputs = builder.graph.outputs
    outputs[outputs.index(old)] = new
    name, old.name = old.name, builder.names.value(f"{old.name}_before")
    new.name, new.type, new.shape = name, old.type, old.shape


_KEEP_SHAPES = ("Unsqueeze", "Expand", "Reshape", "Transpose", "Identity", "Cast", "Flatten", "Squeeze")


def _asked_for_shape_alone(value: ir.Value) -> bool:
    """Whether all that is read of a value, repeated or turned as it may be, is its shape."""
    if value.is_graph_output():
        return False
    for node, index in value.uses():
        moved = node.op_type in _KEEP_SHAPES and index == 0 and all(map(_asked_for_shape_alone, node.outputs))
        if node.domain != "" or (node.op_type != "Shape" and not moved):
            return False
    return True


def _stand_in(builder: Builder, old: ir.Value, joining: ir.Node) -> None:
    """Zeros in the shape of joined keys or values, so that nothing but the operator reads the cache itself."""
    names, kind = builder.names, ir.DataType.INT64
    shapes = [builder.node("Shape", [part], names.value(f"{old.name}_part"), dtype=kind) for part in joining.inputs]
    axis = walk.attr_int(joining, "axis")
    along = builder.constant(f"{old.name}_axis", np.eye(4, dtype=np.int64)[axis])
    older = builder.node("Mul", [shapes[0].outputs[0], along], names.value(f"{old.name}_older"), dtype=kind)
    total = builder.node("Add", [older.outputs[0], shapes[1].outputs[0]], names.value(f"{old.name}_shape"), dtype=kind)
    zero = ir.tensor(np.zeros(1, (old.dtype or ir.DataType.FLOAT).numpy()))
    made = builder.node(
        "ConstantOfShape", [total.outputs[0]], names.value(f"{old.name}_zeros"),
        attributes=[ir.AttrTensor("value", zero)], dtype=old.dtype,
    )  # fmt: skip
    builder.graph.insert_before(joining, [*shapes, older, total, made])
    old.replace_all_uses_with(made.outputs[0])


def _type(dtype: ir.DataType | None) -> ir.TensorType | None:
    return None if dtype is None else ir.TensorType(dtype)
