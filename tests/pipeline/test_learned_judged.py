"""What blocks have learned is judged as the model will be: by what each output is for, states aside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph.files import io
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.job import Job, open_data
from onnxq.pipeline.learned import reconstructing
from onnxq.recipe.recipe import Recipe
from onnxq.targets import target_named
from tests.graph.build import Array, build, weights

FORM = """g (float[N,8] x, float[N,16] in_state) => (float[N,6] y, float[N,16] out_state) {
    a = MatMul (x, w) b = Add (a, in_state) h = Tanh (b) out_state = Mul (h, blur)
    c = MatMul (h, v) d = Mul (c, sharp) e = Mul (h, factor) f = MatMul (e, u) g = Add (d, f) y = Softmax (g) }"""
CONSTANTS = {"w": weights(8, 16), "v": weights(16, 6), "u": weights(16, 6)} | {
    "factor": np.float32(0),
    "sharp": np.float32(1),
    "blur": np.float32(1),
}


def model(**changed: Array) -> onnx.ModelProto:
    return build(FORM, **CONSTANTS | changed)


def job() -> Job:
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.normal(size=(8, 8)).astype(np.float32), "in_state": rng.normal(size=(8, 16)).astype(np.float32)}
        for _ in range(40)
    ]
    prepared = load_and_prepare(model(), target_named("cpu"), Clock(None))
    return Job(prepared, Recipe(), target_named("cpu"), open_data(feeds, prepared))


def sharper(factor: float) -> onnx.ModelProto:
    """Scores that are surer or less sure: noise, and next to no other decision."""
    return model(sharp=np.float32(factor))


def turned(by: float) -> onnx.ModelProto:
    """Noise that changes decisions."""
    return model(factor=np.float32(by))


@pytest.mark.parametrize(("factor", "where"), [(0.6, "held-out samples"), (0.5, "samples")])
def test_scores_that_change_more_decisions_are_not_taken(factor: float, where: str) -> None:
    plain, learned = io.load(sharper(factor)), io.load(turned(0.6))
    said = reconstructing._worse(job(), plain, learned)
    assert said is not None and f"since {where} lose " in said
    assert reconstructing._worse(job(), learned, learned) is None


def test_a_state_does_not_speak_for_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstructing, "_NOISIER_DB", 100.0)
    blurred, learned = io.load(model(blur=np.float32(3))), io.load(turned(0.6))
    said = reconstructing._worse(job(), blurred, learned)
    assert said is not None and "samples lose 0.0 % of decisions without and" in said, "its scores are what counts"
