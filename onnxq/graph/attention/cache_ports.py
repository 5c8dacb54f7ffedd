"""Caches of keys and values: where GroupQueryAttention takes and gives them, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.core.cache_grids import CacheGrid, RotaryTable
from onnxq.errors import ModelError
from onnxq.graph import edit, walk
from onnxq.graph.attention.grouped import sequence_lengths
from onnxq.graph.attention.plain_attention import read_by
from onnxq.graph.emit.common import Builder, place_first
from onnxq.graph.prepare.whole import drop_unused

OPERATOR = "GroupQueryAttention"

_PAST_KEY, _PAST_VALUE, _LAST, _TOTAL, _KEY_SCALE, _VALUE_SCALE = 3, 4, 5, 6, 12, 13


@dataclass(frozen=True)
class Cache:
    """The two caches of one attention, by the names that the graph has for them.

    Attributes:
        node: name of the GroupQueryAttention.
        past_key: graph input; empty where the attention keeps nothing from one call to the next.
        past_value: the same for values.
        present_key: graph output.
        present_value: the same for values.
        heads: of keys and values.
        size: of a head; 0 where the graph does not say.
        integer: they hold integers already.
    """

    node: str
    past_key: str
    past_value: str
    present_key: str
    present_value: str
    heads: int
    size: int
    integer: bool = False

    @property
    def pairs(self) -> dict[str, str]:
        """Output by the input that it goes back into."""
        return {self.past_key: self.present_key, self.past_value: self.present_value} if self.past_key else {}


def attentions(model: ir.Model) -> list[ir.Node]:
    """Every GroupQueryAttention of the main graph."""
    return [node for node in model.graph if node.op_type == OPERATOR and node.domain == "com.microsoft"]


def caches_of(model: ir.Model, sizes: Mapping[str, int] | None = None) -> list[Cache]:
    """The caches of every attention of the main graph, in order.

    Args:
        model: unchanged.
        sizes: of a head, by attention, where they are known from before shapes were dropped.

    Raises:
        ModelError: one takes its caches from inside the graph, or something else reads them.
    """
    return [_cache(node, sizes or {}) for node in attentions(model)]


def rotary_tables(model: ir.Model) -> dict[str, RotaryTable]:
    """The angles of each attention that turns its keys itself by constant tables, by name of its cache of keys."""
    found = {}
    for node in attentions(model):
        past = walk.input_at(node, _PAST_KEY)
        cos, sin = (walk.const_array(walk.input_at(node, index)) for index in (7, 8))
        turns = walk.attr_int(node, "do_rotary") and cos is not None and sin is not None and cos.ndim == 2
        if turns and past is not None and past.name:
            assert cos is not None and sin is not None
            found[past.name] = RotaryTable(cos, sin, walk.attr_int(node, "rotary_interleaved") != 0)
    return found


def cache_sizes(model: ir.Model) -> dict[str, int]:
    """Numbers of a head by name of each cache input of a GroupQueryAttention, where the graph says them.

    onnxruntime-genai's builder leaves the last axis of its caches open.
    """
    found = {}
    for node in attentions(model):
        size = _head_size(node)
        for past in (walk.input_at(node, _PAST_KEY), walk.input_at(node, _PAST_VALUE)):
            if size and past is not None and past.is_graph_input() and past.name and not _is_integer(past):
                found[past.name] = size
    return found


def _is_integer(port: ir.Value) -> bool:
    return port.dtype in (ir.DataType.INT8, ir.DataType.UINT8)


def _cache(node: ir.Node, sizes: Mapping[str, int]) -> Cache:
    heads, size = walk.attr_int(node, "kv_num_heads"), _head_size(node) or sizes.get(node.name or "", 0)
    taken = [walk.input_at(node, index) for index in (_PAST_KEY, _PAST_VALUE)]
    given = [node.outputs[index] if len(node.outputs) > index else None for index in (1, 2)]
    name = node.name or ""
    if taken[0] is None or taken[1] is None:
        return Cache(name, "", "", "", "", heads, size)
    names = []
    for past, present in zip(taken, given, strict=True):
        assert past is not None
        alone = past.is_graph_input() and read_by(past, node)
        out = present is not None and present.is_graph_output() and not present.uses()
        if not alone or not out or present is None:
            raise ModelError(
                f"--kv-cache: {OPERATOR} '{name}': its cache '{past.name}' is not an input of the model that it alone "
                "reads, given out again as it is; only such caches can hold integers"
            )
        names += [past.name or "", present.name or ""]
    return Cache(name, names[0], names[2], names[1], names[3], heads, size, _is_integer(taken[0]))


def _head_size(node: ir.Node) -> int:
    """From the shape of a cache, or from the width of queries or values; 0 where none is known."""
    for index in (_PAST_KEY, _PAST_VALUE):
        dims = walk.dims(walk.input_at(node, index))
        if dims is not None and len(dims) == 4 and dims[3]:
            return dims[3]
    packed = walk.input_at(node, 1) is None
    width = _width(walk.input_at(node, 0))
    heads = walk.attr_int(node, "num_heads") + (2 * walk.attr_int(node, "kv_num_heads") if packed else 0)
    return width // heads if heads and width % heads == 0 else 0


def _width(value: ir.Value | None) -> int:
    """Last axis of a value: as declared, else by the weight that makes it; 0 where neither is known."""
    dims = walk.dims(value)
    if dims is not None and len(dims) == 3 and dims[2]:
        return dims[2]
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add" and node.domain == "":
        moving = next((read for read in node.inputs if not walk.is_constant(read)), None)
        node = moving.producer() if moving is not None else None
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.domain != "":
        return 0
    shape = walk.dims(walk.input_at(node, 1))
    if shape is None or len(shape) != 2:
        return 0
    return shape[0 if walk.outputs_first(node) else 1] or 0


def add_caches(model: ir.Model, sizes: Mapping[str, int] | None = None) -> list[Cache]:
    """Give attentions that keep nothing caches of their own, and positions that go on from what these hold.

    The model gets inputs ``past_key_values.N.key`` and ``.value`` and outputs ``present.N.key`` and ``.value``, all
    of (batch, heads, tokens, size) and of the type of its keys. A Range that counts the new tokens from zero begins
    where the cache ends.

    Args:
        model: changed in place. Masks must be inside the operator already.
        sizes: as for `caches_of`.

    Raises:
        ModelError: an attention still reads a mask, or the size of a head is not known.
    """
    nodes = [node for node in attentions(model) if walk.input_at(node, _PAST_KEY) is None]
    if not nodes:
        return caches_of(model, sizes)
    known = {cache.node: cache for cache in caches_of(model, sizes)}
    builder, ports = Builder(model), []
    for index, node in enumerate(nodes):
        size, heads = known[node.name or ""].size, known[node.name or ""].heads
        if walk.input_at(node, 10) is not None or not size:
            what = "adds a mask that the model computes from another input" if size else "has heads of unknown size"
            raise ModelError(
                f"--kv-cache: {OPERATOR} '{node.name}' {what}, so that it cannot be given a cache; export the model "
                "with past_key_values"
            )
        shape: list[int | str] = ["batch", heads, f"past_{_tokens(model)}", size]
        dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        ports.append([_port(builder, f"past_key_values.{index}.{part}", shape, dtype) for part in ("key", "value")])
    first = nodes[0].inputs[0]
    assert first is not None
    lengths = sequence_lengths(builder, first, 1, ports[0][0])
    for index, (node, port) in enumerate(zip(nodes, ports, strict=True)):
        for place, value in zip((_PAST_KEY, _PAST_VALUE, _LAST, _TOTAL), (*port, *lengths), strict=True):
            edit.set_input(node, place, value)
        if len(node.outputs) < 3:
            node.resize_outputs(3)
        for value, part in zip(node.outputs[1:3], ("key", "value"), strict=True):
            value.name = builder.names.value(f"present.{index}.{part}")
            value.type = port[0].type
            value.shape = ir.Shape(["batch", known[node.name or ""].heads, "all_tokens", known[node.name or ""].size])
            model.graph.outputs.append(value)
    _count_on(builder, ports[0][0])
    drop_unused.run(model)
    return caches_of(model, sizes)


def _tokens(model: ir.Model) -> str:
    taken = {str(dim) for value in model.graph.inputs if value.shape is not None for dim in value.shape}
    return "tokens" if "past_tokens" not in taken else "cached_tokens"


def _port(builder: Builder, name: str, shape: list[int | str], dtype: ir.DataType | None) -> ir.Value:
    value = ir.Value(name=builder.names.value(name), type=ir.TensorType(dtype or ir.DataType.FLOAT))
    value.shape = ir.Shape(shape)
    builder.graph.inputs.append(value)
    return value


def _count_on(builder: Builder, past: ir.Value) -> None:
    """Let each Range that counts the new tokens from zero begin at the number of older ones."""
    counting = [node for node in builder.graph if node.op_type == "Range" and node.domain == "" and _counts(node)]
    for node in counting:
        dtype = node.inputs[1].dtype or ir.DataType.INT64 if node.inputs[1] is not None else ir.DataType.INT64
        shape = builder.node("Shape", [past], builder.names.value("caches_past_shape"), dtype=ir.DataType.INT64)
        index = builder.constant("caches_tokens_axis", np.array(2, np.int64))
        older = builder.node("Gather", [shape.outputs[0], index], builder.names.value("caches_past"))
        cast = builder.node(
            "Cast", [older.outputs[0]], builder.names.value("caches_start"),
            attributes=[ir.AttrInt64("to", int(dtype))], dtype=dtype,
        )  # fmt: skip
        added = builder.node("Add", [node.inputs[1], cast.outputs[0]], builder.names.value("caches_end"), dtype=dtype)
        place_first(builder.graph, [shape, older, cast])
        builder.graph.insert_before(node, added)
        edit.set_input(node, 0, cast.outputs[0])
        edit.set_input(node, 1, added.outputs[0])


def _counts(node: ir.Node) -> bool:
    start, step = walk.const_array(node.inputs[0]), walk.const_array(node.inputs[2])
    if start is None or step is None or start.any() or not (step == 1).all():
        return False
    value = node.inputs[1]
    for _ in range(6):
        maker = None if value is None else value.producer()
        if maker is None:
            return False
        if maker.op_type == "Shape":
            source = maker.inputs[0]
            return source is not None and source.is_graph_input() and not re.search("past|cache", source.name or "")
        if maker.op_type not in ("Squeeze", "Gather", "Cast", "Reshape", "Slice", "Identity", "Unsqueeze"):
            return False
        value = maker.inputs[0]
    return False


def store(model: ir.Model, grids: Mapping[str, tuple[CacheGrid, CacheGrid]]) -> None:
    """Let caches hold integers: inputs and outputs of the model change type, and their last axis at 4 bits.

    Args:
        model: changed in place.
        grids: (of keys, of values) by name of the attention; both of one number of bits.
    """
    round_caches(model, grids)
    for node in attentions(model):
        key, value = grids[node.name or ""]
        dtype = ir.DataType.INT8 if key.bits == 8 else ir.DataType.UINT8
        for index, grid in ((_PAST_KEY, key), (_PAST_VALUE, value)):
            for port in (node.inputs[index], node.outputs[index - 2]):
                assert port is not None
                port.type = ir.TensorType(dtype)
                if port.shape is not None and grid.bits == 4 and isinstance(port.shape[3], int):
                    port.shape = ir.Shape([*list(port.shape)[:3], port.shape[3] // 2])


def round_caches(model: ir.Model, grids: Mapping[str, tuple[CacheGrid, CacheGrid]]) -> None:
    """Give attentions the scales of their caches, and leave the types of what goes in and out as they are.

    ONNX Runtime runs that only once `store` has changed the types; for training it says what will be rounded.
    """
    builder = Builder(model)
    for node in attentions(model):
        key, value = grids[node.name or ""]
        for part, grid, place in (("key", key, _KEY_SCALE), ("value", value, _VALUE_SCALE)):
            edit.set_input(node, place, builder.constant(f"{node.name}_{part}_scale", grid.scale))
        node.attributes["k_quant_type"] = ir.AttrString("k_quant_type", "PER_CHANNEL")
        node.attributes["v_quant_type"] = ir.AttrString("v_quant_type", "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", key.bits)
