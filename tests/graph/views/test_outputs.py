from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from onnxq.graph import edit
from onnxq.graph.files import io
from onnxq.graph.views.outputs import (
    has_operator,
    tensor_names,
    value_names,
    weight_bytes,
    with_outputs,
    without_reorders,
    without_weights,
)

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x, bool flag) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}> {
  r = Add(x, w)
  q = SequenceConstruct(r, x)
  n = SequenceLength(q)
  y = If (flag) <then_branch = t () => (float[N,4] p) { inner = Neg(r) p = Neg(inner) },
                 else_branch = e () => (float[N,4] o) { o = Identity(r) }>
}"""


@pytest.fixture
def model():
    return io.load(onnx.parser.parse_model(TEXT))


def test_values_of_the_main_graph_become_outputs_of_a_copy(model):
    before = io.to_bytes(model)
    found = with_outputs(model, ["r", "y", "x", "w", "inner", "ghost", "r", "n"])
    assert found.outputs == ["r", "y", "n"]
    assert (found.inputs, found.constants, found.missing) == (["x"], ["w"], ["ghost"])
    assert [value.name for value in found.model.graph.outputs] == ["y", "r", "n", found.inner["inner"]]
    assert io.to_bytes(model) == before
    again = with_outputs(found.model, ["r", "n"])
    assert again.outputs == ["r", "n"] and len(again.model.graph.outputs) == 4


def test_names_are_those_of_the_main_graph_and_sequences_are_told_apart(model):
    assert value_names(model) == ["r", "q", "n", "y"]
    assert tensor_names(model) == ["r", "n", "y"]
    assert has_operator(model, "If") and not has_operator(model, "Conv")
    assert weight_bytes(model) == 16


def test_weights_that_nothing_reads_stay_inside_where_the_runtime_drops_them():
    model = io.load(onnx.parser.parse_model(TEXT))
    arrays = {name: np.zeros(2048, np.float32) for name in ("unread", "read")}
    for name, array in arrays.items():
        edit.add_initializer(model.graph, name, array)
    edit.set_input(model.graph.node(0), 1, model.graph.initializers["read"])
    assert list(without_weights(model)[1]) == ["read"]


def test_large_weights_are_taken_out_and_shared_small_and_unusual_ones_stay():
    large = np.arange(2048, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "large"], ["a"]), helper.make_node("Gather", ["a", "index"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [2048])],
        [helper.make_tensor_value_info("y", 1, [1024])],
        [
            onnx.numpy_helper.from_array(large, "large"),
            onnx.numpy_helper.from_array(np.zeros(1024, np.int64), "index"),
            onnx.numpy_helper.from_array(np.zeros(4, np.float32), "small"),
        ],
    )
    model = io.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    before = io.to_bytes(model)
    content, weights = without_weights(model)
    assert list(weights) == ["large"]
    np.testing.assert_array_equal(weights["large"], large)
    kept = {tensor.name: tensor.data_location for tensor in onnx.load_from_string(content).graph.initializer}
    external, inline = onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT
    assert kept == {"large": external, "index": inline, "small": inline}
    assert io.to_bytes(model) == before


def reorder(source, target, **attributes):
    return helper.make_node("ReorderOutput", [source], [target], domain="com.microsoft.nchwc", **attributes)


def optimized(path, *nodes, outputs):
    made = [helper.make_tensor_value_info(name, 1, ["N", "C", "H", "W"]) for name in outputs]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["b"], domain="com.microsoft.nchwc"), *nodes], "g", [], made
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_a_reorder_of_whole_blocks_that_only_the_caller_reads_is_cut_off(tmp_path):
    relu = helper.make_node("Relu", ["b"], ["c"], domain="com.microsoft.nchwc")
    path = optimized(tmp_path / "m.onnx", reorder("b", "y", channels=32), relu, outputs=["y"])
    graph = onnx.load_from_string(without_reorders(path)).graph
    assert [(node.op_type, list(node.input), list(node.output)) for node in graph.node] == [
        ("Conv", ["x", "w"], ["y"]),
        ("Relu", ["y"], ["c"]),
    ]
    assert [(value.name, value.HasField("type")) for value in graph.output] == [("y", False)]


@pytest.mark.parametrize(
    ("attributes", "reader", "outputs"),
    [
        ({"channels": 24}, False, ["y"]),  # padded
        ({"channels": 32, "channels_last": 1}, False, ["y"]),
        ({"channels": 32}, True, ["y"]),
        ({"channels": 32}, False, ["z"]),
        ({"channels": 32}, False, ["y", "b"]),
    ],
)
def test_every_other_reorder_stays(tmp_path, attributes, reader, outputs):
    nodes = [reorder("b", "y", **attributes)] + [helper.make_node("Relu", ["y"], ["z"])] * reader
    assert without_reorders(optimized(tmp_path / "m.onnx", *nodes, outputs=outputs)) is None


def magnitude(source, size, target):
    return [helper.make_node("Abs", [source], [size]), helper.make_node("GlobalMaxPool", [size], [target])]


def test_a_reorder_that_only_peaks_read_is_cut_off_and_what_only_the_caller_reads_comes_early(tmp_path):
    relu = helper.make_node("Relu", ["b"], ["c"], domain="com.microsoft.nchwc")
    mean = helper.make_node("GlobalAveragePool", ["b"], ["m"], domain="com.microsoft.nchwc")
    pool = helper.make_node("GlobalAveragePool", ["c"], ["p"], domain="com.microsoft.nchwc")
    last = helper.make_node("Neg", ["p"], ["z"])
    nodes = [relu, pool, last, mean, reorder("b", "y", channels=32), *magnitude("y", "s", "t")]
    path = optimized(tmp_path / "m.onnx", *nodes, outputs=["y", "z", "m", "t"])
    graph = onnx.load_from_string(without_reorders(path)).graph
    assert [(node.op_type, list(node.input), list(node.output), node.domain[-5:]) for node in graph.node] == [
        ("Conv", ["x", "w"], ["y"], "nchwc"),
        ("GlobalAveragePool", ["y"], ["m"], "nchwc"),
        ("Abs", ["y"], ["s"], ""),
        ("GlobalMaxPool", ["s"], ["t"], "nchwc"),
        ("Relu", ["y"], ["c"], "nchwc"),
        ("GlobalAveragePool", ["c"], ["p"], "nchwc"),
        ("Neg", ["p"], ["z"], ""),
    ]


@pytest.mark.parametrize(
    ("more", "outputs"),
    [
        ([], ["y", "s", "t"]),
        ([helper.make_node("Neg", ["s"], ["z"])], ["y", "t", "z"]),
        ([helper.make_node("Neg", ["y"], ["z"])], ["y", "t", "z"]),
        ([helper.make_node("GlobalMaxPool", ["y"], ["z"])], ["y", "t", "z"]),
        ([helper.make_node("GlobalMaxPool", ["s"], ["z"], domain="other")], ["y", "t", "z"]),
    ],
)
def test_a_reorder_stays_where_anything_but_a_peak_reads_it(tmp_path, more, outputs):
    nodes = [reorder("b", "y", channels=32), *magnitude("y", "s", "t"), *more]
    assert without_reorders(optimized(tmp_path / "m.onnx", *nodes, outputs=outputs)) is None


def test_a_reorder_stays_where_a_body_reads_the_magnitudes(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Neg", ["s"], ["n"])], "t", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    branch = helper.make_node("If", ["flag"], ["z"], then_branch=body, else_branch=body)
    nodes = [reorder("b", "y", channels=32), *magnitude("y", "s", "t"), branch]
    assert without_reorders(optimized(tmp_path / "m.onnx", *nodes, outputs=["y", "t", "z"])) is None
