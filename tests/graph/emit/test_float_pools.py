"""A float MaxPool in front of a Q stays float and in front of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph.emit.common import Builder
from onnxq.graph.emit.norms import hold_pools
from onnxq.graph.files import io
from tests.graph.build import build, run, session, weights

POOL = "m = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> ({})"
ENDS = "q = QuantizeLinear ({}, s, z) y = DequantizeLinear (q, s, z)"
GRID = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}


def held(body: str, outputs: str = "float[?, ?, ?, ?] y") -> tuple[onnx.ModelProto, bytes]:
    constants = {name: array for name, array in GRID.items() if f" {name}" in body}
    proto = build(f"g (float[1, 8, 9, 9] x) => ({outputs}) {{ {body} }}", opset=17, **constants)
    model = io.load(proto)
    hold_pools(Builder(model))
    once = io.to_bytes(model)
    hold_pools(Builder(model))
    assert io.to_bytes(model) == once
    return proto, once


def kinds(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize("moved", ["", "t = Transpose <perm = [0, 2, 3, 1]> (m)"])
def test_a_copy_holds_the_pool(moved: str) -> None:
    proto, model = held(f"a = Abs (x) {POOL.format('a')} {moved} {ENDS.format('t' if moved else 'm')}")
    assert kinds(model)[:3] == ["Abs", "MaxPool", "Max"]
    feed = {"x": weights(1, 8, 9, 9)}
    np.testing.assert_array_equal(run(model, feed)["y"], run(proto.SerializeToString(), feed)["y"])


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"b = QuantizeLinear (x, s, z) d = DequantizeLinear (b, s, z) {POOL.format('d')} {ENDS.format('m')}", None),
        (f"{POOL.format('x')} n = Neg (m) {ENDS.format('n')}", None),
        (f"{POOL.format('x')} {ENDS.format('m')} w = Neg (m)", "float[?, ?, ?, ?] y, float[?, ?, ?, ?] w"),
        (f"{POOL.format('x')} {ENDS.format('m')}", "float[?, ?, ?, ?] y, float[?, ?, ?, ?] m"),
        (f"m = AveragePool <kernel_shape = [3, 3]> (x) {ENDS.format('m')}", None),
    ],
)
def test_a_pool_on_integers_or_past_which_no_q_is_moved_stays(body: str, outputs: str | None) -> None:
    _, model = held(body, outputs or "float[?, ?, ?, ?] y")
    assert "Max" not in kinds(model)


def test_in_a_body() -> None:
    inside = f"{POOL.format('x')} {ENDS.format('m')}".replace("y =", "p =")
    text = f"""g (float[1, 8, 9, 9] x, bool k) => (float[?, ?, ?, ?] y) {{
        y = If (k) <
            then_branch = t () => (float[?, ?, ?, ?] p) {{ {inside} }},
            else_branch = e () => (float[?, ?, ?, ?] r) {{ r = Neg (x) }}
        >
    }}"""
    model = io.load(build(text, opset=17, **GRID))
    hold_pools(Builder(model))
    (branch,) = model.graph
    assert [node.op_type for node in branch.attributes["then_branch"].as_graph()][:2] == ["MaxPool", "Max"]
    session(io.to_bytes(model))
