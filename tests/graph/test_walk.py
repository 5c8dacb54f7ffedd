"""Looking at graphs and changing them: subgraphs, constants, consumers, attributes, names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import edit, names, walk
from onnxq.graph.files import io
from tests.graph.build import build, weights

NESTED = """g (float[2,4] x, bool flag) => (float[2,4] y) {
    [outer] r = Relu (x)
    [branch] y = If (flag) <
        then_branch = t () => (float[2,4] p) { [inner] p = Add (r, w) },
        else_branch = e () => (float[2,4] q) {
            [deep] q = If (flag) <
                then_branch = t2 () => (float[2,4] a) { [deepest] a = Neg (r) },
                else_branch = e2 () => (float[2,4] b) { [last] b = Mul (r, w) }>
        }>
}"""


@pytest.fixture
def nested() -> ir.Model:
    return io.load(build(NESTED, w=weights(4)))


def test_nodes_and_their_paths(nested: ir.Model) -> None:
    found = {node.name: path for path, node in walk.nodes_with_path(nested.graph)}
    assert found == {
        "outer": (),
        "branch": (),
        "inner": ("branch.then_branch",),
        "deep": ("branch.else_branch",),
        "deepest": ("branch.else_branch", "deep.then_branch"),
        "last": ("branch.else_branch", "deep.else_branch"),
    }
    assert [node.name for node in walk.all_nodes(nested.graph)] == list(found)
    assert len(list(walk.all_graphs(nested.graph))) == 5
    assert [value.name for value in walk.all_values(nested.graph)] == ["x", "flag", "w", "r", "y", "p", "q", "a", "b"]


def test_consumers_include_bodies(nested: ir.Model) -> None:
    value = nested.graph.node("outer").outputs[0]
    assert [node.name for node in walk.consumers(value)] == ["inner", "deepest", "last"]
    assert walk.only_use(value) is None
    assert walk.only_use(nested.graph.inputs[0]) is nested.graph.node("outer")
    assert walk.only_use(nested.graph.outputs[0]) is None


def test_names_are_free_in_the_whole_model(nested: ir.Model) -> None:
    free = walk.Names(nested)
    assert [free.value("a"), free.value("a"), free.value("fresh"), free.value("fresh")] == [
        "a_1",
        "a_2",
        "fresh",
        "fresh_1",
    ]
    assert [free.node("deepest"), free.node("new")] == ["deepest_1", "new"]
    assert walk.unique_name(nested, "b") == "b_1"
    assert walk.unique_name(nested.graph, "c") == "c"


def test_constants() -> None:
    text = """g (float[2] x, float[2] given) => (float[2] y) {
        a = Constant <value_float = 1.5> ()
        b = Constant <value_floats = [1.5, 2.5]> ()
        c = Constant <value_int = 3> ()
        d = Constant <value_ints = [3, 4]> ()
        e = Constant <value = float[1] {7.0}> ()
        f = Constant <value_string = "no"> ()
        y = Add (x, w)
    }"""
    graph = io.load(build(text, w=weights(2), given=weights(2))).graph
    values = {value.name: value for value in walk.all_values(graph)}
    arrays = {name: walk.const_array(value) for name, value in values.items()}
    assert {name: array.tolist() for name, array in arrays.items() if array is not None} == {
        "a": 1.5, "b": [1.5, 2.5], "c": 3, "d": [3, 4], "e": [7.0], "w": weights(2).tolist(),
    }  # fmt: skip
    assert arrays["c"].dtype == np.int64
    assert not walk.is_constant(values["given"]), "an initializer that is an input can be overridden"
    assert not walk.is_constant(None) and walk.const_array(None) is None


def test_attributes_and_their_defaults() -> None:
    text = 'g (float[1] x) => (float[1] y) { y = my.op <i = 3, f = 0.5, s = "text", l = [1, 2], m = [0.5]> (x) }'
    node = io.load(build(text, imports=', "my": 1')).graph[0]
    assert (walk.attr_int(node, "i"), walk.attr_int(node, "no", 7)) == (3, 7)
    assert (walk.attr_float(node, "f"), walk.attr_float(node, "no", 0.25)) == (0.5, 0.25)
    assert (walk.attr_str(node, "s"), walk.attr_str(node, "no", "x")) == ("text", "x")
    assert (walk.attr_ints(node, "l"), walk.attr_ints(node, "no", [9])) == ((1, 2), (9,))
    assert (walk.attr_floats(node, "m"), walk.attr_floats(node, "no")) == ((0.5,), ())


def test_types_and_shapes() -> None:
    graph = io.load(build("g (float[N,3] x, int64[2] i, float16 h) => (float[N,3] y) { y = Relu (x) }")).graph
    x, i, h = graph.inputs
    assert (walk.is_float(x), walk.is_float(i), walk.is_float(h), walk.is_float(None)) == (True, False, True, False)
    assert (walk.rank(x), walk.rank(h), walk.rank(None)) == (2, 0, None)
    assert (walk.dims(x), walk.dims(i), walk.dims(None)) == ((None, 3), (2,), None)
    assert walk.opset(graph) == 17
    assert walk.input_at(graph[0], 0) is x and walk.input_at(graph[0], 1) is None


def test_a_constant_of_ones_own() -> None:
    text = "g (float[2] x) => (float[2] y) { [a] m = Add (x, w) [b] n = Add (m, w) [c] y = Add (n, v) }"
    graph = io.load(build(text, w=weights(2), v=weights(2, seed=1))).graph
    free = walk.Names(graph)
    edit.set_constant(graph.node("c"), 1, np.zeros(2, np.float32), free, "other")
    assert set(graph.initializers) == {"w", "v"}
    edit.set_constant(graph.node("a"), 1, np.zeros(2, np.float32), free, "v")
    assert set(graph.initializers) == {"w", "v", "v_1"}
    assert np.array_equal(walk.const_array(graph.node("b").inputs[1]), weights(2))


def test_removing_a_node_frees_what_its_bodies_read(nested: ir.Model) -> None:
    graph = nested.graph
    branch, outer = graph.node("branch"), graph.node("outer")
    edit.take_over(branch.outputs[0], outer.outputs[0])
    edit.remove_node(branch)
    assert [value.name for value in graph.outputs] == ["y"]
    assert not outer.outputs[0].uses()
    assert edit.drop_unused_initializer(graph.initializers["w"])
    assert not graph.initializers


def test_unique_names_leave_inputs_and_outputs() -> None:
    text = """g (float[2] x, bool flag) => (float[2] y) {
        [n] y = If (flag) <
            then_branch = t () => (float[2] z) { [n] c = Neg (x) [m] z = Neg (c) },
            else_branch = e () => (float[2] z) { [n] c = Relu (x) [m] z = Neg (c) }>
    }"""
    model = io.load(build(text))
    assert names.make_unique(model) == 2 + 3
    assert names.make_unique(model) == 0
    assert [value.name for value in walk.all_values(model.graph)] == ["x", "flag", "y", "c", "z", "c_1", "z_1"]
    assert [node.name for node in walk.all_nodes(model.graph)] == ["n", "n_1", "m", "n_2", "m_1"]
