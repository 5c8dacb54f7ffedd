"""Declared dimensions that no tensor can have are unknown once a model is loaded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from tests.graph.build import build, weights


def declare(proto: onnx.ModelProto, name: str, *dims: int) -> None:
    """Let a model say of a value that it has these dimensions."""
    known = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    info = next((value for value in known if value.name == name), None)
    if info is None:
        info = proto.graph.value_info.add(name=name)
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    info.type.tensor_type.ClearField("shape")
    info.type.tensor_type.shape.SetInParent()
    for dim in dims:
        info.type.tensor_type.shape.dim.add().dim_value = dim


@pytest.mark.parametrize("name", ["x", "h", "y"])
@pytest.mark.parametrize("dim", [-1, -7, 2**62])
def test_impossible_dimensions_are_unknown(name: str, dim: int) -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { h = Relu (x) y = MatMul (h, w) }", w=weights(4, 4))
    declare(proto, name, dim, 4)
    value = next(v for v in walk.all_values(io.load(proto).graph) if v.name == name)
    assert walk.dims(value) == (None, 4)


def test_in_a_body_too() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        y = If (flag) <then_branch = t () => (float[N,4] p) { p = Relu (x) },
                       else_branch = e () => (float[N,4] q) { q = Neg (x) }>
    }"""
    proto = build(text)
    output = proto.graph.node[0].attribute[0].g.output[0]
    output.type.tensor_type.shape.dim[0].dim_value = -1
    value = next(v for v in walk.all_values(io.load(proto).graph) if v.name == output.name)
    assert walk.dims(value) == (None, 4)


def test_an_initializer_is_as_large_as_its_contents() -> None:
    proto = build("g (float[N,4] x) => (float[N,2] y) { y = MatMul (x, w) }", w=weights(4, 2))
    declare(proto, "w", -1, 9)
    model = io.load(proto)
    assert walk.dims(model.graph.initializers["w"]) == (4, 2)
    assert np.array_equal(io.to_proto(model).graph.initializer[0].dims, [4, 2])


def test_what_is_possible_stays() -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { h = Relu (x) y = Neg (h) }")
    declare(proto, "h", 0, 4)
    loaded = io.load(proto)
    assert [walk.dims(v) for v in walk.all_values(loaded.graph)] == [(None, 4), (0, 4), (None, 4)]
    assert loaded.graph.inputs[0].shape is not None
    assert str(loaded.graph.inputs[0].shape[0]) == "N"
