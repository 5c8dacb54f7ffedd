"""A model computes in 16 bits where that is sound; Casts stand only where the types meet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxq.graph import walk
from onnxq.graph.emit.half.halving import Halved, Halving, halve
from onnxq.plan.placement.halves import divide
from onnxq.targets import Ops
from tests.graph.build import build, session

EVERY = Ops(but=True)


def model_of(text: str, **weights: np.ndarray) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(build(text, **weights)))


def halved(model: ir.Model, kind: str = "float16", **how: object) -> Halved:
    return halve(model, Halving(kind, EVERY, **how), divide, {})  # type: ignore[arg-type]


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in walk.all_nodes(model.graph))


def run(model: ir.Model, **feed: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return session(proto.SerializeToString()).run(None, feed)


WEIGHT = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
BACK = np.ascontiguousarray(WEIGHT.T)
X = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)

MLP = "mlp (float[n, 16] x) => (float[n, 16] y) { [a] h = MatMul (x, w) [r] k = Relu (h) [b] y = MatMul (k, v) }"


def test_inputs_and_outputs_keep_their_types() -> None:
    model = model_of(MLP, w=WEIGHT, v=BACK)
    expected = run(model, x=X)
    done = halved(model)
    assert done.half == {"a", "r", "b"}
    assert kinds(model) == {"MatMul": 2, "Relu": 1, "Cast": 2}
    assert {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {
        "x": ir.DataType.FLOAT,
        "y": ir.DataType.FLOAT,
    }
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}
    np.testing.assert_allclose(run(model, x=X)[0], expected[0], rtol=2e-2, atol=5e-2)


def test_inputs_and_outputs_get_the_type_where_that_is_asked_for() -> None:
    model = model_of(MLP, w=WEIGHT, v=BACK)
    halved(model, keep_io=False)
    assert kinds(model) == {"MatMul": 2, "Relu": 1}
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT16}
    assert run(model, x=X.astype(np.float16))[0].dtype == np.float16


def test_a_second_run_changes_nothing() -> None:
    model = model_of(MLP, w=WEIGHT, v=BACK)
    halved(model)
    before = kinds(model)
    halved(model)
    assert kinds(model) == before


def test_what_is_kept_reads_and_writes_float32() -> None:
    model = model_of(MLP, w=WEIGHT, v=BACK)
    done = halved(model, keep={"r": "because"})
    assert done.wide == {"r": "because"}
    relu = next(node for node in model.graph if node.name == "r")
    assert relu.inputs[0] is not None
    assert (relu.inputs[0].dtype, relu.outputs[0].dtype) == (ir.DataType.FLOAT, ir.DataType.FLOAT)
    run(model, x=X)


def test_a_light_node_between_nodes_in_float32_is_not_worth_two_casts() -> None:
    text = """chain (float[n, 16] x) => (float[n, 16] y) {
        [a] h = Exp (x) [r] k = Relu (h) [b] l = Log (k) [c] m = MatMul (l, w) [d] y = MatMul (m, v) }"""
    model = model_of(text, w=WEIGHT, v=BACK)
    done = halved(model, keep={"a": "why", "b": "why"})
    assert done.half == {"c", "d"}
    assert "Casts around it" in done.wide["r"]
    assert kinds(model)["Cast"] == 2


def test_a_value_that_is_read_in_both_types_is_cast_once() -> None:
    text = """fork (float[n, 16] x) => (float[n, 32] y, float[n, 32] z, float[n, 32] t) {
        [a] h = MatMul (x, w) [b] y = Exp (h) [c] z = Exp (h) [d] t = MatMul (h, u) }"""
    model = model_of(text, w=WEIGHT, u=np.eye(32, dtype=np.float32))
    halved(model, keep={"b": "why", "c": "why"})
    assert kinds(model)["Cast"] == 3  # of x, of h, of t
    run(model, x=X)


@pytest.mark.parametrize(
    ("number", "said"), [(1e6, "more than float16 reaches"), (1e-12, "keeps too little"), (-3e38, "more than")]
)
def test_a_constant_that_the_type_cannot_hold_keeps_its_node(number: float, said: str) -> None:
    text = "c (float[n, 16] x) => (float[n, 32] y) { [a] h = MatMul (x, w) [b] y = Add (h, e) }"
    model = model_of(text, w=WEIGHT, e=np.array(number, np.float32))
    done = halved(model)
    assert done.half == {"a"}
    assert said in done.wide["b"]
    assert np.isfinite(run(model, x=X)[0]).all()


def test_a_shared_weight_serves_nodes_of_both_types() -> None:
    text = """s (float[n, 16] x) => (float[n, 32] y, float[n, 32] z) {
        [a] y = MatMul (x, w) [b] z = MatMul (x, w) }"""
    model = model_of(text, w=WEIGHT)
    expected = run(model, x=X)
    halved(model, keep={"b": "why"})
    for got, want in zip(run(model, x=X), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=2e-2)


def test_nodes_of_bodies_are_halved_and_their_ends_are_float32() -> None:
    text = """i (bool c, float[n, 16] x) => (float[n, 32] y) {
        y = If (c) <then_branch = g1 () => (float[n, 32] p) { [a] p = MatMul (x, w) },
                    else_branch = g2 () => (float[n, 32] q) { [b] k = MatMul (x, w) [d] q = Neg (k) }> }"""
    model = model_of(text, w=WEIGHT)
    done = halved(model)
    assert {"a", "b"} <= done.half
    for body in list(walk.all_graphs(model.graph))[1:]:
        assert body.outputs[0].dtype == ir.DataType.FLOAT
    proto = ir.to_proto(model)
    for c in (True, False):
        got = session(proto.SerializeToString()).run(None, {"c": np.array(c), "x": X})[0]
        np.testing.assert_allclose(got, X @ WEIGHT * (1 if c else -1), rtol=1e-2, atol=2e-2)


def test_casts_to_the_type_itself_are_gone() -> None:
    """A model that takes and gives float16, widened inside."""
    text = """w (float16[n, 16] x) => (float16[n, 32] y) {
        a = Cast <to = 1> (x) [m] h = MatMul (a, w) y = Cast <to = 10> (h) }"""
    model = model_of(text, w=WEIGHT)
    halved(model)
    assert kinds(model) == {"MatMul": 1}
    assert run(model, x=X.astype(np.float16))[0].dtype == np.float16


def test_scales_of_a_resize_stay_float32() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    text = """r (float[1, 4, 8, 8] x) => (float[1, 8, 16, 16] y) {
        [a] h = Conv (x, w) [b] y = Resize <mode = "linear"> (h, , s) }"""
    model = model_of(text, w=np.ones((8, 4, 3, 3), np.float32)[:, :, :1, :1].repeat(8, 1)[:, :4], s=scales)
    halved(model)
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT


def test_weights_alone() -> None:
    model = model_of(MLP, w=WEIGHT, v=BACK)
    done = halved(model, store_only=True)
    assert not done.half
    assert done.stored == {"a", "b"}
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    np.testing.assert_allclose(run(model, x=X)[0], np.maximum(X @ WEIGHT, 0) @ BACK, rtol=2e-2, atol=5e-2)


def test_operators_without_kernel_store_their_weights() -> None:
    model = model_of(MLP, w=WEIGHT, v=BACK)
    done = halve(model, Halving("bfloat16", Ops(frozenset({"Reshape"}))), divide, {})
    assert done.stored == {"a", "b"}
    assert "no bfloat16 kernel for MatMul" in done.wide["a"]
    assert model.graph.initializers["w"].dtype == ir.DataType.BFLOAT16


def test_sequences_stay_float32() -> None:
    node = helper.make_node("SequenceConstruct", ["h"], ["s"], name="q")
    at = helper.make_node("SequenceAt", ["s", "i"], ["y"], name="t")
    matmul = helper.make_node("MatMul", ["x", "w"], ["h"], name="a")
    graph = helper.make_graph(
        [matmul, node, at],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 32])],
        [onnx.numpy_helper.from_array(WEIGHT, "w"), onnx.numpy_helper.from_array(np.array(0, np.int64), "i")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    done = halved(model)
    assert done.half == {"a"}
    np.testing.assert_allclose(
        session(ir.to_proto(model).SerializeToString()).run(None, {"x": X})[0], X @ WEIGHT, rtol=1e-2, atol=2e-2
    )
