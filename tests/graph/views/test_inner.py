"""Values of subgraphs handed out: the arrays that a straight computation gives, at every depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.views.inner import arrays_of, chains, expose, float_names, shape_of, why_hidden
from tests.graph.build import build

Array = np.ndarray[Any, Any]
HEAD = "g (float[N,2] x, int64 n, bool c) => (float[A,2] y, float[B,C,2] z)"
LOOP = (
    HEAD
    + """ { go = Constant <value = bool {1}> ()
    [loop] y, z = Loop (n, go, x) <body = b (int64 i, bool on, float[K,2] state)
        => (bool off, float[L,2] next, float[N,2] o) {
        off = Identity (on) grown = Concat <axis = 0> (state, x) o = Neg (x)
        [pick] next = If (c) <then_branch = t () => (float[L,2] p) { twice = Add (grown, grown) p = Neg (twice) },
                              else_branch = e () => (float[L,2] q) { half = Mul (grown, x0) q = Neg (half) }> }> }"""
)
X = np.array([[1.0, 2.0]], np.float32)


def given(proto: onnx.ModelProto, feed: dict[str, Array], names: list[str], shapes: bool = False) -> dict[str, Any]:
    """What the outputs for the names hold; the model's own outputs must be as before."""
    model = io.load(proto)
    outputs = expose(model, names, shapes=shapes)
    results = {}
    for content in (proto.SerializeToString(), io.to_bytes(model)):
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        results = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
        own = [results[value.name] for value in proto.graph.output]
        if content == proto.SerializeToString():
            expected = own
    for left, right in zip(expected, own, strict=True):
        np.testing.assert_array_equal(left, right)
    return {name: results[output] for name, output in outputs.items()}


def feed(n: int = 2, c: bool = True) -> dict[str, Array]:
    return {"x": X, "n": np.array(n), "c": np.array(c)}


def loop() -> onnx.ModelProto:
    return build(LOOP, x0=np.array(0.5, np.float32))


def test_every_iteration_of_a_loop_is_handed_out_whatever_its_shape() -> None:
    found = given(loop(), feed(), ["state", "grown", "o", "twice", "half"])
    second = np.concatenate([-2 * np.concatenate([X, X]), X])
    expected = {
        "state": [X, -2 * np.concatenate([X, X])],
        "grown": [np.concatenate([X, X]), second],
        "o": [-X, -X],
        "twice": [2 * np.concatenate([X, X]), 2 * second],
        "half": [],
    }
    for name, arrays in expected.items():
        got = arrays_of(found[name])
        assert len(got) == len(arrays)
        for left, right in zip(arrays, got, strict=True):
            np.testing.assert_array_equal(left, right)


def test_the_branch_that_is_taken_decides() -> None:
    found = given(loop(), feed(c=False), ["twice", "half"])
    assert [len(arrays_of(found[name])) for name in ("twice", "half")] == [0, 2]


def test_a_loop_that_does_not_run_hands_out_nothing() -> None:
    assert all(arrays_of(found) == [] for found in given(loop(), feed(0), ["state", "twice", "o"]).values())
    assert all(shape_of(found) is None for found in given(loop(), feed(0), ["state", "twice"], shapes=True).values())


def test_shapes_are_those_of_the_first_run_and_none_where_there_was_none() -> None:
    found = given(loop(), feed(), ["state", "grown", "twice", "half"], shapes=True)
    assert {name: shape_of(result) for name, result in found.items()} == {
        "state": (1, 2), "grown": (2, 2), "twice": (2, 2), "half": None,
    }  # fmt: skip


