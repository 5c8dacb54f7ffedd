"""Long rows of nodes in front of a layer, which fill no stack."""

from __future__ import annotations

import numpy as np
import pytest

import onnxq
from tests.graph.build import build

COUNT = 700


@pytest.mark.parametrize("op", ["Relu (v)", "Transpose <perm = [1, 0]> (v)"])
def test_a_long_row_of_nodes_is_smoothed_past_or_left_alone(op: str) -> None:
    rng = np.random.default_rng(0)
    lines = [
        "v = MatMul (x, w0)",
        *[f"v{i} = {op.replace('(v)', f'(v{i - 1})' if i else '(v)')}" for i in range(COUNT)],
    ]
    lines.append(f"y = MatMul (v{COUNT - 1}, w1)")
    arrays = {name: rng.normal(size=(16, 16)).astype(np.float32) for name in ("w0", "w1")}
    model = build(f"g (float[16,16] x) => (float[16,16] y) {{ {' '.join(lines)} }}", **arrays)
    samples = [{"x": rng.normal(size=(16, 16)).astype(np.float32)} for _ in range(4)]
    result = onnxq.quantize(model, calibration=samples, preset="w8a8-smooth", force=True, benchmark=False)
    assert result.sqnr_db is not None and result.sqnr_db > 20.0
