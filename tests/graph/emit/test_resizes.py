"""A Resize between integer convolutions that ONNX Runtime cannot turn to channels last keeps its layout."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxq
from onnxq.graph.emit.common import Builder
from onnxq.graph.emit.resizes import hold_layout
from onnxq.graph.files import io
from tests.graph.build import build, weights
from tests.graph.emit.test_operators import FORMATS, run
from tests.runtime_version import needs_runtime

SCALES = {"by": np.array([2, 1.5], np.float32)}
SIZES = {"by": np.array([15, 12], np.int64)}
ALL = {"by": np.array([1, 1, 0.5, 0.5], np.float32)}
CASES = [
    ('<axes = [2, 3], mode = "linear"> (a, , by)', SCALES),
    ('<axes = [2, 3], mode = "nearest"> (a, , by)', SCALES),
    pytest.param(
        '<axes = [-2, -1], mode = "linear"> (a, , , by)',
        SIZES,
        marks=needs_runtime("1.27", "takes no negative axes of Resize"),
    ),
    ('<axes = [3, 2], mode = "nearest"> (a, , , by)', SIZES),
    ('<axes = [2, 3], mode = "linear", keep_aspect_ratio_policy = "not_larger"> (a, , , by)', SIZES),
    ('<axes = [2, 3], mode = "cubic"> (a, , by)', SCALES),
    ('<mode = "cubic"> (a, , by)', ALL),
]


def between(resize: str, opset: int = 18, **constants: np.ndarray) -> onnx.ModelProto:
    text = f"""g (float[1, 16, 10, 10] x) => (float[?, ?, ?, ?] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w1) [target] b = Resize {resize} y = Conv <pads = [1, 1, 1, 1]> (b, w2)
    }}"""
    return build(text, opset=opset, w1=weights(16, 16, 3, 3), w2=weights(16, 16, 3, 3, seed=1), **constants)


def inferred(proto: onnx.ModelProto) -> ir.Model:
    return io.load(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("resize", "constants"), CASES)
def test_it_runs_with_everything_else_on_integers(resize: str, constants: dict[str, np.ndarray], form: str) -> None:
    model = between(resize, **constants)
    samples = [{"x": weights(1, 16, 10, 10, seed=seed)} for seed in range(6)]
    result = onnxq.quantize(model, calibration=samples, preset="w8a8", format=form, benchmark=False)
    assert result.model is not None
    assert result.coverage["Conv"] == {"quantized": 2, "total": 2}
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25
    np.testing.assert_allclose(run(result.model, samples[0])[0], run(result.model, samples[0], False)[0], atol=0.2)


@pytest.mark.parametrize(
    ("text", "copies"),
    [
        ('{q} y = Resize <mode = "cubic"> (d, , by)', 0),  # an output has nothing behind it
        ('{q} r = Resize <mode = "cubic"> (d, , by) y = Neg (r)', 1),
        ('{q} r = Resize <mode = "linear"> (d, , by) y = Neg (r)', 0),
        ('r = Resize <mode = "cubic"> (x, , by) y = Neg (r)', 0),
    ],
)
def test_where_it_is_held(text: str, copies: int) -> None:
    pair = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
    body = text.format(q=pair)
    grid = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)} if "{q}" in text else {}
    graph = f"g (float[1, 16, 10, 10] x) => (float[?, ?, ?, ?] y) {{ {body} }}"
    model = inferred(build(graph, opset=18, **ALL, **grid))
    for _ in range(2):  # the second time changes nothing
        hold_layout(Builder(model))
    assert [node.op_type for node in model.graph].count("Reshape") == copies


def test_in_a_body() -> None:
    text = """g (float[1, 4, 10, 10] x, bool k) => (float[?, ?, ?, ?] y) {
        y = If (k) <
            then_branch = t () => (float[?, ?, ?, ?] h) {
                q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
                r = Resize <mode = "cubic"> (d, , by) h = Neg (r)
            },
            else_branch = e () => (float[?, ?, ?, ?] o) { o = Neg (x) }
        >
    }"""
    model = inferred(build(text, opset=18, s=np.array(0.05, np.float32), z=np.array(128, np.uint8), **ALL))
    hold_layout(Builder(model))
    (branch,) = model.graph
    assert [node.op_type for node in branch.attributes["then_branch"].as_graph()].count("Reshape") == 1
