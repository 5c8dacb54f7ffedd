"""Plain attention becomes GroupQueryAttention where that is exact, and is left alone elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxq.data.attention_mask import at_tokens
from onnxq.graph.attention.cache_ports import caches_of
from onnxq.graph.attention.grouped import group, is_causal, is_only_causal
from onnxq.graph.attention.plain_attention import RunFacts, factors_of, find_sites
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.views.outputs import with_outputs
from onnxq.runtime.probe import probe
from onnxq.runtime.session import session_of
from tests.decoders import Style, decoder, prompts, with_past
from tests.graph.build import build, weights
from tests.runtime_version import CACHES

STYLES = [
    Style(),
    Style(kv_heads=4, scale="mul", guard=True),
    Style(kv_heads=1, scale="both"),
    Style(mask=False),
    Style(caches=False, mask=False),
    Style(caches=False, scale="both", guard=True),
]


def loaded(style: Style):
    model = io.load(decoder(style))
    prepare(model)
    return model


def fuse(model, feeds):
    shapes = {name: info.shape for name, info in probe(model, feeds[0]).items()}
    seen = RunFacts(shapes)
    names = {site.mask_name for site in find_sites(model, seen)}
    augmented = with_outputs(model, names)
    session = session_of(augmented.model, threads=1)
    masks = {name: [session.run(feed, [name])[0] for feed in feeds] for name in augmented.outputs}
    return group(model, masks, seen)


def feeds_of(style: Style):
    feeds = prompts(style, 2)[:1]
    feeds.append({name: array[:, :5] for name, array in feeds[0].items()})
    if style.mask:
        padded = {**feeds[0], "attention_mask": feeds[0]["attention_mask"].copy()}
        padded["attention_mask"][:, :2] = 0
        feeds.append(padded)
    if style.caches:
        short = with_past(style, feeds[1], 7)
        feeds = [with_past(style, feed, 0) for feed in feeds] + [short]
    return feeds


@pytest.mark.parametrize("style", [pytest.param(s, marks=[] if s.caches else CACHES, id=str(s)) for s in STYLES])
def test_the_operator_computes_the_same_over_lengths_masks_and_caches(style: Style) -> None:
    model, feeds = loaded(style), feeds_of(style)
    before = model.clone()
    written = fuse(model, feeds)
    assert len(written) == style.blocks and set(written.values()) == {style.size}
    assert not [node for node in model.graph if node.op_type == "Softmax"]
    for port in ("inputs", "outputs"):
        assert [(v.name, v.dtype) for v in getattr(model.graph, port)] == [
            (v.name, v.dtype) for v in getattr(before.graph, port)
        ]
    for feed in [*feeds, *(with_past(style, f, 11, seed=4) for f in feeds[1:2] if style.caches)]:
        both = (at_tokens(session_of(m, threads=1).run(feed), feed) for m in (before, model))
        for expected, got in zip(*both, strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_second_run_changes_nothing() -> None:
    style = Style()
    model = loaded(style)
    assert fuse(model, feeds_of(style))
    before = io.to_bytes(model)
    assert find_sites(model, RunFacts({})) == []
    assert group(model, {}, RunFacts({})) == {}
    assert io.to_bytes(model) == before


def test_attention_that_looks_ahead_is_left_alone() -> None:
    style = Style(causal=False, caches=False)
    model = loaded(style)
    before = io.to_bytes(model)
    assert fuse(model, feeds_of(style)) == {}
    assert io.to_bytes(model) == before


def test_a_mask_with_something_else_in_it_stays_an_input_of_the_operator() -> None:
    with_mask, without = loaded(Style()), loaded(Style(mask=False))
    fuse(with_mask, feeds_of(Style()))
    fuse(without, feeds_of(Style(mask=False)))
    nodes = [next(n for n in m.graph if n.op_type == "GroupQueryAttention") for m in (with_mask, without)]
    assert [len(node.inputs) for node in nodes] == [11, 7]


@pytest.mark.parametrize(
    ("rows", "causal", "only"),
    [
        ([[0, -9e9], [0, 0]], True, True),
        ([[0, -np.inf, -np.inf], [0, 0, -np.inf]], True, False),  # the last query stands at the last key
        ([[0, 0, -np.inf], [0, 0, 0]], True, True),
        ([[-9e9, 0, -np.inf], [-9e9, 0, 0]], True, False),
        ([[0.5, -9e9], [0, 0]], True, False),
        ([[0, -5.0], [0, 0]], False, False),
        ([[0, 0]], True, True),
        ([0, 0], False, False),
    ],
)
def test_what_a_mask_hides(rows, causal: bool, only: bool) -> None:
    mask = np.array(rows, np.float32)
    assert (is_causal(mask), is_only_causal(mask)) == (causal, only)


def test_factors_that_are_computed_are_read_from_runs() -> None:
    model = io.load(
        build(
            "g (float[2,3] x) => (float[2,3] y) { s = Shape(x) n = Cast<to=1>(s) f = Slice(n, zero, one)"
            " r = Sqrt(f) y = Mul(x, r) }",
            zero=np.zeros(1, np.int64), one=np.ones(1, np.int64),
        ).SerializeToString()
    )  # fmt: skip
    shapes = {"x": (2, 3), "r": (1,)}
    assert factors_of(model, shapes) == ["r"]
    assert RunFacts(shapes, {"r": 2.0}).number(model.graph[-1].inputs[1]) == 2.0


def test_a_product_in_a_body_is_not_looked_at() -> None:
    body = onnx.parser.parse_graph("b () => (float[2,2] y) { p = Softmax(w) y = MatMul(p, w) }")
    proto = build("g (bool c, float[2,2] x) => (float[2,2] z) { z = Identity(x) }", w=weights(2, 2))
    proto.graph.node.append(onnx.helper.make_node("If", ["c"], ["u"], then_branch=body, else_branch=body))
    assert find_sites(io.load(proto.SerializeToString()), RunFacts({})) == []


def test_keys_that_others_read_too_keep_their_readers() -> None:
    style = replace(Style(), blocks=1)
    proto = onnx.load_model_from_string(decoder(style))
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["present.0.key"], ["sum"], keepdims=0))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("sum", 1, []))
    model = io.load(proto.SerializeToString())
    prepare(model)
    feeds = feeds_of(style)
    expected = session_of(model, threads=1).run(feeds[-1])
    assert fuse(model, feeds)
    for a, b in zip(expected, session_of(model, threads=1).run(feeds[-1]), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)
    assert Counter(n.op_type for n in model.graph)["GroupQueryAttention"] == 1


def test_keys_whose_shape_alone_is_asked_for_are_not_read_by_others() -> None:
    style = replace(Style(), blocks=1)
    proto = onnx.load_model_from_string(decoder(style))
    make = onnx.helper.make_node
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 1, 1, 1], np.int64), "copies"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "first"))
    proto.graph.node.extend([  # as exporters cut a mask to the length of the keys that a group of heads shares
        make("Unsqueeze", ["present.0.key", "first"], ["apart"]), make("Expand", ["apart", "copies"], ["repeated"]),
        make("Shape", ["repeated"], ["repeated_shape"]), make("Shape", ["present.0.value"], ["value_shape"]),
    ])  # fmt: skip
    for name, size in (("repeated_shape", 5), ("value_shape", 4)):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [size]))
    model = io.load(proto.SerializeToString())
    prepare(model)
    feeds = feeds_of(style)
    expected = [session_of(model, threads=1).run(feed) for feed in feeds]
    assert fuse(model, feeds)
    for feed, wanted in zip(feeds, expected, strict=True):
        found = session_of(model, threads=1).run(feed)
        for a, b in zip(at_tokens(wanted, feed), at_tokens(found, feed), strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)
    assert [cache.present_key for cache in caches_of(model)] == ["present.0.key"]  # raises where another node reads it
    count = len(model.graph)
    assert not fuse(model, feeds)
    assert len(model.graph) == count