def test_branches_in_branches_and_shapes_without_axes() -> None:
    text = """g (float[N,2] x, bool c) => (float[N,2] y) { [outer] y = If (c) <
        then_branch = t () => (float[N,2] p) { [inner] p = If (c) <
            then_branch = t2 () => (float[N,2] p2) { s = ReduceSum <keepdims = 0> (x) p2 = Mul (x, s) },
            else_branch = e2 () => (float[N,2] q2) { d = Exp (x) q2 = Neg (d) }> },
        else_branch = e () => (float[N,2] q) { q = Neg (x) }> }"""
    start = {"x": X, "c": np.array(True)}
    found = given(build(text), start, ["s", "d", "p2", "q"])
    assert float(arrays_of(found["s"])[0]) == 3.0
    assert [len(arrays_of(found[name])) for name in ("s", "d", "p2", "q")] == [1, 0, 1, 0]
    shapes = given(build(text), start, ["s", "d"], shapes=True)
    assert (shape_of(shapes["s"]), shape_of(shapes["d"])) == ((), None)


SCAN = """g (float[2] x, float[T,2] xs{more}) => (float[2] y, float[T,2] z) {{ [scan] y, z = Scan <num_scan_inputs = 1,
    scan_output_axes = [0], body = b (float[2] h, float[2] e) => (float[2] k, float[2] o) {{ s = Add (h, e) k = Neg (s)
    o = Exp (e) }}> (x, xs) }}"""


def test_a_scan_stacks_its_iterations() -> None:
    start = {"x": np.zeros(2, np.float32), "xs": np.arange(6, dtype=np.float32).reshape(3, 2)}
    found = given(build(SCAN.format(more="")), start, ["s", "e", "h"])
    np.testing.assert_array_equal(arrays_of(found["e"])[0], start["xs"])
    np.testing.assert_array_equal(arrays_of(found["s"])[0], [[0, 1], [2, 2], [2, 3]])
    assert shape_of(given(build(SCAN.format(more="")), start, ["s"], shapes=True)["s"]) == (2,)


def test_a_scan_in_a_loop() -> None:
    text = """g (float[2] x, float[T,2] xs, int64 n) => (float[2] y) { [loop] y = Loop (n, , x) <
        body = l (int64 i, bool on, float[2] state) => (bool off, float[2] next) {
        off = Identity (on) [scan] next = Scan <num_scan_inputs = 1,
        body = b (float[2] h, float[2] e) => (float[2] k) { s = Add (h, e) k = Neg (s) }> (state, xs) }> }"""
    start = {"x": np.zeros(2, np.float32), "xs": np.ones((3, 2), np.float32), "n": np.array(2)}
    found = given(build(text), start, ["s"])
    assert [array.shape for array in arrays_of(found["s"])] == [(3, 2), (3, 2)]
    assert shape_of(given(build(text), start, ["s"], shapes=True)["s"]) == (2,)


def test_what_holds_no_real_numbers_or_is_unknown_is_left_out() -> None:
    model = io.load(loop())
    before = io.to_bytes(model)
    assert expose(model, ["off", "ghost"]) == {}
    assert io.to_bytes(model) == before


def test_only_values_with_a_known_type_are_asked_for_their_shape() -> None:
    assert set(float_names(io.load(loop()))) >= {"state", "next", "o", "p", "q"}
    assert "i" not in float_names(io.load(loop()))


@pytest.mark.parametrize(
    ("version", "expected"),
    [(17, ""), (12, "Loop hands out such values from operator set 13 on, and the model has 12")],
)
def test_what_old_operator_sets_cannot_hand_out(version: int, expected: str) -> None:
    (body, *inside) = chains(io.load(loop()).graph).values()
    assert why_hidden(body, version) == expected
    assert [node.name for node, _ in inside[0]] == ["loop", "pick"]


def test_bodies_of_unknown_operators_are_closed() -> None:
    model = io.load(loop())
    node = next(node for node in walk.all_nodes(model.graph) if node.name == "loop")
    node.domain, node.op_type = "my.ops", "Repeat"
    assert {why_hidden(chain, 17) for chain in chains(model.graph).values()} == {
        "my.ops.Repeat does not hand out values of its subgraph"
    }
    assert float_names(model) == [] and expose(model, ["twice"]) == {}
