"""Values that float16 rounds too much are found by what rounding them costs at the outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph.emit.half.rounded import around, rounded, values_in_order
from onnxq.graph.files import io
from onnxq.graph.prepare.whole import shapes
from onnxq.graph.types import Model
from onnxq.pipeline.deliver.half_noise import Compared, NoisyParts
from tests.graph.build import build, run, weights

RNG = np.random.default_rng(5)
LAYERS = 12


def cancelling() -> onnx.ModelProto:
    """Layers; the first one's weights are near 30, and what it reads has no mean: what counts is what float16 drops."""
    text = [f"[l{i}] m{i} = MatMul (h{i}, w{i}) [r{i}] h{i + 1} = Tanh (m{i})" for i in range(1, LAYERS)]
    constants = {f"w{i}": weights(16, 16, seed=i) / 2 for i in range(1, LAYERS)}
    return build(
        f"""net (float[n, 16] x) => (float[n, 8] y) {{
            [up] g = MatMul (x, near) [down] h1 = Tanh (g) {" ".join(text)} [end] y = MatMul (h{LAYERS}, v) }}""",
        **constants,
        near=30 + weights(16, 16),
        v=weights(16, 8),
    )


def centred() -> dict[str, np.ndarray]:
    x = RNG.standard_normal((4, 16)).astype(np.float32)
    return {"x": x - x.mean(1, keepdims=True)}


def loaded() -> Model:
    model = io.load(cancelling())
    shapes.infer(model, [], folded=False)
    return model


FEEDS = [centred() for _ in range(4)]


def test_nodes_around_what_costs_most_stay_float32() -> None:
    result = onnxq.quantize(cancelling(), preset="fp16", calibration=FEEDS, benchmark=False)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert "up" in kept
    assert len(kept) <= 4
    assert "rounding to float16 here adds much of the error" in kept["up"]
    assert result.sqnr_db is not None
    assert result.sqnr_db > 50
    assert not any(line.startswith("float16:") for line in result.warnings)


def test_parts_are_divided_until_they_are_small() -> None:
    model = loaded()
    names = values_in_order(model, {node.name or "" for node in model.graph})
    assert "g" in names
    assert "y" not in names
    parts = NoisyParts(Compared(model, FEEDS[:2], None), names)
    found = parts.loudest(0.9, 100, around(model, names))
    assert "up" in found
    assert len(found) < 4
    assert parts.worst in {"x", "near"}


def test_rounding_is_that_of_float16_and_leaves_the_model_alone() -> None:
    model = loaded()
    before = io.to_proto(model).SerializeToString()
    copy = io.to_proto(rounded(model, {"g", "v"}))
    assert io.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(copy)
    x = FEEDS[0]["x"]
    plain = cancelling()
    plain.graph.output.append(onnx.helper.make_tensor_value_info("g_back", 1, None))
    copy.graph.output.append(plain.graph.output.pop())
    values = run(copy.SerializeToString(), {"x": x})
    near = values["g_back"]
    assert (near.astype(np.float16).astype(np.float32) == near).all()
    exact = run(io.to_proto(rounded(model, set())).SerializeToString(), {"x": x})["y"]
    assert (exact == run(before, {"x": x})["y"]).all()
    assert not np.allclose(values["y"], exact, atol=1e-4)


def test_a_weight_in_a_subgraph_is_read_rounded() -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        [f] y = If (c) <then_branch = t () => (float[2] a) { [p] a = Add (x, w) },
                        else_branch = e () => (float[2] b) { [m] b = Sub (x, w) }> }"""
    model = io.load(build(text, w=np.array([1 / 3, 2 / 3], np.float32)))
    zero = np.zeros(2, np.float32)
    found = run(io.to_proto(rounded(model, {"w"})).SerializeToString(), {"x": zero, "c": np.array(True)})["y"]
    assert (found == np.array([1 / 3, 2 / 3], np.float16).astype(np.float32)).all()
    assert around(model, {"w"}) == {"p", "m"}


@pytest.mark.parametrize("most", [0, 1])
def test_no_more_nodes_than_allowed(most: int) -> None:
    model = loaded()
    nodes = {"up", "down", "l1"}
    parts = NoisyParts(Compared(model, FEEDS[:1], None), values_in_order(model, nodes))
    assert len(parts.loudest(1.0, most, nodes) & nodes) <= most


def test_weights_that_are_stored_in_16_bits_are_parts_though_their_nodes_stay_float32() -> None:
    model = loaded()
    assert values_in_order(model, {"l1"}, {"up"}) == ["near", "h1", "w1", "m1"]
    text = """g (float[n, 16] x) => (float[n, 8] y) {
        [up] a = MatMul (x, near) [square] b = Mul (a, a) [shift] c = Add (b, one) [log] d = Log (c)
        [end] y = MatMul (d, v) }"""
    one = np.ones(1, np.float32)
    net = build(text, near=30 + weights(16, 16), one=one, v=weights(16, 8))
    result = onnxq.quantize(net, preset="fp16", calibration=FEEDS, benchmark=False)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert "weight is stored" not in kept["up"]
    assert result.sqnr_db is not None
    assert result.sqnr_db > 50


def test_a_part_whose_rounding_gives_no_number_does_not_hide_the_others() -> None:
    text = """g (float[n, 16] x) => (float[n, 16] y) {
        [tiny] t = Mul (x, small) [div] d = Div (t, small) [up] y = MatMul (d, w) }"""
    model = io.load(build(text, small=np.full(16, 1e-9, np.float32), w=weights(16, 16)))
    shapes.infer(model, [], folded=False)
    parts = NoisyParts(Compared(model, FEEDS[:1], None), ["small", "w"])
    with np.errstate(invalid="ignore"):
        assert parts.loudest(0.9, 9, {"tiny", "div", "up"}) == {"up"}
