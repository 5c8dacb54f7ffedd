"""What OpenVINO's own transformations fail on is written for it in another form."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

import onnxq
from tests.graph.build import build, weights

RNG = np.random.default_rng(2)
TURNED = """g (float[1, 20, 32] x, float[1, 24, 3, 1] past) => (float[1, 24, 23, 1] y, float[1, 20, 8] z) {
    [a] h = MatMul (x, w) [t] c = Transpose <perm = [0, 2, 1]> (h) [u] d = Unsqueeze (c, axes)
    [k] y = Concat <axis = 2> (past, d) [b] z = MatMul (x, v) }"""
MASKED = """g (float[1, 9, 64] x, bool[1, 9] mask) => (float[1, 32] y, bool[1, 9] same) {
    [n] open = Not (mask) [u] three = Unsqueeze (open, axes) [f] real = Cast <to = 1> (three)
    [m] kept = Mul (x, real) [s] total = ReduceSum <keepdims = 0> (kept, one) [g] y = Gemm (total, w, b)
    [i] same = Identity (mask) }"""


def turned() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    model = build(TURNED, w=weights(32, 24), v=weights(32, 8), axes=np.array([3], np.int64))
    shapes = {"x": (1, 20, 32), "past": (1, 24, 3, 1)}
    return model, [{n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(4)]


def masked() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    axes, one = np.array([2], np.int64), np.array([1], np.int64)
    model = build(MASKED, w=weights(64, 32), b=weights(32), axes=axes, one=one)
    feeds = [
        {"x": RNG.standard_normal((1, 9, 64)).astype(np.float32), "mask": RNG.random((1, 9)) < 0.3} for _ in range(4)
    ]
    return model, feeds


def written(target: str, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    result = onnxq.quantize(
        model,
        target=target,
        preset="w8a8",
        calibration=feeds,
        benchmark=False,
        include=["*"],
        engine_python=python(target),
    )
    assert result.model is not None
    return result.model


def python(target: str) -> str | None:
    return os.environ.get("ONNXQ_OPENVINO_PYTHON") if target == "openvino" else None


def sizes(model: onnx.ModelProto, name: str) -> int:
    node = next(node for node in model.graph.node if node.name == name)
    dq = next(other for other in model.graph.node if node.input[1] in other.output)
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == dq.input[1])).size


def test_a_product_that_is_turned_and_reshaped_has_one_scale_for_its_weight() -> None:
    there, here = written("openvino", *turned()), written("web", *turned())
    assert (sizes(there, "a"), sizes(there, "b")) == (1, 8)
    assert sizes(here, "a") == 24


def test_a_boolean_input_is_handed_on_by_casts() -> None:
    there, here = written("openvino", *masked()), written("web", *masked())
    assert next(node for node in there.graph.node if "same" in node.output).op_type == "Cast"
    assert next(node for node in here.graph.node if "same" in node.output).op_type == "Identity"


@pytest.mark.openvino
@pytest.mark.parametrize("made", [turned, masked], ids=lambda function: function.__name__)
def test_openvino_loads_them(made: object) -> None:
    model, feeds = made()  # type: ignore[operator]
    result = onnxq.quantize(
        model, target="openvino", preset="w8a8", calibration=feeds, benchmark=False, engine_python=python("openvino")
    )
    assert result.engine is not None
    assert result.engine["sqnr_db"] > 25
