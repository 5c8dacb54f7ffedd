import numpy as np
import pytest

from onnxq.graph.emit.norms import keep_apart
from onnxq.graph.files import io
from tests.graph.build import build, session, weights

NORM = "y = LayerNormalization <axis = -1> (s, gain)"
CHAIN = (
    "m = ReduceMean <axes = [-1]> (s) d = Sub (s, m) p = Pow (d, two) v = ReduceMean <axes = [-1]> (p) "
    "a = Add (v, eps) r = Sqrt (a) n = Div (d, r) y = Mul (n, gain)"
)
RMS = "p = Pow (s, two) v = ReduceMean <axes = [-1]> (p) a = Add (v, eps) r = Sqrt (a) n = Div (s, r) y = Mul (n, gain)"


def graph(norm: str, add: str = "s = Add (x, h)") -> str:
    return f"g (float[2, 3, 8] x) => (float[2, 3, 8] y) {{ h = Relu (x) {add} {norm} }}"


def constants(text: str) -> dict[str, np.ndarray]:
    known = {"gain": weights(8), "two": np.float32(2), "eps": np.float32(1e-5), "bias": weights(8)}
    return {name: np.asarray(array) for name, array in known.items() if name in text}


@pytest.mark.parametrize("norm", [NORM, CHAIN, RMS], ids=["operator", "chain", "RMSNorm"])
def test_the_sum_before_a_norm_keeps_its_bits(norm: str) -> None:
    text = graph(norm)
    proto = build(text, opset=17, **constants(text))
    model = io.load(proto)
    model.graph[1].outputs[0].type = model.graph.inputs[0].type
    assert keep_apart(model) == 1
    assert [node.op_type for node in model.graph][1] == "Sum"
    assert keep_apart(model) == 0
    x = weights(2, 3, 8, seed=3)
    before, after = (
        session(content).run(None, {"x": x})[0] for content in (proto.SerializeToString(), io.to_bytes(model))
    )
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("add", ["s = Add (x, bias)", "s = Mul (x, h)"])
def test_other_nodes_stay_as_they_are(add: str) -> None:
    text = graph(NORM, add)
    model = io.load(build(text, opset=17, **constants(text)))
    model.graph[1].outputs[0].type = model.graph.inputs[0].type
    assert keep_apart(model) == 0
