"""PRelu as the larger of a value and its product with the slopes, or as a sum of products."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph.files import io
from onnxq.graph.prepare.operators.prelu import write_as_max
from tests.graph.build import build, feeds_for, ops, run, session, weights

SIZE = "float[1, 16, 64, 64]"


def prelu(slopes: Any, size: str = SIZE) -> onnx.ModelProto:
    return build(f"g ({size} x) => ({size} y) {{ [act] y = PRelu (x, s) }}", s=slopes)


def rewritten(proto: onnx.ModelProto, *, exact: bool = True) -> Any:
    model = io.load(proto)
    write_as_max(model)
    content, before = io.to_bytes(model), proto.SerializeToString()
    feeds = feeds_for(session(before))
    for name, array in run(before, feeds).items():
        np.testing.assert_allclose(run(content, feeds)[name], array, rtol=0 if exact else 1e-5)
    assert not write_as_max(model)
    return model


@pytest.mark.parametrize(
    "slopes",
    [weights(16, 1, 1, low=0.0), weights(16, 1, 1), np.array([1.0], np.float32), np.full((1, 1, 1), -3, np.float32)],
)
def test_slopes_up_to_one(slopes: Any) -> None:
    model = rewritten(prelu(slopes))
    assert ops(model) == Counter({"Mul": 1, "Max": 1})
    assert next(node for node in model.graph if node.op_type == "Max").name == "act"


@pytest.mark.parametrize("slopes", [weights(16, 1, 1, low=-2.0) * 4, np.array([1.5], np.float32)])
def test_slopes_above_one(slopes: Any) -> None:
    model = rewritten(prelu(slopes), exact=False)
    assert ops(model) == Counter({"Mul": 2, "Relu": 1, "Add": 1})
    assert next(node for node in model.graph if node.op_type == "Add").name == "act"


def test_an_image_of_unknown_size_counts_as_large() -> None:
    assert ops(rewritten(prelu(weights(16, 1, 1), "float[N, 16, H, W]")))["Max"] == 1


@pytest.mark.parametrize(
    "proto",
    [
        prelu(np.array([9.5], np.float32)),
        prelu(np.array([np.inf], np.float32)),
        prelu(np.array([np.nan], np.float32)),
        prelu(weights(16, 1, 1), "float[1, 16, 8, 8]"),
        prelu(weights(4, 1), "float[N, 4, W]"),
        build(f"g ({SIZE} x, float[16, 1, 1] s) => ({SIZE} y) {{ y = PRelu (x, s) }}"),
    ],
)
def test_others_stay(proto: onnx.ModelProto) -> None:
    model = io.load(proto)
    assert not write_as_max(model)


@pytest.mark.parametrize(("slope", "last"), [(1.0, "Max"), (3.0, "Add")])
def test_slopes_that_two_read_and_in_a_body(slope: float, last: str) -> None:
    text = f"""g ({SIZE} x, bool k) => ({SIZE} y, {SIZE} z) {{
        z = PRelu (x, s)
        y = If (k) <
            then_branch = t () => ({SIZE} p) {{ p = PRelu (x, s) }},
            else_branch = e () => ({SIZE} q) {{ q = Neg (x) }}
        >
    }}"""
    slopes = weights(16, 1, 1) * slope
    assert ops(rewritten(build(text, s=slopes), exact=slope == 1.0))[last] == 2


def test_in_what_is_written() -> None:
    text = f"""g ({SIZE} x) => ({SIZE} y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w) [act] p = PRelu (a, s) y = Conv <pads = [1, 1, 1, 1]> (p, w) }}"""
    given = build(text, w=weights(16, 16, 3, 3), s=weights(16, 1, 1, low=0.0))
    samples = [{"x": weights(1, 16, 64, 64, seed=seed)} for seed in range(3)]
    result = onnxq.quantize(given, calibration=samples, preset="w8a8", benchmark=False)
    assert result.model is not None
    assert not [node for node in result.model.graph.node if node.op_type == "PRelu"]
    assert result.sqnr_db is not None and result.sqnr_db > 30
