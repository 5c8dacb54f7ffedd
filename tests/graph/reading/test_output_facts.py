"""What a graph says of its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.reading.output_facts import (
    LINEAR,
    MIXED,
    RELU,
    SIGMOID,
    SOFTMAX,
    TANH,
    UNKNOWN,
    OutputFact,
    facts_of_file,
    output_facts,
)
from tests.graph.build import build, weights


def facts(text: str, **initializers: np.ndarray) -> dict[str, OutputFact]:
    return output_facts(io.load(build(text, **initializers)))


@pytest.mark.parametrize(
    ("body", "activation", "axis"),
    [
        ("y = Softmax (x)", SOFTMAX, None),
        ("a = LogSoftmax (x) \n b = Transpose <perm = [0, 2, 1]> (a) \n y = Identity (b)", SOFTMAX, None),
        ("a = Sigmoid (x) \n y = Cast <to = 1> (a)", SIGMOID, None),
        ("y = Tanh (x)", TANH, None),
        ("a = Relu (x) \n y = ReduceMean <axes = [2], keepdims = 0> (a)", RELU, None),
        ("y = MatMul (x, w)", LINEAR, -1),
        ("a = MatMul (x, w) \n y = Transpose <perm = [0, 2, 1]> (a)", LINEAR, 1),
        ("a = Conv (x, k) \n y = Identity (a)", LINEAR, 1),
        ("a = Conv (x, k) \n y = Transpose <perm = [0, 2, 1]> (a)", LINEAR, 2),
        ("a = Conv (x, k) \n y = Flatten (a)", LINEAR, None),
        ("a = Sigmoid (x) \n b = MatMul (x, w) \n y = Concat <axis = 2> (a, b)", MIXED, None),
        ("a = Sigmoid (x) \n b = Sigmoid (x) \n y = Concat <axis = 2> (a, b)", SIGMOID, None),
        ("a = Tanh (x) \n b = Relu (x) \n y = Mul (a, b)", UNKNOWN, None),
        ("y = Identity (x)", UNKNOWN, None),
    ],
)
def test_what_an_output_ends_in(body: str, activation: str, axis: int | None) -> None:
    found = facts(f"g (float[N, 4, 4] x) => (float[A, B, C] y) {{ {body} }}", w=weights(4, 4), k=weights(4, 4, 1))["y"]
    assert (found.activation, found.class_axis) == (activation, axis)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("state", "stateN"), ("h", "hn"), ("h0", "hn"), ("in_cache0", "out_cache0"), ("mem_past", "mem_present"),
        ("c_in", "c_out"), ("past.0.key", "present.0.key"), ("cache", "new_cache"), ("hiddenStateIn", "hiddenStateOut"),
    ],
)  # fmt: skip
def test_states_are_paired_by_name(before: str, after: str) -> None:
    found = (
        facts(
            f"g (float[1, 8] x, float[1, 8] {before}) => (float[1, 8] y, float[1, 8] {after})"
            f" {{ y = Add (x, {before}) \n {after} = Tanh (y) }}"
        )
        if "." not in before
        else _dotted(before, after)
    )
    assert (found[after].state_of, found["y"].state_of) == (before, "")


def _dotted(before: str, after: str) -> dict[str, OutputFact]:
    proto = build(
        "g (float[1, 8] x, float[1, 8] s) => (float[1, 8] y, float[1, 8] t) { y = Add (x, s) \n t = Tanh (y) }"
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = {"s": before, "t": after}.get(value.name, value.name)
    for node in proto.graph.node:
        node.input[:] = [{"s": before}.get(name, name) for name in node.input]
        node.output[:] = [{"t": after}.get(name, name) for name in node.output]
    return output_facts(io.load(proto))


@pytest.mark.parametrize(
    "text",
    [
        "g (float[1, 8] image) => (float[1, 8] image_out) { image_out = Tanh (image) }",
        "g (float[1, 8] x, float[1, 8] h) => (float[1, 8] y, float[1, 4] hn)"
        " { y = Add (x, h) \n hn = Slice (y, a, b, c) }",
        "g (float[1, 8] x, float[1, 8] h) => (float[1, 8] y, float[1, 8] z) { y = Add (x, h) \n z = Tanh (y) }",
    ],
)
def test_no_state_where_nothing_else_comes_out_or_shapes_or_names_differ(text: str) -> None:
    found = facts(text, a=np.array([0]), b=np.array([4]), c=np.array([1]))
    assert not any(fact.state_of for fact in found.values())


def test_a_result_of_the_shape_of_an_input_is_like_it() -> None:
    found = facts(
        "g (float[N, 8] x, int64[N, 3] i) => (float[N, 8] y, float[N, 3] z) { y = Tanh (x) \n z = Cast <to = 1> (i) }"
    )
    assert (found["y"].like_input, found["z"].like_input) == (True, False)


def test_files_and_bytes_are_read_and_damage_says_nothing(tmp_path: Path) -> None:
    proto = build("g (float[N, 8] x) => (float[N, 8] y) { y = Sigmoid (x) }")
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert facts_of_file(path) == facts_of_file(path.read_bytes()) == output_facts(io.load(path))
    assert facts_of_file(b"nonsense") == facts_of_file(tmp_path / "none.onnx") == {}
