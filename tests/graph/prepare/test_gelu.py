import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
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


LACKING = frozenset({"Erf"})


@pytest.mark.parametrize("last", ["m = Mul (half, a) y = Mul (x, m)", "m = Mul (x, a) y = Mul (m, half)"])
def test_an_engine_without_erf_gets_one_operator(last: str) -> None:
    proto = model(last)
    changed = io.load(proto)
    prepare(changed, lacking=LACKING)
    (node,) = changed.graph
    assert (node.op_type, node.domain, node.outputs[0].name) == ("Gelu", "", "y")
    assert not changed.graph.initializers
    assert changed.opset_imports[""] >= gelu.OPSET
    assert gelu.join(changed) == 0
    x = weights(2, 8, low=-4, high=4)
    before, after = (session(c).run(None, {"x": x})[0] for c in (proto.SerializeToString(), io.to_bytes(changed)))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_in_a_subgraph_too() -> None:
    text = """g (float[2, 8] x, bool c) => (float[2, 8] y) {
        y = If (c) <then_branch = t () => (float[2, 8] u) { d = Div (x, root) e = Erf (d) a = Add (e, one)
            m = Mul (x, a) u = Mul (m, half) }, else_branch = f () => (float[2, 8] v) { v = Relu (x) }> }"""
    proto = build(text, **{name: np.asarray(array) for name, array in CONSTANTS.items()})
    changed = io.load(proto)
    prepare(changed, lacking=LACKING)
    (branching,) = changed.graph
    assert [node.op_type for node in branching.attributes["then_branch"].as_graph()] == ["Gelu"]
    feed = {"x": weights(2, 8, low=-4, high=4), "c": np.array(True)}
    before, after = (session(c).run(None, feed)[0] for c in (proto.SerializeToString(), io.to_bytes(changed)))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("last", "outputs"),
    [
        ("m = Mul (x, a) y = Mul (m, half)", "float[2, 8] y, float[2, 8] e"),  # something else reads the Erf
        ("m = Mul (x, a) y = Mul (m, one)", "float[2, 8] y"),  # no half
        ("m = Mul (x, a) y = Mul (m, high)", "float[1, 1, 2, 8] y"),  # the ½ lifts the rank
    ],
)
def test_what_is_no_gelu_keeps_its_erf(last: str, outputs: str) -> None:
    text = f"g (float[2, 8] x) => ({outputs}) {{ {BODY.format(last=last)} }}"
    constants = {name: np.asarray(array) for name, array in CONSTANTS.items()}
    changed = io.load(build(text, **constants, high=np.full((1, 1, 1, 1), 0.5, np.float32)))
    prepare(changed, lacking=LACKING)
    assert "Erf" in [node.op_type for node in changed.graph]


def test_engines_that_have_erf_keep_it() -> None:
    changed = io.load(model("m = Mul (x, a) y = Mul (m, half)"))
    prepare(changed)
    assert "Gelu" not in [node.op_type for node in changed.graph]
