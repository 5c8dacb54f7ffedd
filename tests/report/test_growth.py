"""What is said of a file that grew is what made it grow."""

from __future__ import annotations

import numpy as np

from onnxq.graph.files import io
from onnxq.report.growth import constant_bytes, larger
from tests.graph.build import build, weights

BODY = "t () => (float[2, 4] p) { p = Mul (x, k) }"
TEXT = f"g (float[2, 4] x, bool c) => (float[2, 4] y) {{ y = If (c) <then_branch = {BODY}, else_branch = {BODY}> }}"


def model(elements: int) -> object:
    return io.load(build("g (float[N, 8] x) => (float[N, ?] y) { y = MatMul (x, w) }", w=weights(8, elements)))


def test_conversions() -> None:
    said = larger(1000, 1300, model(16), model(8))
    assert said == (
        "larger than float: 1300 bytes against 1000; constants became 256 bytes smaller, and the nodes and names of "
        "conversions take 556"
    )


def test_constants() -> None:
    said = larger(1000, 1300, model(8), model(16))
    assert said == "larger than float: 1300 bytes against 1000; constants take 512 bytes for 256, scales among them"


def test_weights_that_the_float_model_computes() -> None:
    said = larger(200, 300, model(16), model(8))
    assert said.startswith("larger than float: 300 bytes against 200; the float model computes weights of 512 bytes ")
    assert said.endswith("here they are stored, in 256 bytes")


def test_constants_of_bodies_count() -> None:
    loaded = io.load(build(TEXT, k=np.ones(4, np.float32)))
    before = constant_bytes(loaded)
    assert before == 16
