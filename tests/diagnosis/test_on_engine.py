"""What a quantized model's nodes do as an engine computes them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import EngineError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.views.apart.isolate import isolate
from onnxq.runtime.engines.places import RunsOn
from onnxq.verify.lint.findings import dequantizer
from tests.graph.build import build, weights

RNG = np.random.default_rng(3)
FEEDS = [{"x": RNG.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(6)]
NET = """g (float[1, 8, 8, 8] x) => (float[1, 4, 8, 8] y) {
    [a] c = Conv (x, w, b) [r] d = Relu (c) [s] e = Conv (d, v) [j] h = Add (e, d) [t] y = Conv (h, u) }"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    before, after = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    model = build(NET, w=weights(8, 8, 1, 1), b=weights(8), v=weights(8, 8, 1, 1, seed=1), u=weights(4, 8, 1, 1))
    onnx.save(model, before)
    onnxq.quantize(before, after, target="qnn", preset="w8a8", calibration=FEEDS, benchmark=False)
    return before, after


def test_nodes_on_a_device_are_those_here_with_their_inputs_rounded(pair: tuple[Path, Path]) -> None:
    here = onnxq.diagnose(*pair, data=FEEDS)
    there = onnxq.diagnose(*pair, data=FEEDS, runs_on=RunsOn(device="bash -c", python=sys.executable))
    assert {f.node for f in here.findings} == {f.node for f in there.findings}
    assert there.diagnosis.outputs["y"] == pytest.approx(here.diagnosis.outputs["y"], abs=1.0)
    own = {finding.node: finding.own_sqnr_db for finding in here.findings}
    for finding in there.findings:  # an Add reads two rounded values, each with as much noise as its own output
        assert own[finding.node] - 8 < finding.own_sqnr_db < own[finding.node] + 1


def test_what_an_engine_is_given_is_on_integers_and_has_shapes(pair: tuple[Path, Path]) -> None:
    before, after = (io.load(path) for path in pair)
    real = {"x": True, "c": True, "d": True, "e": True, "h": True, "y": True}
    shapes = {"x": (1, 8, 8, 8), "d": (1, 8, 8, 8), "e": (1, 8, 8, 8), "h": (1, 8, 8, 8), "y": (1, 4, 8, 8)}
    found = isolate(before, after, real, shapes=shapes)
    layers = [node for node in found.model.graph if node.op_type in ("Conv", "Add")]
    assert len(layers) == 4
    for node in layers:
        assert all(dequantizer(value) is not None for value in node.inputs[:2])
    assert {walk.dims(value) for value in found.model.graph.inputs} == {(1, 8, 8, 8)}


def test_an_engine_that_is_not_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "better.yaml"
    with pytest.raises(EngineError, match="cannot be started"):
        onnxq.diagnose(*pair, data=FEEDS, recipe_out=out, runs_on=RunsOn(device="/nonexistent/ssh pi"))
    assert not out.exists()


@pytest.mark.qnn
def test_nodes_on_the_simulator(pair: tuple[Path, Path]) -> None:
    there = onnxq.diagnose(*pair, data=FEEDS, runs_on=RunsOn(provider="QNN"))
    assert all(finding.own_sqnr_db > 20 for finding in there.findings)
