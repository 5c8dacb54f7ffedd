"""The user's node names keep their meaning: each goes to the prepared node that does its work."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.reading.origin import remember, sources
from tests.graph.build import build, weights

BN = {name: weights(4, low=0.5, high=2, seed=i) for i, name in enumerate(("s", "o", "mu", "var"))}
CONV = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ {} }}"


def traced(proto: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    model = io.load(proto)
    before = remember(model)
    prepare(model)
    return sources(before, model)


def test_a_node_that_stays_stands_for_itself() -> None:
    found = traced(build(CONV.format("[c] a = Conv (x, w) [r] y = Relu (a)"), w=weights(4, 4, 1, 1)))
    assert found == {"c": ("c",), "r": ("r",)}


def test_batch_normalization_goes_to_the_layer_it_was_folded_into() -> None:
    text = "[c] a = Conv (x, w) [bn] b = BatchNormalization (a, s, o, mu, var) [r] y = Relu (b)"
    assert traced(build(CONV.format(text), w=weights(4, 4, 1, 1), **BN)) == {"c": ("c", "bn"), "r": ("r",)}


def test_a_chain_of_foldings() -> None:
    text = """[c] a = Conv (x, w) [bn] b = BatchNormalization (a, s, o, mu, var) [scale] d = Mul (b, two)
        [drop] e = Dropout (d) [same] f = Identity (e) [r] y = Relu (f)"""
    found = traced(build(CONV.format(text), w=weights(4, 4, 1, 1), two=np.array(2, np.float32), **BN))
    assert set(found) == {"c", "r"}
    assert found["c"][:3] == ("c", "bn", "scale")
    assert sorted(name for names in found.values() for name in names) == sorted(
        ["c", "bn", "scale", "drop", "same", "r"]
    )


def test_matmul_and_add_become_one_gemm() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { [mm] a = MatMul (x, w) [plus] b = Add (a, c) [r] y = Relu (b) }"
    found = traced(build(text, w=weights(4, 3), c=weights(3)))
    assert found == {"mm": ("mm", "plus"), "r": ("r",)}


def test_padding_goes_to_the_convolution_behind_it() -> None:
    text = "g (float[N,4,6,6] x) => (float[N,4,H,W] y) { [pad] a = Pad (x, p) [c] y = Conv (a, w) }"
    found = traced(build(text, w=weights(4, 4, 1, 1), p=np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    assert found == {"c": ("c", "pad")}


def test_what_becomes_a_weight_goes_to_the_layer_that_reads_it() -> None:
    text = "g (float[N,3] x) => (float[N,4] y) { [turn] t = Transpose (w) [mm] y = MatMul (x, t) }"
    assert traced(build(text, w=weights(4, 3))) == {"mm": ("mm", "turn")}


def test_a_result_that_several_read_belongs_to_none_of_them() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        [turn] t = Transpose (w) [a] b = MatMul (x, t) [c] y = MatMul (b, t) }"""
    assert traced(build(text, w=weights(4, 4))) == {"a": ("a",), "c": ("c",)}


def test_a_node_at_the_end_that_did_nothing_goes_to_the_one_that_now_writes_the_output() -> None:
    text = "[c] a = Conv (x, w) [same] y = Identity (a)"
    assert traced(build(CONV.format(text), w=weights(4, 4, 1, 1))) == {"c": ("c", "same")}


def test_nodes_in_bodies_keep_their_names() -> None:
    proto = build(
        """g (float[N,4] x, bool flag) => (float[N,4] y) {
        [pick] y = If (flag) <then_branch = t () => (float[N,4] p) { [inner] p = MatMul (x, w) },
        else_branch = e () => (float[N,4] q) { [other] q = Relu (x) }> }""",
        w=weights(4, 4),
    )
    found = traced(proto)
    assert {"pick", "inner", "other"} <= set(found)
    assert found["inner"] == ("inner",)


def test_nodes_without_a_name_have_the_one_that_inspect_shows() -> None:
    proto = build(CONV.format("a = Conv (x, w) b = Relu (a) y = Conv (b, w)"), w=weights(4, 4, 1, 1))
    assert set(traced(proto)) == {"Conv_0", "Relu_0", "Conv_1"}


def test_operators_of_the_users_model() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { [mm] a = MatMul (x, w) [plus] y = Add (a, c) }"
    model = io.load(build(text, w=weights(4, 3), c=weights(3)))
    before = remember(model)
    assert before.op_types == {"mm": "MatMul", "plus": "Add"}
    assert before.outputs == {"mm": ("a",), "plus": ("y",)}
    assert before.followers == {"mm": ("plus",), "plus": ()}


@pytest.mark.parametrize("order", [1, -1])
def test_each_name_is_that_of_one_node_at_most(order: int) -> None:
    text = """[c1] a = Conv (x, w) [bn1] b = BatchNormalization (a, s, o, mu, var) [r1] r = Relu (b)
        [c2] d = Conv (r, w) [bn2] e = BatchNormalization (d, s, o, mu, var) [add] y = Add (e, r)"""
    names = [name for found in traced(build(CONV.format(text), w=weights(4, 4, 1, 1), **BN)).values() for name in found]
    assert sorted(names)[::order] == sorted({"c1", "bn1", "r1", "c2", "bn2", "add"})[::order]
