"""A Concat of values of very different size stays float where arithmetic behind it evens them out, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.plan.activations.joint_grids import joint_values
from tests.graph.build import build, run, weights
from tests.plan.planning import plan_of

EVEN = "[mul] e = Mul (c, gain) [add] f = Add (e, shift) [last] y = Gemm (f, w2)"
SIZES = "[a] a = Gemm (x, w0) [b] b = Gemm (x, w1) [join] c = Concat <axis = 1> (a, b)"


def model(ratio: float, behind: str = EVEN) -> onnx.ModelProto:
    constants = {
        "w0": weights(32, 32),
        "w1": weights(32, 32, seed=1) * np.float32(ratio),
        "w2": weights(64, 32, seed=2),
    }
    if "gain" in behind:
        gain = np.repeat(np.array([1.0, 1.0 / ratio], np.float32), 32)
        constants |= {"gain": gain, "shift": weights(64, seed=3)}
    return build(f"g (float[N, 32] x) => (float[N, 32] y) {{ {SIZES} {behind} }}", **constants)


def feeds(count: int = 20) -> list[dict[str, np.ndarray]]:
    return [{"x": weights(1, 32, seed=i)} for i in range(count)]


def kept(proto: onnx.ModelProto) -> dict[str, str]:
    planned = plan_of(proto, feeds=feeds(), include=("join",))
    statistics = planned.statistics()
    return joint_values(planned.model, planned.plan, statistics)


@pytest.mark.parametrize(("ratio", "found"), [(1.0, False), (5.0, False), (300.0, True), (0.003, True)])
def test_sizes(ratio: float, found: bool) -> None:
    said = kept(model(ratio))
    assert set(said) == ({"c"} if found else set())
    if found:
        assert ("'a' has" if ratio > 1 else "'b' has") in said["c"]


@pytest.mark.parametrize("behind", ["[last] y = Gemm (c, w2)", "[same] d = Flatten (c) [last] y = Gemm (d, w2)"])
def test_a_layer_right_behind_reads_one_grid_anyway(behind: str) -> None:
    assert not kept(model(300.0, behind))


def test_the_result_keeps_what_the_small_half_says() -> None:
    proto = model(1000.0)
    result = onnxq.quantize(proto, calibration=feeds(), preset="w8a8", threads=1, benchmark=False, force=True)
    assert result.model is not None and result.sqnr_db is not None
    assert result.sqnr_db > 20
    assert any("very different size" in str(entry) for entry in result.to_dict()["kept_float"])
    feed = feeds()[0]
    assert run(result.model.SerializeToString(), feed)["y"].shape == (1, 32)
