"""Constants in every form that onnx has: sparse ones become dense, strings stay what they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import ModelError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from tests.graph.build import build, prepared, run, weights


def sparse(name: str, shape: tuple[int, ...], indices: list[object], count: int) -> onnx.SparseTensorProto:
    values = onnx.numpy_helper.from_array(weights(count, low=0.5), name)
    return onnx.helper.make_sparse_tensor(
        values, onnx.numpy_helper.from_array(np.array(indices, np.int64)), list(shape)
    )


def net(form: str, indices: list[object]) -> onnx.ModelProto:
    proto = build("g (float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }")
    found = sparse("w", (4, 3), indices, len(indices))
    if form == "initializer":
        proto.graph.sparse_initializer.append(found)
    else:
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], sparse_value=found))
    return proto


@pytest.mark.parametrize("form", ["initializer", "constant"])
@pytest.mark.parametrize("indices", [[1, 5, 11], [[0, 1], [1, 2], [3, 2]]])
def test_sparse_constants_become_dense(form: str, indices: list[object]) -> None:
    proto = net(form, indices)
    before = proto.SerializeToString()
    model = io.load(proto)
    prepare(model)
    assert proto.SerializeToString() == before
    array = walk.const_array(model.graph.initializers["w"])
    assert array is not None and np.count_nonzero(array) == 3
    feed = {"x": weights(2, 4)}
    np.testing.assert_allclose(run(before, feed)["y"], run(io.to_bytes(model), feed)["y"], rtol=1e-6)


@pytest.mark.parametrize(
    ("indices", "shape", "reason"),
    [
        ([1, 99], (4, 3), "an index is outside of its shape"),
        ([[0, 1], [9, 9]], (4, 3), "is damaged: invalid entry"),
        ([1, 2], (2**20, 2**20), "too large to be stored densely"),
    ],
)
def test_damaged_ones_are_one_line(indices: list[object], shape: tuple[int, ...], reason: str) -> None:
    proto = build("g (float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }")
    proto.graph.sparse_initializer.append(sparse("w", shape, indices, 2))
    with pytest.raises(ModelError, match=f"sparse constant 'w': .*{reason}"):
        io.load(proto)


def test_in_a_body() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        y = If (flag) <then_branch = t () => (float[N,4] p) { p = Add (x, c) },
                       else_branch = e () => (float[N,4] q) { q = Neg (x) }>
    }"""
    proto = build(text)
    body = proto.graph.node[0].attribute[0].g
    body = proto.graph.node[0].attribute[1].g if body.node[0].op_type == "Neg" else body
    body.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse("", (4,), [0, 3], 2)))
    model = io.load(proto)
    prepare(model)
    assert {node.op_type for node in walk.all_nodes(model.graph)} == {"If", "Add", "Neg"}


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("value_float = 2.0", np.float32),
        ("value_floats = [1.0, 2.0, 3.0, 4.0]", np.float32),
        ("value_int = 2", np.int64),
        ("value_ints = [1, 2, 3, 4]", np.int64),
        ("value = float[4] {1, 2, 3, 4}", np.float32),
    ],
)
def test_typed_lists_are_initializers(form: str, dtype: type) -> None:
    cast = "f = Cast <to = 1> (c)" if dtype is np.int64 else "f = Identity (c)"
    model, _ = prepared(
        build(f"g (float[N,4] x) => (float[N,4] y) {{ c = Constant <{form}> () {cast} y = Mul (x, f) }}")
    )
    assert [node.op_type for node in model.graph] == ["Mul"]


@pytest.mark.parametrize("form", ['value_string = "a"', 'value_strings = ["a", "b"]'])
def test_strings_stay(form: str) -> None:
    text = f"""g (float[N,64] x) => (float[N,64] y, string[M] s) {{
        c = Constant <{form}> ()  one = Constant <value_ints = [-1]> ()  s = Reshape (c, one)  y = MatMul (x, w) }}"""
    result = onnxq.quantize(build(text, w=weights(64, 64)), preset="w8", benchmark=False)
    assert result.model is not None
    found = run(result.model.SerializeToString(), {"x": weights(1, 64)})["s"]
    assert found.tolist()[0] == "a"
