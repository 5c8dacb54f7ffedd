"""A model that ONNX Runtime refuses is built again with the nodes float that are to blame."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import VerificationError
from onnxq.graph.emit import qdq, qoperator
from onnxq.pipeline import rescue
from tests.graph.build import build, weights

SAMPLES = [{"x": weights(1, 32, 10, 10, seed=seed)} for seed in range(6)]


def broken(mode: str = "linear") -> onnx.ModelProto:
    """A Resize with axes, past which the runtime moves Transposes of integer convolutions, which breaks it."""
    text = f"""g (float[1, 32, 10, 10] x) => (float[?, ?, ?, ?] y) {{
        [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1) [size] b = Resize <axes = [2, 3], mode = "{mode}"> (a, , by)
        [two] c = Conv <pads = [1, 1, 1, 1]> (b, w2) [three] d = Conv <pads = [1, 1, 1, 1]> (c, w3)
        [four] y = Conv (d, w4)
    }}"""
    kernels = {f"w{i}": weights(32, 32, 3, 3, seed=i) for i in (1, 2, 3)}
    return build(text, opset=18, by=np.array([2, 2], np.float32), w4=weights(32, 32, 1, 1, seed=4), **kernels)


@pytest.fixture(autouse=True)
def without_the_form_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for emitter in (qdq, qoperator):
        monkeypatch.setattr(emitter, "hold_layout", lambda builder: None)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_the_others_stay_on_integers(form: str, mode: str) -> None:
    result = onnxq.quantize(broken(mode), calibration=SAMPLES, preset="w8a8", format=form, benchmark=False)
    refused = [name for name, _, reason in result.kept_float if reason.startswith("onnxruntime refuses")]
    assert 1 <= len(refused) <= 2
    assert result.coverage["Conv"]["quantized"] >= 2
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25


def test_auto_has_the_candidate_too() -> None:
    result = onnxq.quantize(broken(), calibration=SAMPLES, budget=10.0, benchmark=False)
    assert not any("does not run" in candidate["verdict"] for candidate in result.candidates)


def test_the_search_within_limits_has_its_models_rescued_too() -> None:
    options = {"calibration": SAMPLES, "preset": "w8a8", "benchmark": False}
    first = onnxq.quantize(broken(), **options)
    assert first.sqnr_db is not None
    result = onnxq.quantize(broken(), min_sqnr=first.sqnr_db + 1.0, budget=30.0, **options)
    assert result.sqnr_db is not None
    assert result.sqnr_db >= first.sqnr_db + 1.0
    assert len(result.trail) > 1
    assert not any("quantized model" in step["verdict"] for step in result.trail)
    refused = [name for name, _, reason in result.kept_float if reason.startswith("onnxruntime refuses")]
    assert refused


def test_a_message_without_names_is_answered_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue, "_suspects", lambda *_: [])
    result = onnxq.quantize(broken(), calibration=SAMPLES, preset="w8a8", benchmark=False)
    refused = [name for name, _, reason in result.kept_float if reason.startswith("onnxruntime refuses")]
    assert refused
    assert result.coverage["Conv"]["quantized"] >= 1


def test_attempts_are_bounded_and_then_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []

    def none(self: object) -> None:
        built.append(self)

    monkeypatch.setattr(rescue._Attempts, "_built", none)
    with pytest.raises(VerificationError, match="nothing was written: quantized model at ORT_ENABLE_ALL"):
        onnxq.quantize(broken(), calibration=SAMPLES, preset="w8a8", benchmark=False)
    assert 1 <= len(built) <= rescue.MOST_BUILDS
