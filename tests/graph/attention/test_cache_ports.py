"""Caches of GroupQueryAttention: what they are called, caches added, and caches as integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxq.core.cache_grids import CacheGrid
from onnxq.data.decoding import roles_of
from onnxq.errors import ModelError
from onnxq.graph.attention.cache_ports import add_caches, caches_of, store
from onnxq.graph.files import io
from onnxq.runtime.loops.decoder_loop import Decoder
from onnxq.runtime.session import session_of
from tests.decoders import Style, prompts
from tests.graph.attention.test_grouped import feeds_of, fuse, loaded
from tests.graph.build import build
from tests.runtime_version import CACHES


def fused(style: Style):
    model = loaded(style)
    return model, fuse(model, feeds_of(style))


def test_caches_by_their_names() -> None:
    model, _ = fused(Style())
    first, second = caches_of(model)
    assert first.pairs == {f"past_key_values.0.{p}": f"present.0.{p}" for p in ("key", "value")}
    assert (second.heads, second.size, second.integer) == (2, 8, False)


@CACHES
def test_caches_that_are_added_give_token_by_token_what_was_given_at_once() -> None:
    style = Style(caches=False, mask=False)
    model, sizes = fused(style)
    whole = session_of(model, threads=1)
    with_caches = model.clone()
    added = add_caches(with_caches, sizes)
    assert [c.past_key for c in added] == ["past_key_values.0.key", "past_key_values.1.key"]
    assert next(v.name for v in with_caches.graph.inputs) == "input_ids"
    assert next(v.name for v in with_caches.graph.outputs) == "logits"
    session = session_of(with_caches, threads=1)
    pairs = {past: present for cache in added for past, present in cache.pairs.items()}
    one = Decoder(session, roles_of(session.input_specs, session.output_specs, pairs))
    feed = prompts(style, 1)[0]
    logits, caches = one.run(feed, [5, 1, 3, 1, 6])
    np.testing.assert_allclose(logits, whole.run(feed)[0], atol=2e-5)
    assert caches["past_key_values.1.value"].shape == (1, 2, 16, 8)
    before = io.to_bytes(with_caches)
    assert add_caches(with_caches, sizes) == added
    assert io.to_bytes(with_caches) == before


def test_a_mask_from_outside_forbids_caches_to_be_added() -> None:
    model, sizes = fused(Style(caches=False, mask=True))
    with pytest.raises(ModelError, match="adds a mask that the model computes from another input"):
        add_caches(model, sizes)


@CACHES
@pytest.mark.parametrize("bits", [8, 4])
def test_ports_change_type_and_the_operator_computes_with_what_they_stand_for(bits: int) -> None:
    model, _ = fused(Style())
    rng = np.random.default_rng(0)
    grids = {}
    for cache in caches_of(model):
        scales = [rng.uniform(0.05, 0.3, (1, 2, 1, 8)).astype(np.float32) * 127 / (127 if bits == 8 else 20)] * 2
        grids[cache.node] = tuple(CacheGrid(bits, scale, "channel", 0.0) for scale in scales)
    stored = model.clone()
    store(stored, grids)
    kind = TensorProto.INT8 if bits == 8 else TensorProto.UINT8
    ports = {v.name: v for v in (*stored.graph.inputs, *stored.graph.outputs) if "." in (v.name or "")}
    assert {int(v.dtype) for v in ports.values()} == {kind}
    assert ports["past_key_values.0.key"].shape[3] == (8 if bits == 8 else 4)
    assert [c.integer for c in caches_of(stored)] == [True, True]
    onnx.checker.check_model(io.to_proto(stored))
    session, roles = session_of(stored, threads=1), None
    pairs = {past: present for cache in caches_of(stored) for past, present in cache.pairs.items()}
    roles = roles_of(session.input_specs, session.output_specs, pairs)
    by_port = {port: grid for c in caches_of(stored) for port, grid in zip(c.pairs, grids[c.node], strict=True)}
    feed = feeds_of(Style())[0]
    _, caches = Decoder(session, roles, by_port).run(feed, [16])
    first = session_of(model, threads=1)
    expected = dict(zip(first.output_names, first.run(feed), strict=True))["present.0.key"]
    np.testing.assert_array_equal(caches["past_key_values.0.key"], by_port["past_key_values.0.key"].quantize(expected))


def test_a_cache_from_inside_the_graph_is_refused() -> None:
    proto = build(
        "g (float[1,1,8] q, float[1,1,8] k, float[1,1,8] v, float[1,1,s,8] pk, float[1,1,s,8] pv,"
        " int32[1] last, int32 all) => (float[1,1,8] y, float[1,1,t,8] nk, float[1,1,t,8] nv) {"
        " inner = Identity(pk) y, nk, nv = com.microsoft.GroupQueryAttention"
        " <num_heads=1, kv_num_heads=1>(q, k, v, inner, pv, last, all) }",
        imports=', "com.microsoft": 1',
    )
    with pytest.raises(ModelError, match="cache 'inner' is not an input of the model that it alone reads"):
        caches_of(io.load(proto.SerializeToString()))


def test_an_attention_in_a_body_is_not_looked_at() -> None:
    attention = helper.make_node(
        "GroupQueryAttention", ["q", "k", "v", "", "", "l", "t"], ["y"], domain="com.microsoft", num_heads=1,
        kv_num_heads=1,
    )  # fmt: skip
    body = helper.make_graph([attention], "b", [], [helper.make_tensor_value_info("y", 1, None)])
    proto = build(
        "g (bool c, float[1,1,8] q, float[1,1,8] k, float[1,1,8] v, int32[1] l, int32 t) => (float[1,1,8] u) { }"
    )
    proto.graph.node.append(helper.make_node("If", ["c"], ["u"], then_branch=body, else_branch=body))
    assert caches_of(io.load(proto.SerializeToString())) == []
