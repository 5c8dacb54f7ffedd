"""ZeroQuant's layer-by-layer distillation on layers that quantize their input at inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.targets import TARGETS
from tests.correlated_models import network, samples
from tests.graph.build import build, run, weights


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose weights have 4 bits, so that how they are rounded counts."""
    monkeypatch.setitem(TARGETS, "narrow", replace(TARGETS["cpu"], name="narrow", weight_bits=4))


def integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim == 2}


def quantized(model: onnx.ModelProto, preset: str, feeds, **options):
    options = {"include": ["*"], "target": "narrow", **options}
    result = onnxq.quantize(model, calibration=feeds, preset=preset, benchmark=False, threads=1, force=True, **options)
    assert result.model is not None
    return result.model


def error(model: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    total = 0.0
    for feed in samples(6, seed=11):
        want, got = (run(proto.SerializeToString(), feed)["y"].astype(np.float64) for proto in (model, quantized))
        total += float(((got - want) ** 2).sum() / (want**2).sum())
    return total


@pytest.mark.parametrize(
    ("plain", "options"),
    [
        ("w8a8-token", {}),
        ("w8a8-token", {"block_size": 32}),
        ("w8a8-dynamic", {}),
        ("w8a8-token", {"per_channel": False}),
    ],
)
def test_learned_roundings_are_closer_to_the_float_model(plain: str, options) -> None:
    model, feeds = network(), samples(24)
    nearest = quantized(model, plain, feeds, **options)
    learned = quantized(model, plain, feeds, adaround=True, **options)
    changed = integers(learned)
    assert {name: array.shape for name, array in integers(nearest).items()} == {
        name: array.shape for name, array in changed.items()
    }
    for name, array in integers(nearest).items():
        assert np.abs(array.astype(int) - changed[name]).max() <= 1  # up or down, on the same scales
    assert error(model, learned) < 0.8 * error(model, nearest)


def test_the_preset_distils() -> None:
    model, feeds = network(), samples(24)
    assert PRESETS["zeroquant"].distill
    assert Recipe(preset="zeroquant").learns
    learned, same = (quantized(model, "zeroquant", feeds), quantized(model, "w8a8-token", feeds, adaround=True))
    for name, array in integers(learned).items():
        np.testing.assert_array_equal(array, integers(same)[name])


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_layers_that_are_split(transposed: int) -> None:
    weight = weights(64, 96)
    model = build(
        f"g (float[N, 64] x) => (float[N, 96] y) {{ [fc] y = Gemm <transB = {transposed}> (x, w, b) }}",
        w=np.ascontiguousarray(weight.T) if transposed else weight,
        b=weights(96),
    )
    feeds = [{"x": feed["x"][0].clip(-5, 5)} for feed in samples(24)]
    for feed in feeds:
        feed["x"][:, 7] *= 20
    errors = []
    for learn in (None, True):
        result = quantized(model, "llm-int8", feeds[:20], adaround=learn)
        errors.append(
            sum(
                np.square(run(result.SerializeToString(), feed)["y"] - run(model.SerializeToString(), feed)["y"]).sum()
                for feed in feeds[20:]
            )
        )
    assert errors[1] < 0.8 * errors[0]
