"""Samples taken through a model cut by cut give what the whole model gives, and run no node twice."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.readers import open_reader
from onnxq.errors import CalibrationError
from onnxq.graph import edit
from onnxq.graph.files import io
from onnxq.graph.views.cuts import segment_model, segments_of
from onnxq.runtime.probe import InnerValues
from onnxq.runtime.session import open_session
from onnxq.runtime.streams.two_streams import TwoStreams
from tests.graph.build import build

MODEL = (
    "g (float[N,4] x, bool flag) => (float[N,4] y) {"
    " early = Exp (x) \n a = MatMul (x, A) \n b = Tanh (a) \n c = MatMul (b, B)"
    " \n d = If (flag) <then_branch = t () => (float[N,4] p) { p = Add (c, early) },"
    " else_branch = e () => (float[N,4] q) { q = Identity (b) }> \n late = Neg (d) \n f = MatMul (d, C)"
    " \n y = Add (f, early) }"
)
VALUES = ["x", "b", "d"]
"""What the three products read."""


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    made = io.load(build(MODEL, **{name: rng.normal(size=(4, 4)).astype(np.float32) for name in "ABC"}))
    for number, node in enumerate(made.graph):
        node.name = f"n{number}_{node.outputs[0].name}"
    return made


def samples(count=5):
    rng = np.random.default_rng(1)
    return [
        {"x": rng.normal(size=(3, 4)).astype(np.float32), "flag": np.array(index % 2 == 0)} for index in range(count)
    ]


def test_each_node_is_in_one_segment_at_most_and_only_what_is_needed_runs(model):
    found = segments_of(model, VALUES)
    nodes = list(model.graph)
    written = [[nodes[index].outputs[0].name for index in segment.nodes] for segment in found]
    assert written == [[], ["a", "b"], ["early", "c", "d"]]
    assert [segment.reads for segment in found] == [(), (), ("b",)]
    assert [segment.gives for segment in found] == [(), ("b",), ("d",)]
    assert [segment.keeps for segment in found] == [(), ("b",), ()]


def test_a_value_that_was_computed_on_the_way_is_kept_for_its_turn(make):
    chain = make("g (float[N,4] x) => (float[N,4] y) { a = Relu (x) \n b = Exp (a) \n c = Neg (b) \n y = Add (c, a) }")
    first, second, third = segments_of(chain, ["b", "a", "y"])
    assert (first.gives, first.keeps) == (("a", "b"), ("a", "b"))
    assert (second.nodes, second.keeps) == ((), ("a", "b"))
    assert (third.reads, third.gives) == (("a", "b"), ("y",))


def test_segments_leave_the_model_as_it_was(model):
    before = [node.op_type for node in model.graph]
    part, inputs = segment_model(model, segments_of(model, VALUES)[2], {}, {"b": np.dtype(np.float32)})
    assert [node.op_type for node in model.graph] == before
    assert [value.name for value in part.graph.inputs][-1] == inputs["b"]
    assert [value.name for value in part.graph.outputs] == ["d"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_both_streams_are_those_of_the_whole_models(model, tmp_path, count):
    feeds = samples(count)
    rng = np.random.default_rng(2)
    other = {"A": rng.normal(size=(4, 4)).astype(np.float32), "B": rng.normal(size=(4, 4)).astype(np.float32)}
    changed = model.clone()
    for name, array in other.items():
        edit.set_contents(changed.graph.initializers[name], array)
    exact, given = (InnerValues(each, VALUES) for each in (model, changed))
    reader = open_reader(feeds, open_session(io.to_bytes(model)).input_specs)
    walked = TwoStreams(model, VALUES, reader, tmp_path)
    constants = {"n1_a": (1, other["A"]), "n3_c": (1, other["B"])}
    every = min(5, max(count, 2))
    for value in VALUES:
        fitted, held = walked.advance(value, constants)
        parts = [i % every == every - 1 for i in range(count)]
        for found, chosen in ((fitted, False), (held, True)):
            picked = [feed for feed, part in zip(feeds, parts, strict=True) if part is chosen]
            if not picked:
                assert found.moment.rows == 0 and found.difference is None
                continue
            x, xh = (np.concatenate([side.of(feed)[value] for feed in picked]) for side in (exact, given))
            np.testing.assert_allclose(found.moment.matrix, xh.T @ xh, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.difference, (x - xh).T @ xh, rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.iterdir())  # nothing is kept that nobody reads


def test_integers_are_no_input_of_a_layer(make, tmp_path):
    shapes = make("g (float[N,4] x) => (float[N,4] y) { s = Shape (x) \n y = Reshape (x, s) }")
    reader = open_reader([{"x": np.ones((2, 4), np.float32)}], open_session(io.to_bytes(shapes)).input_specs)
    with pytest.raises(CalibrationError, match="value 's' is int64"):
        TwoStreams(shapes, ["s"], reader, tmp_path).advance("s", {})
