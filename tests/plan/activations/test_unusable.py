"""Values whose statistics show, after calibration, that their nodes have to stay float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.plan.activations.unusable import unusable_values
from onnxq.stats.statistics import Statistics
from tests.graph.build import build, weights
from tests.plan.planning import plan_of

SIZE = 32
ATTENTION = """g (float[N,16,32] x, float[N,16,16] m) => (float[N,16,32] y) {{
    [q] q = MatMul (x, wq) [k] k = MatMul (x, wk) [t] kt = Transpose <perm = [0,2,1]> (k) [s] s = MatMul (q, kt)
    {mask} [p] p = Softmax (a) [o] o = MatMul (p, x) [y] y = MatMul (o, wo) }}"""
CAUSAL = np.tril(np.ones((16, 16), np.float32))


def attention(mask: str, **constants: np.ndarray) -> onnx.ModelProto:
    matrices = {name: weights(SIZE, SIZE, seed=i) / 3 for i, name in enumerate(("wq", "wk", "wo"))}
    return build(ATTENTION.format(mask=mask), **matrices, **constants)


def feeds(fill: float) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    mask = np.where(CAUSAL == 1, 0, fill).astype(np.float32)[None]
    return [{"x": generator.normal(size=(1, 16, SIZE)).astype(np.float32), "m": mask} for _ in range(12)]


MASKS = {
    "constant": ("[mask] a = Add (s, c)", {"c": np.where(CAUSAL == 1, 0, -1e4).astype(np.float32)}),
    "lowest": ("[mask] a = Where (c, s, low)", {"c": CAUSAL == 1, "low": np.finfo(np.float32).min}),
    "infinite": ("[mask] a = Where (c, s, low)", {"c": CAUSAL == 1, "low": np.float32(-np.inf)}),
    "computed": ("[mask] a = Add (s, m)", {}),
    "behind a reshape": ("[mask] b = Add (s, m) [r] a = Reshape (b, c)", {"c": np.array([-1, 16, 16], np.int64)}),
}


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("case", MASKS)
def test_masked_attention_keeps_its_accuracy(case: str, form: str) -> None:
    text, constants = MASKS[case]
    model = attention(text, **{name: np.asarray(array) for name, array in constants.items()})
    result = onnxq.quantize(
        model, calibration=feeds(-1e4), preset="w8a8", include=["*"], format=form, benchmark=False, threads=1
    )
    actions = {name: plan.action for name, plan in result.plan.nodes.items()}
    assert actions["p"] == "float"
    # What is left has ranges all the same, those too that were not wanted at first.
    assert actions["s"] == actions["o"] == actions["y"] == "integer"
    assert result.sqnr_db is not None and result.sqnr_db > 25


def test_attention_without_a_mask_stays_on_integers() -> None:
    result = onnxq.quantize(
        attention("[mask] a = Add (s, m)"), calibration=feeds(-10), preset="w8a8", include=["*"], benchmark=False
    )
    assert {plan.action for plan in result.plan.nodes.values()} == {"integer"}
    assert result.sqnr_db is not None and result.sqnr_db > 25


def test_reasons() -> None:
    planned = plan_of(attention("[mask] a = Add (s, m)"), include=("*",), feeds=feeds(-1e4))

    def found(**arrays: list[float]) -> dict[str, str]:
        statistics = Statistics()
        for name in planned.plan.calibrated:
            statistics.update(name, np.array(arrays.get(name, [-1.0, 1.0]), np.float32))
        return unusable_values(planned.model, planned.plan, statistics)

    assert found() == {}
    assert found(s=[0.0, 0.0]) == {"s": "was zero in all of calibration"}
    assert found(s=[np.nan]) == {"s": "had no finite number in calibration"}
    assert found(s=[-1e4, 1.0]) == {}
    assert found(a=[-1e4, 1.0]) == {"a": "reaches from -1e+04 to 1: 8 bits are too few for its probabilities"}
    assert found(a=[-np.inf, 1.0]) == {"a": "is masked with infinities, which no integer stands for"}


def test_a_branch_that_was_zero_in_calibration_stays_float() -> None:
    text = """g (float[N,8,6,6] x) => (float[N,8,6,6] y) {
        [c] a = Conv (x, w, low) [r] b = Clip (a, zero, six) [d] d = Conv (b, w, p) [j] y = Add (d, x) }"""
    proto = build(
        text,
        p=weights(8),
        w=weights(8, 8, 1, 1),
        low=np.full(8, -99, np.float32),
        zero=np.float32(0),
        six=np.float32(6),
    )
    generator = np.random.default_rng(0)
    samples = [{"x": generator.normal(size=(2, 8, 6, 6)).astype(np.float32)} for _ in range(6)]
    result = onnxq.quantize(proto, calibration=samples, preset="w8a8", include=["*"], benchmark=False)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert kept["c"] == kept["d"] == "value 'b' was zero in all of calibration"
    assert kept["r"] == "the layer before it stays float"
