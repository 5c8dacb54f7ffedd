"""Shapes are those that ONNX Runtime computes, also where onnx counts otherwise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.whole import inferring
from tests.graph.build import build, session, weights


def inferred(model: onnx.ModelProto) -> dict[str, list[int]]:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = inferring.infer_shapes(copy, data_prop=True).graph
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferring.value_infos(found)}


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        ("MaxPool <kernel_shape=[1,2],strides=[3,2],ceil_mode=1> (x)", 11),
        ("MaxPool <kernel_shape=[2,2],strides=[3,3],pads=[1,0,0,1],dilations=[2,1],ceil_mode=1> (x)", 17),
        ("AveragePool <kernel_shape=[2,1],strides=[2,4],ceil_mode=1,count_include_pad=1> (x)", 17),
        ('ConvTranspose <auto_pad="SAME_LOWER",output_padding=[1,0],strides=[2,1]> (x, w)', 17),
        ('ConvTranspose <auto_pad="SAME_UPPER",strides=[2,3],dilations=[1,2]> (x, w)', 17),
        ("Unsqueeze <axes=[-1,1]> (x)", 9),
        ("Squeeze <axes=[-4]> (x)", 10),
    ],
)
def test_sizes_are_those_of_a_run(node: str, opset: int) -> None:
    text = f"g (float[1,2,7,8] x) => (float[?] y, float[?] z) {{ y = {node} z = Neg (y) }}"
    model = build(text, opset=opset, w=weights(2, 3, 1, 2))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    y, z = session(model.SerializeToString()).run(None, {"x": weights(1, 2, 7, 8)})
    found = inferred(model)
    assert (found["y"], found["z"]) == (list(y.shape), list(z.shape))


def test_one_behind_the_other() -> None:
    pool = "MaxPool <kernel_shape=[1,2],strides=[3,2],ceil_mode=1>"
    text = f"""g (float[1,2,40,40] x, bool c) => (float[?] y) {{ a = {pool} (x) b = Relu (a) d = {pool} (b)
        y = If (c) <then_branch = t () => (float[?] p) {{ p = {pool} (d) }},
                    else_branch = e () => (float[?] q) {{ n = Neg (d) q = {pool} (n) }}> }}"""
    model = build(text, opset=11)
    for graph in (model.graph, *(attribute.g for attribute in model.graph.node[-1].attribute)):
        graph.output[0].type.tensor_type.ClearField("shape")
    found = inferred(model)
    assert found["d"] == [1, 2, 5, 10]
    assert found["y"] == found["p"] == found["q"] == [1, 2, 2, 5]


def test_what_is_not_known_stays_so() -> None:
    pool = "MaxPool <kernel_shape=[1,2],strides=[3,2],ceil_mode=1> (x)"
    assert inferred(build(f"g (float[1,2,H,W] x) => (float[?] y) {{ y = {pool} }}", opset=11))["y"] == [1, 2, 0, 0]


def test_an_output_behind_a_pool_keeps_its_shape() -> None:
    text = """g (float[1,2,4,4] x) => (float[2,2,2,2] y) {
        a = MaxPool <kernel_shape=[1,2],strides=[2,2],ceil_mode=1> (x) b = Softmax (a) y = Concat <axis=0> (b, a) }"""
    model = io.load(build(text))
    prepare(model)
    assert str(model.graph.outputs[0].shape) == "[2,2,2,2]"


def test_a_constant_that_is_an_output_too_is_still_read() -> None:
    text = """g (float[N,3,8] x) => (float[N,2,8] y, int64[1] axis) { y = Slice (x, first, last, axis, step) }"""
    numbers = {"first": 0, "last": 1 << 31, "axis": -2, "step": 2}
    model = io.load(build(text, **{name: np.array([number], np.int64) for name, number in numbers.items()}))
    prepare(model)
    assert str(model.graph.outputs[0].shape) == "[N,2,8]"
