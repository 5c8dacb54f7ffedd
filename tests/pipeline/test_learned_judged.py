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
    c = MatMul (h, v) d = Add (c, shift) e = Mul (h, factor) f = MatMul (e, u) y = Add (d, f) }"""
CONSTANTS = {"w": weights(8, 16), "v": weights(16, 6), "shift": np.zeros(6, np.float32), "u": weights(16, 6)} | {
    "factor": np.float32(0),
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


SHIFTED = {"shift": np.full(6, 1.5, np.float32)}
"""All scores of classes by the same number: much noise, and not one decision."""

TURNED = {"factor": np.float32(0.05)}
"""Little noise, which changes decisions."""


def test_scores_with_less_noise_that_change_more_decisions_are_not_taken() -> None:
    plain, turned = (io.load(model(**changed)) for changed in (SHIFTED, TURNED))
    said = reconstructing._worse(job(), plain, turned)
    assert said is not None and "held-out samples lose 0.0 % of decisions without and" in said
    assert reconstructing._worse(job(), plain, plain) is None


def test_a_state_does_not_speak_for_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstructing, "_NOISIER_DB", 100.0)
    blurred, turned = io.load(model(blur=np.float32(3))), io.load(model(factor=np.float32(0.05)))
    said = reconstructing._worse(job(), blurred, turned)
    assert said is not None and "samples lose 0.0 % of decisions without and" in said, "its scores are what counts"
