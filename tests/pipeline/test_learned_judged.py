"""What blocks have learned is judged as the model will be: by what each output is for, states aside."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from onnxq.graph.files import io
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.job import Job, open_data
from onnxq.pipeline.learned import whole_models
from onnxq.pipeline.learned.whole_models import Measured, measured, nearest, taken, why_worse
from onnxq.recipe.recipe import Recipe
from onnxq.targets import target_named
from onnxq.verify.compare import Comparison
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
    said = why_worse(*measured(job(), [plain, learned], math.inf))
    assert said.startswith(f"{where} lose ")
    assert why_worse(*measured(job(), [learned, learned], math.inf)) == ""


def test_a_state_does_not_speak_for_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_models, "_NOISIER_DB", 100.0)
    blurred, learned = io.load(model(blur=np.float32(3))), io.load(turned(0.6))
    said = why_worse(*measured(job(), [blurred, learned], math.inf))
    assert "samples lose 0.0 % of decisions without and" in said, "its scores are what counts"


def found(sqnr_db: float, loss: float) -> Comparison:
    return Comparison({}, 8, sqnr_db, None, None, loss=loss)


def test_of_two_that_learned_the_one_is_taken_that_has_less_noise_on_samples_held_out() -> None:
    plain, other = Measured(found(18, 0.11), found(20, 0.08)), Measured(found(25, 0.13), found(22, 0.05))
    one, two = Measured(found(25, 0.06), found(22, 0.02)), Measured(found(27, 0.10), found(23, 0.01))
    assert taken([plain, other, two, one], [None, None, 1, 0]) == (2, "")
    assert taken([plain, other, one, two], [None, None, 1, 0]) == (3, "")
    near = Measured(found(27.5, 0.10), found(23, 0.01))
    assert taken([plain, other, two, near], [None, None, 1, 0]) == (2, ""), "half a decibel is chance"
    worse = Measured(found(10, 0.05), found(10, 0.02))
    assert taken([plain, other, two, worse], [None, None, 1, 0]) == (2, "")
    best, reason = taken([plain, other, worse], [None, None, 1])
    assert best == 1 and reason.startswith("held-out samples have an SQNR of 25.0 dB without")


def test_a_start_that_is_better_than_what_was_learned_from_another_one_is_taken() -> None:
    plain, other = Measured(found(30, 0.01), found(30, 0.01)), Measured(found(18, 0.11), found(20, 0.08))
    learned = Measured(found(25, 0.06), found(22, 0.02))
    best, reason = taken([plain, other, learned], [None, None, 1])
    assert best == 0 and "held-out samples have an SQNR of 30.0 dB without" in reason
    assert taken([plain, other], [None, None]) == (0, "no block came nearer to float")


def test_where_samples_held_out_and_all_of_them_say_opposite_things_what_was_learned_stays() -> None:
    plain, other = Measured(found(30.9, 0.0028), found(31, 0.0046)), Measured(found(31.3, 0.0031), found(31, 0.0044))
    assert taken([plain, other, other], [None, None, 1]) == (2, "")


def test_blocks_learn_from_what_held_out_samples_find_nearest_and_from_both_where_they_do_not_tell() -> None:
    assert nearest([found(18, 0.1), found(26, 0.1)]) == [1]
    assert nearest([found(26, 0.1), found(18, 0.0)]) == [0]
    assert nearest([found(26, 0.1), found(25.5, 0.1)]) == nearest([found(25.5, 0.1), found(26, 0.1)]) == [1, 0]
