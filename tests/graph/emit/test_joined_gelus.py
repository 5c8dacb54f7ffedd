"""A Gelu behind a DQ becomes one operator; elsewhere the runtime joins it itself."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.graph.emit.common import Builder
from onnxq.graph.emit.norms import join_gelus
from onnxq.graph.files import io
from tests.graph.build import Array, build, run, weights

DQ = "q = QuantizeLinear (x, s, z) a = DequantizeLinear (q, s, z)"
ERF = "d = Div (a, root) e = Erf (d) f = Add (e, one) m = Mul (a, f) b = Mul (m, half)"
TANH = (
    "p = Pow (a, three) c = Mul (p, k) t0 = Add (a, c) t1 = Mul (t0, r) t = Tanh (t1) f = Add (t, one) "
    "m = Mul (a, f) b = Mul (m, half)"
)
NUMBERS = {
    "s": 0.03,
    "root": math.sqrt(2),
    "one": 1.0,
    "half": 0.5,
    "three": 3.0,
    "k": 0.044715,
    "r": math.sqrt(2 / math.pi),
}


def constants(body: str) -> dict[str, Array]:
    found = {name: np.array(v, np.float32) for name, v in NUMBERS.items() if f"{name})" in body or f", {name}," in body}
    return found | ({"z": np.array(128, np.uint8)} if ", z)" in body else {})


def joined(body: str, outputs: str = "float[N, 8] y") -> tuple[bytes, bytes, list[str]]:
    proto = build(f"g (float[N, 8] x) => ({outputs}) {{ {body} }}", opset=17, **constants(body))
    model = io.load(proto)
    for node in model.graph:
        for value in node.outputs:
            if value.type is None and node.op_type != "QuantizeLinear":
                value.type = model.graph.inputs[0].type
    join_gelus(Builder(model))
    once = io.to_bytes(model)
    join_gelus(Builder(model))
    assert io.to_bytes(model) == once
    return proto.SerializeToString(), once, [node.op_type for node in model.graph]


@pytest.mark.parametrize(("spelled", "operator"), [(ERF, "Gelu"), (TANH, "FastGelu")])
def test_behind_a_dq(spelled: str, operator: str) -> None:
    before, after, kinds = joined(f"{DQ} {spelled} y = Neg (b)")
    assert kinds == ["QuantizeLinear", "DequantizeLinear", operator, "Neg"]
    feed = {"x": weights(3, 8, low=-3.0, high=3.0)}
    np.testing.assert_allclose(run(after, feed)["y"], run(before, feed)["y"], atol=1e-6)
    ort.InferenceSession(after, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"a = Abs (x) {ERF} y = Neg (b)", "float[N, 8] y"),
        (f"{DQ} {ERF} y = Neg (b)", "float[N, 8] y, float[N, 8] f"),
        (f"{DQ} {ERF.replace('half', 'one')} y = Neg (b)", "float[N, 8] y"),
    ],
)
def test_in_float_shared_or_something_else(body: str, outputs: str) -> None:
    _, _, kinds = joined(body, outputs)
    assert "Erf" in kinds


def test_in_a_body() -> None:
    body = f"{DQ} {ERF.replace('b = Mul', 'p = Mul')}"
    text = f"""g (float[2, 8] x, bool c) => (float[2, 8] y) {{
        y = If (c) <then_branch = t () => (float[2, 8] p) {{ {body} }},
                    else_branch = e () => (float[2, 8] o) {{ o = Neg (x) }}> }}"""
    model = io.load(build(text, opset=17, **constants(body)))
    (branch,) = model.graph
    inside = branch.attributes["then_branch"].as_graph()
    for node in inside:
        if node.op_type == "DequantizeLinear":
            node.outputs[0].type = model.graph.inputs[0].type
    join_gelus(Builder(model))
    assert [node.op_type for node in inside] == ["QuantizeLinear", "DequantizeLinear", "Gelu"]
