"""What the plan leaves float between two integer layers is float in the model that ONNX Runtime has optimized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.graph.emit.common import Builder
from onnxq.graph.emit.float_nodes import hold_float
from onnxq.graph.emit.rewrite import NodeRewrite, Rewrite
from onnxq.graph.files import io
from onnxq.graph.reading.optimized import integer_nodes
from onnxq.runtime.session import open_session
from tests.graph.build import build, weights
from tests.graph.emit import networks
from tests.graph.emit.test_operators import FORMATS, feeds, run

MODELS = networks.every(17)
NEWER = {**networks.every(21)}
GRID = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}


def on_integers(model: onnx.ModelProto | bytes, folder: Path) -> set[str]:
    path = folder / "optimized.onnx"
    open_session(model if isinstance(model, bytes) else model.SerializeToString(), threads=1, save_to=path)
    return integer_nodes(path)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "Gemm last"])
def test_every_operator_of_the_table(name: str, form: str, opset: int, tmp_path: Path) -> None:
    model = (MODELS if opset == 17 else NEWER)[name]
    samples = feeds(model)
    result = onnxq.quantize(
        model, calibration=samples, preset="w8a8", format=form, include=["*"], exclude=["target"], benchmark=False
    )
    assert result.model is not None
    if any(node.name == "target" for node in result.model.graph.node):  # preparing folds some away
        assert ("target", "excluded by --exclude") in {(node, reason) for node, _, reason in result.kept_float}
    found = on_integers(result.model, tmp_path)
    assert "target" not in found
    assert found  # the other layers are on integers
    (expected,), (plain,), (best,) = (
        run(m, samples[0], o) for m, o in ((model, True), (result.model, False), (result.model, True))
    )
    if expected.dtype == np.float32:
        assert sqnr_db(expected, best) > sqnr_db(expected, plain) - 1.0


def held(
    body: str, opset: int = 17, outputs: str = "float[?] y", **constants: np.ndarray
) -> tuple[onnx.ModelProto, bytes, list[str]]:
    """The model, after it was held, and its operators; nodes named ``own`` are what the rewrite puts on integers."""
    proto = build(f"g (float[1, 8, 6, 6] x, bool k) => ({outputs}) {{ {body} }}", opset=opset, **GRID, **constants)
    model = io.load(onnx.shape_inference.infer_shapes(proto))
    builder = Builder(model)
    builder.is_given = lambda node: False  # type: ignore[method-assign]
    for _ in range(2):  # the second time changes nothing
        hold_float(builder, Rewrite(nodes={"own": NodeRewrite()}))
    content = io.to_bytes(model)
    return proto, content, [node.op_type for node in onnx.load_from_string(content).graph.node]


PAIR = "q{0} = QuantizeLinear ({1}, s, z) d{0} = DequantizeLinear (q{0}, s, z)"
IN, OUT = PAIR.format(0, "x"), "p = QuantizeLinear ({}, s, z) y = DequantizeLinear (p, s, z)"


@pytest.mark.parametrize(
    ("body", "copies"),
    [
        (f"{IN} n = Sigmoid (d0) {OUT.format('n')}", 1),
        (f"{IN} n = Sigmoid (d0) r = Relu (n) {OUT.format('r')}", 1),
        (f"{IN} m = Flatten (d0) r = Reshape (m, to) n = Softmax (r) t = Squeeze (n) {OUT.format('t')}", 0),
        (f"{IN} n = Transpose <perm = [0, 2, 3, 1]> (d0) {OUT.format('n')}", 2),
        (f"{IN} m = Transpose <perm = [0, 2, 3, 1]> (d0) n = Reshape (m, to) {OUT.format('n')}", 2),
        (f"{IN} n = MaxPool <kernel_shape = [2, 2]> (d0) y = Neg (n)", 1),
        (f"{IN} n = MatMul (d0, d0) y = Neg (n)", 1),
        (f"{IN} n = Add (d0, d0) {OUT.format('n')}", 0),
        (f"{IN} n = Sigmoid (d0) y = Neg (n)", 0),
        (f"{IN} n = Sigmoid (d0) w = Neg (n) {OUT.format('n')}", 0),
        (f"{IN} n = Mul (d0, x) {OUT.format('n')}", 0),
        (f"{IN} n = Tanh (d0) {OUT.format('n')}", 0),
        (f"{IN} [own] n = Sigmoid (d0) {OUT.format('n')}", 0),
        (f"n = Sigmoid (x) {OUT.format('n')}", 0),
    ],
)  # fmt: skip
def test_where_a_copy_stands(body: str, copies: int) -> None:
    constants = {"to": np.array([1, -1], np.int64)} if "(m, to)" in body else {}
    proto, model, operators = held(body, **constants)
    assert operators.count("Max") == copies
    feed = {"x": weights(1, 8, 6, 6), "k": np.array(True)}
    np.testing.assert_array_equal(run_bytes(model, feed), run_bytes(proto.SerializeToString(), feed))


def run_bytes(model: bytes, feed: dict[str, np.ndarray]) -> np.ndarray:
    return run(onnx.load_from_string(model), feed, False)[0]


def test_an_add_becomes_a_sum_where_that_broadcasts() -> None:
    text = f"{IN} n = Add (d0, d0) {OUT.format('n')}"
    assert "Sum" in held(text)[2]


def test_a_small_operand_is_copied_rather_than_a_large_one() -> None:
    gate = f"{IN} g = GlobalAveragePool (x) {PAIR.format(1, 'g')} n = Mul (d0, d1) {OUT.format('n')}"
    _, model, _ = held(gate)
    (copy,) = [node for node in onnx.load_from_string(model).graph.node if node.op_type == "Max"]
    assert list(copy.input) == ["d1"]


def test_in_a_body(tmp_path: Path) -> None:
    inside = f"{IN} n = Sigmoid (d0) {OUT.format('n')}".replace("y =", "h =")
    text = f"""y = If (k) <
        then_branch = t () => (float[?] h) {{ {inside} }},
        else_branch = e () => (float[?] r) {{ r = Neg (x) }}
    >"""
    _, model, _ = held(text)
    assert not any(name == "n" or "igmoid" in name for name in on_integers(model, tmp_path))


def test_what_the_model_brings_along_stays(tmp_path: Path) -> None:
    proto = build(f"g (float[1, 8, 6, 6] x) => (float[?] y) {{ {IN} n = Sigmoid (d0) {OUT.format('n')} }}", **GRID)
    model = io.load(proto)
    hold_float(Builder(model), Rewrite())
    assert [node.op_type for node in model.graph].count("Max") == 0
