import numpy as np

from onnxq.graph.files import io
from onnxq.graph.prepare.operators import gelu
from tests.graph.build import build, session, weights

BODY = "d = Div (x, root) e = Erf (d) a = Add (e, one) {last}"
CONSTANTS = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}


def model(last: str, outputs: str = "float[2, 8] y"):
    text = f"g (float[2, 8] x) => ({outputs}) {{ {BODY.format(last=last)} }}"
    return build(text, **{name: np.asarray(array) for name, array in CONSTANTS.items()})


def test_the_half_goes_last_and_the_result_keeps_its_bits() -> None:
    proto = model("m = Mul (half, a) y = Mul (x, m)")
    changed = io.load(proto)
    assert gelu.run(changed) == 1
    last = changed.graph[-1]
    assert last.inputs[1].name == "half" and changed.graph[-2].inputs[0].name == "x"
    assert gelu.run(changed) == 0
    x = weights(2, 8, low=-4, high=4)
    before, after = (session(c).run(None, {"x": x})[0] for c in (proto.SerializeToString(), io.to_bytes(changed)))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)


def test_other_orders_and_shared_products_stay() -> None:
    for last in ("m = Mul (x, a) y = Mul (m, half)", "m = Mul (x, half) y = Mul (m, a)"):
        assert gelu.run(io.load(model(last))) == 0
    shared = io.load(model("m = Mul (half, a) y = Mul (x, m)", "float[2, 8] y, float[2, 8] m"))
    assert gelu.run(shared) == 0
