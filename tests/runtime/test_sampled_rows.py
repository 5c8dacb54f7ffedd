"""Rows of inputs alone, and of inner values."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.readers import open_reader
from onnxq.graph.files import io
from onnxq.runtime.sampled_rows import sample_rows
from onnxq.runtime.session import session_of
from tests.graph.build import build, weights


@pytest.mark.parametrize("values", [["x"], ["h"], ["x", "h"]])
def test_rows_of_inputs_and_of_inner_values(values: list[str]) -> None:
    model = io.load(build("g (float[N, 6] x) => (float[N, 4] y) { h = Relu (x) y = MatMul (h, w) }", w=weights(6, 4)))
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.normal(0, 1, (3, 6)).astype(np.float32)} for _ in range(5)]
    reader = open_reader(feeds, session_of(model).input_specs)
    found = sample_rows(model, values, reader, rows=100, threads=1)
    rows = np.concatenate([feed["x"] for feed in feeds])
    assert set(found) == set(values)
    for name in values:
        np.testing.assert_array_equal(found[name], rows if name == "x" else np.maximum(rows, 0))
