"""A lint for the target that a model was written for finds nothing, whatever preset the target takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.data.feeds import Feed
from onnxq.errors import MissingExtraError, TargetError
from onnxq.recipe.presets import PRESETS
from onnxq.targets import SLOW_16, TARGETS
from tests.graph.build import build, weights

RNG = np.random.default_rng(3)
TEXT = """g (float[n, 4, 6, 6] x) => (float[n, 8] y, float[n, 8, 32] z) {
    [a] c = Conv <pads = [1, 1, 1, 1]> (x, w, b) [r] d = Relu (c) [s] e = Conv (d, v) [j] f = Add (e, d)
    [p] h = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (f) [q] i = GlobalAveragePool (h) [k] l = Flatten (i)
    [g] y = Gemm <transB = 1> (l, u, t)
    [m] o = Reshape (f, shape) [n] s0 = MatMul (o, m0) [u] s1 = Add (s0, m1) [x] s2 = Relu (s1)
    [z] z = MatMul (s2, m2) }"""
MODELS = ("digits_mlp", "digits_resnet", "digits_dsconv", "text_lstm", "text_encoder", "tiny_lm")
SAMPLES = 6

PAIRS = [
    (name, preset)
    for name, target in TARGETS.items()
    for preset in (target.presets or [preset for preset in PRESETS if preset != "auto"])
]
"""What a target names, or else everything: what it refuses has to be refused in so many words."""

SEEN = [
    (name, preset)
    for name, preset in PAIRS
    if TARGETS[name].presets
    or PRESETS[preset].weights == "integer"
    or (name == "cpu" and preset not in ("lut4", "lut8"))
]
"""Weights alone are written for other targets as for cpu; k-means takes long."""


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return build(
        TEXT, w=weights(8, 4, 3, 3) / 6, b=weights(8) / 6, v=weights(8, 8, 1, 1, seed=1) / 3, u=weights(8, 8),
        t=weights(8, seed=2), shape=np.array([-1, 8, 36]), m0=weights(36, 128) / 6, m1=weights(128) / 6,
        m2=weights(128, 32, seed=3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    return [{"x": RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(SAMPLES)]


def findings(model: onnx.ModelProto, feeds: list[Feed], target: str, preset: str) -> list[str]:
    """What is found in the model that is written; it is skipped where the target says first that it does not run it."""
    sizes = [
        f"{value.name}:{axis}={feeds[0][value.name].shape[axis]}"
        for value in model.graph.input
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if TARGETS[target].fixed_shapes and not dim.dim_value
    ]
    try:
        result = onnxq.quantize(
            model,
            target=target,
            preset=preset,
            calibration=feeds,
            fix_dims=sizes,
            benchmark=False,
            threads=1,
            force=True,
        )
    except MissingExtraError as error:
        pytest.skip(str(error))
    except TargetError as error:
        assert "16 bits" in str(error) or "no float8 kernels" in str(error)
        return []
    assert not any("cannot load" in line for line in result.warnings)
    found = onnxq.lint(result.model, target=target).findings
    if preset in ("w8a16", "w4a16") and TARGETS[target].is_here:  # it was asked for, and both say what it costs
        assert any(SLOW_16 in line for line in result.warnings)
        slow = [finding for finding in found if finding.rule == "activation-type"]
        assert slow
        assert all(SLOW_16 in finding.why and not finding.refuses for finding in slow)
        found = [finding for finding in found if finding not in slow]
    return [str(finding) for finding in found]


@pytest.mark.parametrize(("target", "preset"), SEEN)
def test_nothing_is_found_in_what_is_written(target: str, preset: str, net: onnx.ModelProto, feeds: list[Feed]) -> None:
    assert findings(net, feeds, target, preset) == []


@pytest.mark.large
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found_in_a_trained_model_that_is_written(target: str, name: str, root: Path) -> None:
    model = onnx.load(root / "models" / f"{name}.onnx")
    with np.load(root / "calibration_data" / f"{name}.npz") as data:
        inputs = [value.name for value in model.graph.input]
        feeds = [{key: data[key][i : i + 1] for key in inputs} for i in range(SAMPLES)]
    for preset in [preset for named, preset in PAIRS if named == target and preset != "w8a8-learned"]:
        assert findings(model, feeds, target, preset) == [], preset
