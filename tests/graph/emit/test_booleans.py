"""Boolean inputs that are handed on as outputs, for engines that fail on an Identity of one."""

from __future__ import annotations

import numpy as np
import onnx

from onnxq.graph.emit.booleans import copy_booleans
from onnxq.graph.files import io
from tests.graph.build import build, run


def test_an_identity_of_a_boolean_input_becomes_two_casts() -> None:
    text = "g (bool[n] m, float[n] x) => (bool[n] k, float[n] y) { [i] k = Identity (m) [j] y = Identity (x) }"
    model = io.load(build(text))
    assert copy_booleans(model) == 1
    assert copy_booleans(model) == 0
    written = io.to_proto(model)
    onnx.checker.check_model(written)
    assert [node.op_type for node in written.graph.node] == ["Cast", "Cast", "Identity"]
    assert [node.name for node in written.graph.node][1:] == ["i", "j"]
    assert [value.name for value in written.graph.output] == ["k", "y"]
    feed = {"m": np.array([True, False, True]), "x": np.ones(3, np.float32)}
    assert run(written.SerializeToString(), feed)["k"].tolist() == [True, False, True]


def test_one_in_a_subgraph_and_inner_values_are_left() -> None:
    text = """g (bool[n] m, bool c) => (bool[n] k) { [n] a = Not (m) [i] b = Identity (a)
        [f] k = If (c) <then_branch = t () => (bool[n] d) { [p] d = Identity (m) },
                        else_branch = e () => (bool[n] o) { [q] o = Identity (b) }> }"""
    model = io.load(build(text))
    assert copy_booleans(model) == 0
