"""Learned rounding on whole models: fewer bits cost less, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import RecipeError
from onnxq.recipe.recipe import Recipe
from onnxq.targets import TARGETS
from tests.graph.build import build, run, weights

TEXT = """g (float[N,3,8,8] x) => (float[N,6] y) {
    [c1] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r1] b = Relu (a)
    [dw] c = Conv <group = 12, pads = [1,1,1,1], strides = [2,2]> (b, w2, b2) [r2] d = Relu (c)
    [pw] e = Conv (d, w3, b3) [r3] f = Relu (e)
    [p] g1 = GlobalAveragePool (f) [fl] h = Flatten (g1) [fc] y = Gemm (h, w4, b4)
}"""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose weights have 4 bits, so that how they are rounded counts."""
    monkeypatch.setitem(TARGETS, "narrow", replace(TARGETS["cpu"], name="narrow", weight_bits=4))


def model() -> onnx.ModelProto:
    return build(
        TEXT, w1=weights(12, 3, 3, 3), b1=weights(12), w2=weights(12, 1, 3, 3), b2=weights(12),
        w3=weights(16, 12, 1, 1), b3=weights(16), w4=weights(16, 6), b4=weights(6),
    )  # fmt: skip


def feeds(count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    mixed = rng.normal(0, 1, (count, 2, 3, 8, 8)) @ (rng.normal(0, 0.3, (8, 8)) + np.eye(8))
    return [{"x": array.astype(np.float32)} for array in mixed]


def ratio(quantized: onnx.ModelProto | None, samples: list[dict[str, np.ndarray]]) -> float:
    assert quantized is not None
    pairs = [
        (run(model().SerializeToString(), feed)["y"], run(quantized.SerializeToString(), feed)["y"]) for feed in samples
    ]
    return sqnr_db(np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]))


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_four_bits_cost_less(form: str, per_channel: bool) -> None:
    samples = feeds()
    results = {}
    for learned in (False, True):
        recipe = Recipe(
            preset="w8a8", target="narrow", per_channel=per_channel, format=form, adaround=learned, include=("*",)
        )
        results[learned] = onnxq.quantize(
            model(), calibration=samples, recipe=recipe, threads=1, benchmark=False, force=True
        )
    assert results[True].coverage == results[False].coverage
    assert ratio(results[True].model, samples) > ratio(results[False].model, samples) + 3.0
    inside = {t.name: onnx.numpy_helper.to_array(t) for t in results[True].model.graph.initializer}
    integers = [a for a in inside.values() if a.dtype == np.int8 and a.ndim > 1]
    assert len(integers) == 4 and all(np.abs(array.astype(int)).max() <= 7 for array in integers)


def test_the_same_twice() -> None:
    recipe = Recipe(preset="w8a8", target="narrow", adaround=True, include=("*",))
    first, second = (
        onnxq.quantize(model(), calibration=feeds(6), recipe=recipe, threads=1, benchmark=False, force=True).model
        for _ in range(2)
    )
    assert first == second


def test_weights_in_front_of_16_bit_values_learn() -> None:
    """What a layer reads is on a grid that needs the runtime's own operators at this opset."""
    every = [
        onnxq.quantize(model(), calibration=feeds(), preset="w4a16", include=["*"], adaround=learns, benchmark=False)
        for learns in (False, True)
    ]
    plain, learned = (ratio(result.model, feeds()) for result in every)
    assert learned > plain + 1.0


def test_samples_are_needed(tmp_path: Path, digits: Path) -> None:
    statistics = onnxq.calibrate(digits, tmp_path / "s.npz", threads=1).statistics
    loaded = onnx.load(digits)
    with pytest.raises(RecipeError, match="--adaround: needs samples to learn from"):
        onnxq.quantize(loaded, statistics=statistics, recipe=Recipe(preset="w8a8", adaround=True), benchmark=False)
