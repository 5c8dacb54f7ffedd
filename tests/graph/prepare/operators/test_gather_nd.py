"""GatherND over the first axis of a constant is Gather; experts that are taken from a stack so are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.operators import gather_nd
from onnxq.graph.walk import all_nodes
from tests.graph.build import build, weights

INDICES = np.array([[[2], [0]], [[-1], [1]]], np.int64)


def rewritten(model: onnx.ModelProto) -> tuple[list[str], bytes]:
    loaded = io.load(model)
    prepare(loaded)
    assert gather_nd.run(loaded) == 0, "a second run finds nothing"
    return [node.op_type for node in all_nodes(loaded.graph)], io.to_bytes(loaded)


def run(model: bytes, **feed: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 8)])
def test_single_indices_of_a_constant(shape: tuple[int, ...]) -> None:
    out = ", ".join(["2", "2", *map(str, shape[1:])])
    model = build(f"g (int64[2, 2, 1] i) => (float[{out}] y) {{ [n] y = GatherND (w, i) }}", w=weights(*shape))
    found, content = rewritten(model)
    assert sorted(found) == ["Gather", "Squeeze"]
    np.testing.assert_array_equal(run(content, i=INDICES), run(model.SerializeToString(), i=INDICES))


def test_an_axis_that_was_put_in_for_it_goes() -> None:
    text = "g (int64[N] i) => (float[N, 8] y) { u = Unsqueeze (i, axes) y = GatherND (w, u) }"
    model = build(text, w=weights(3, 8), axes=np.array([-1], np.int64))
    found, content = rewritten(model)
    assert found == ["Gather"]
    given = np.array([2, 0, -1], np.int64)
    np.testing.assert_array_equal(run(content, i=given), run(model.SerializeToString(), i=given))


@pytest.mark.parametrize(
    "text",
    [
        "g (int64[2, 2] i) => (float[2] y) { y = GatherND (w, i) }",
        "g (int64[3, 1] i) => (float[3] y) { y = GatherND <batch_dims = 1> (w, i) }",
        "g (int64[2, N] i, float[3, 8] x) => (float[M] y) { y = GatherND (w, i) }",
        "g (int64[2, 1] i, float[3, 8] x) => (float[2, 8] y) { y = GatherND (x, i) }",
    ],
    ids=["two numbers", "batches", "unknown", "computed"],
)
def test_others_stay(text: str) -> None:
    found, _ = rewritten(build(text, w=weights(3, 8)))
    assert found == ["GatherND"]


def test_a_table_that_another_reads_too_and_one_in_a_body() -> None:
    body = "then_branch = a () => (float[2, 8] t) { t = GatherND (w, i) }"
    other = "else_branch = b () => (float[2, 8] e) { e = Gather (w, j) }"
    text = f"g (bool c, int64[2, 1] i, int64[2] j) => (float[2, 8] y) {{ y = If (c) <{body}, {other}> }}"
    model = build(text, w=weights(3, 8))
    found, content = rewritten(model)
    assert "GatherND" not in found and found.count("Gather") == 2
    feed = {"i": np.array([[2], [1]], np.int64), "j": np.array([0, 2], np.int64)}
    for flag in (True, False):
        taken = {"c": np.array(flag), **feed}
        np.testing.assert_array_equal(run(content, **taken), run(model.SerializeToString(), **taken))


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_that_are_taken_from_a_stack_are_packed(bits: int) -> None:
    text = """g (float[2, 1, 64] x, int64[2, 1] i) => (float[2, 1, 64] y) {
        w = GatherND (experts, i)
        y = MatMul (x, w)
    }"""
    model = build(text, opset=21, ir=10, experts=weights(8, 64, 64))
    result = onnxq.quantize(model, preset=f"w{bits}", benchmark=False)
    assert result.model is not None
    assert "GatherBlockQuantized" in {node.op_type for node in result.model.graph.node}
    assert result.model.ByteSize() < model.ByteSize() * (bits + 3) / 32
