"""What a model says of its values is not believed: neither sizes nor ranks, in the main graph and in subgraphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxq
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.whole import shapes
from tests.graph.build import build, ops, prepared, session, weights

NET = """g (float[N,3,8,8] x) => (float[?,?] y) {
    c = Conv <pads = [1,1,1,1]> (x, w)
    r = Relu (c)
    p = GlobalAveragePool (r)
    s = Shape (p)
    n = Gather (s, zero)
    m = Concat <axis = 0> (n, minus)
    f = Reshape (p, m)
    g = MatMul (f, v)
    y = Add (g, b)
}"""
CONSTANTS = {
    "w": weights(4, 3, 3, 3),
    "v": weights(4, 5),
    "b": weights(5),
    "zero": np.array([0], np.int64),
    "minus": np.array([-1], np.int64),
}


def declare(graph: onnx.GraphProto, name: str, dims: list[int], elem_type: int = onnx.TensorProto.FLOAT) -> None:
    info = next((value for value in graph.output if value.name == name), None)
    if info is None:
        info = graph.value_info.add(name=name)
    info.CopyFrom(onnx.helper.make_tensor_value_info(name, elem_type, dims))


@given(
    st.dictionaries(
        st.sampled_from(["c", "r", "p", "f", "g", "y"]),
        st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 7, 2**40]), max_size=5),
        min_size=1,
    )
)
def test_lies_change_nothing(lies: dict[str, list[int]]) -> None:
    proto = build(NET, **CONSTANTS)
    for name, dims in lies.items():
        declare(proto.graph, name, dims)
    model = io.load(proto)
    prepare(model)
    assert ops(model)["Gemm"] == 1
    assert model.graph.outputs[0].shape is not None
    honest = io.load(build(NET, **CONSTANTS))
    prepare(honest)
    found, expected = ({v.name: walk.dims(v) for v in walk.all_values(m.graph)} for m in (model, honest))
    lied_of_output = found.pop("y")
    assert found == {name: dims for name, dims in expected.items() if name != "y"}
    assert lied_of_output is not None
    assert len(lied_of_output) == 2
    assert lied_of_output[1] in (None, 5)


@pytest.mark.parametrize("dims", [[1, 4, 1, 1], [-1, 4, 1, 1], [1], [3, 3]])
def test_a_size_that_was_seen_once_is_not_folded(dims: list[int]) -> None:
    proto = build(NET, **CONSTANTS)
    declare(proto.graph, "p", dims)
    model, _ = prepared(proto)  # runs it with a batch of two
    assert ops(model)["Reshape"] == 1


def test_what_a_loop_takes_may_grow() -> None:
    text = """g (float[1,4] x, int64 trips) => (float[?,4] y, int64[?] sizes) {
        y, sizes = Loop (trips, , x) <body = b (int64 i, bool k, float[1,4] s) => (bool again, float[2,4] d, int64 n) {
            again = Identity (k)
            shape = Shape (s)
            n = ReduceSum <keepdims = 0> (shape)
            d = Concat <axis = 0> (s, s) }>
    }"""
    model = io.load(build(text))
    prepare(model)
    assert ops(model)["Shape"] == 1
    assert [walk.rank(value) for value in walk.all_values(model.graph) if value.name in ("s", "d")] == [2, 2]


def test_where_onnx_knows_no_operator_the_rank_is_believed_and_no_size() -> None:
    text = """g (float[N,4] x) => (float[?,4] y) {
        h = com.microsoft.Gelu (x)  s = Shape (h)  f = Cast <to = 1> (s)  p = ReduceSum <keepdims = 0> (f)
        y = Mul (h, p) }"""
    proto = build(text, imports=', "com.microsoft": 1')
    declare(proto.graph, "h", [1, 4])
    model, _ = prepared(proto)
    found = {value.name: walk.dims(value) for value in walk.all_values(model.graph)}
    assert found["h"] == (None, None)
    assert ops(model)["Shape"] == 1


def test_outputs_keep_what_they_say_unless_it_cannot_be() -> None:
    proto = build(
        "g (float[N,4] x) => (float[M,7] y, float[B,4] z) { y = MatMul (x, w) z = Relu (x) }", w=weights(4, 5)
    )
    model = io.load(proto)
    prepare(model)
    assert [[str(dim) for dim in value.shape or ()] for value in model.graph.outputs] == [["M", "5"], ["B", "4"]]


def test_names_that_inference_makes_up_stay_out() -> None:
    text = "g (float[?,?] x) => (float[?,4] y) { h = Relu (x) i = NonZero (h) j = Cast <to = 1> (i) y = MatMul (j, w) }"
    proto = build(text, w=weights(2, 4))
    del proto.graph.node[-1].input[:]
    proto.graph.node[-1].input.extend(["t", "w"])
    proto.graph.node.insert(3, onnx.helper.make_node("Transpose", ["j"], ["t"]))
    model, _ = prepared(proto)
    assert "unk__" not in onnx.printer.to_text(io.to_proto(model))


def test_what_was_inferred_is_not_written_where_the_source_declares_nothing() -> None:
    proto = build(
        "g (float[N, 8] x) => (float[N, 4] y) { a = Relu (x) b = Abs (a) y = MatMul (b, w) }", w=weights(8, 4)
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", 8]))
    model = io.load(proto)
    prepare(model)
    shapes.drop_inferred(model)
    written = io.to_proto(model).graph
    assert [info.name for info in written.value_info] == ["a"]
    assert written.output[0].type.tensor_type.shape.dim[1].dim_value == 4
    shapes.drop_inferred(model)
    assert io.to_proto(model).graph == written


def test_a_lie_that_the_runtime_believes_of_a_copy_without_weights_does_no_harm() -> None:
    text = """g (float[N,64] x) => (float[N,64] y) {
        h = MatMul (x, w)  r = Reshape (h, s)  t = Transpose <perm = [1, 0]> (r)  u = Transpose <perm = [1, 0]> (t)
        y = MatMul (u, w)
    }"""
    for dims in ([1, 64], [-1, 7], [64], [1, 1, 64], [2**40, 3]):
        for name in "hrtu":
            proto = build(text, w=weights(64, 64), s=np.array([-1, 64], np.int64))
            declare(proto.graph, name, dims)
            try:
                session(proto.SerializeToString())
            except Exception:  # the runtime itself believes it
                continue
            result = onnxq.quantize(proto, preset="w8", benchmark=False)
            assert result.sqnr_db is not None
            assert result.sqnr_db > 30
