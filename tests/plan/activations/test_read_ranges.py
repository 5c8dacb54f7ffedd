"""What the readers of a value tell apart bounds its grid."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.plan.activations.read_ranges import told_apart
from tests.graph.build import build, session, weights

HARD = "alpha = 0.16666667, beta = 0.5"


def bounds(nodes: str, outputs: str = "float[N, 4] y") -> tuple[float, float]:
    model = io.load(build(f"g (float[N, 4] x, bool k) => ({outputs}) {{ a = Abs (x) {nodes} }}"))
    return told_apart(next(value for value in walk.all_values(model.graph) if value.name == "a"))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (f"h = HardSigmoid <{HARD}> (a) y = Mul (a, h)", (-3.0, math.inf)),
        (f"h = HardSigmoid <{HARD}> (a) y = Mul (h, a)", (-3.0, math.inf)),
        ("y = HardSigmoid (a)", (-2.5, 2.5)),
        ("y = Sigmoid (a)", (-8.0, 8.0)),
        ("h = Sigmoid (a) y = Mul (a, h)", (-8.0, math.inf)),
        ("h = Sigmoid (a) t = Tanh (a) y = Mul (t, h)", (-8.0, 8.0)),
    ],
)
def test_level_ends_are_not_told_apart(nodes: str, expected: tuple[float, float]) -> None:
    assert bounds(nodes) == pytest.approx(expected)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Relu (a)",
        "h = HardSigmoid (a) m = Mul (a, h) y = Add (m, a)",
        "h = HardSigmoid (x) y = Mul (a, h)",
        "h = HardSigmoid <beta = 0.0> (a) y = Mul (a, h)",
        "h = HardSigmoid <alpha = -0.2> (a) y = Mul (a, h)",
        """y = If (k) < then_branch = t () => (float[N, 4] p) { p = Sigmoid (a) },
            else_branch = e () => (float[N, 4] q) { q = Neg (x) } >""",
    ],
)
def test_other_readers_need_all(nodes: str) -> None:
    assert bounds(nodes) == (-math.inf, math.inf)


def test_an_output_of_the_model_is_whole() -> None:
    assert bounds("y = Sigmoid (a)", "float[N, 4] y, float[N, 4] a") == (-math.inf, math.inf)


def test_levels_go_where_they_count_and_diagnosis_blames_nothing_on_the_rest() -> None:
    text = f"""g (float[N, 8, 16, 16] x) => (float[N, 8, 16, 16] y) {{
        [layer] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) [gate] h = HardSigmoid <{HARD}> (a) [act] m = Mul (a, h)
        [last] y = Conv (m, w1) }}"""
    given = build(text, w0=10 * weights(8, 8, 3, 3) / 3, b0=np.full(8, -20, np.float32), w1=weights(8, 8, 1, 1, seed=1))
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.normal(size=(1, 8, 16, 16)).astype(np.float32)} for _ in range(8)]
    result = onnxq.quantize(given, calibration=feeds, preset="w8a8", include=["layer"], benchmark=False, force=True)
    assert result.model is not None
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    producers = {name: node for node in result.model.graph.node for name in node.output}
    gate = next(node for node in result.model.graph.node if node.name == "gate")
    grid = producers[gate.input[0]]
    low = -float(np.max(constants[grid.input[1]])) * float(np.max(constants[grid.input[2]]))
    assert -3.2 < low < -2.8
    for feed in feeds:
        expected = session(given.SerializeToString()).run(None, feed)[0]
        assert sqnr_db(expected, session(result.model.SerializeToString()).run(None, feed)[0]) > 30
    found = onnxq.diagnose(given, result.model, calibration=feeds)
    finding = next(finding for finding in found.findings if finding.node == "layer")
    assert finding.own_sqnr_db > 30 and finding.clipped < 0.01
