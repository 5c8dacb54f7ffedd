"""Whatever preparing does, the float outputs stay those of the user's model; a step that changes them is left out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxq
import onnxq.graph.prepare as prepare_module
from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.prepare.folding import lift_constants
from onnxq.graph.prepare.operators import hardmax
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.confirm import confirm
from onnxq.pipeline.float_model import Prepared, load_and_prepare
from onnxq.targets import target_named
from tests.graph.build import build, run, weights

HARDMAX = "g (float[N,4,6] x) => (float[N,4,5] h, float[N,4,5] y) { h = MatMul (x, w) y = Hardmax <axis = 1> (h) }"
LAYERS = "g (float[N,4] x) => (float[N,4] y) { a = MatMul (x, w) b = Add (a, c) d = Relu (b) y = MatMul (d, v) }"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": weights(*shape, seed=3)}


def prepare(proto: onnx.ModelProto) -> Prepared:
    return load_and_prepare(proto, target_named("cpu"), Clock(None))


def agrees(proto: onnx.ModelProto, prepared: Prepared, sample: dict[str, np.ndarray]) -> bool:
    before, after = (run(model, sample) for model in (proto.SerializeToString(), io.to_bytes(prepared.model)))
    return all(np.allclose(before[name], after[name], atol=1e-5) for name in before)


def layers() -> onnx.ModelProto:
    return build(LAYERS, w=weights(4, 4), v=weights(4, 4, seed=1), c=weights(4))


@pytest.mark.parametrize("sample", [feed(2, 4, 6), None])
def test_an_operator_set_that_changes_the_meaning_is_not_raised(
    sample: dict[str, np.ndarray] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardmax, "flatten", lambda model: None)
    proto = build(HARDMAX, opset=11, ir=6, w=weights(6, 5))
    prepared = prepare(proto)
    assert not agrees(proto, prepared, feed(2, 4, 6))
    confirm(prepared, sample, Clock(None))
    assert agrees(proto, prepared, feed(2, 4, 6))
    assert prepared.model.opset_imports[""] == 11
    assert len(prepared.notes) == 1
    assert prepared.notes[0].startswith("changing its operator set was left out: output 'y' would change (")


def test_the_wrong_model_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardmax, "flatten", lambda model: None)
    text = HARDMAX.replace("6] x", "40] x").replace("5] ", "32] ")
    proto = build(text, opset=11, ir=6, w=weights(40, 32))
    samples = [feed(2, 4, 40), {"x": weights(2, 4, 40, seed=4)}]
    result = onnxq.quantize(proto, preset="w8", calibration=samples, benchmark=False)
    assert result.model is not None
    found = run(result.model.SerializeToString(), samples[0])["y"]
    assert np.array_equal(found.reshape(2, -1).sum(1), [1, 1])  # one in each sample, as before operator set 13


def _damage(model: ir.Model) -> int:
    """Change one weight, once."""
    value = next(iter(model.graph.initializers.values()))
    if value.metadata_props or value.const_value is None:
        return 0
    value.metadata_props["damaged"] = "yes"
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.5))
    return 1


def test_the_step_at_fault_is_found_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = layers()
    monkeypatch.setitem(prepare_module._PASSES, "padding", _damage)
    prepared = prepare(proto)
    assert prepared.changes["gemm"] and prepared.changes["padding"]
    assert not agrees(proto, prepared, feed(2, 4))
    confirm(prepared, feed(2, 4), Clock(None))
    assert agrees(proto, prepared, feed(2, 4))
    assert prepared.changes["gemm"]
    assert prepared.notes[0].startswith("moving Pad into Conv was left out: output 'y' would change (")


def test_a_model_that_cannot_be_run_after_a_step_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_size(model: ir.Model) -> int:
        found = model.graph.initializers["c"]
        if found.const_value is None or found.const_value.shape == (3,):
            return 0
        found.const_value = ir.tensor(weights(3))
        found.shape = ir.Shape([3])
        return 1

    monkeypatch.setitem(prepare_module._PASSES, "gemm", wrong_size)
    proto = layers()
    prepared = prepare(proto)
    confirm(prepared, feed(2, 4), Clock(None))
    assert agrees(proto, prepared, feed(2, 4))
    assert prepared.notes[0].startswith("rewriting its fully connected layers was left out: it cannot be run then (")


def test_what_cannot_be_left_out_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def lift(model: ir.Model) -> int:
        return _damage(model)

    monkeypatch.setattr(lift_constants, "lift", lift)
    with pytest.raises(ModelError, match="model: cleaning the float model up changes what it computes: output 'y'"):
        onnxq.quantize(layers(), preset="w8", benchmark=False)


@pytest.mark.parametrize("attributes", ["", "<seed = 1.0>"])
def test_a_model_that_draws_random_numbers_is_no_fault_of_preparing(attributes: str) -> None:
    nodes = f"n = RandomNormalLike {attributes} (x) a = Add (x, n) b = Identity (a) y = MatMul (b, w)"
    text = f"g (float[N,4] x) => (float[N,4] y) {{ {nodes} }}"
    prepared = prepare(build(text, w=weights(4, 4)))
    confirm(prepared, feed(2, 4), Clock(None))
    assert prepared.notes == []
    assert prepared.changes["eliminate"] == 1


def test_nothing_is_said_of_a_model_that_stays_the_same() -> None:
    prepared = prepare(layers())
    confirm(prepared, feed(2, 4), Clock(None))
    assert prepared.notes == []
    assert prepared.session is None
    confirm(prepared, feed(2, 4), Clock(None))  # there is nothing to compare with any more


def test_what_a_training_batch_normalization_gives_besides_stays() -> None:
    text = """g (float[N,4,3] x) => (float[N,4,3] y) {
        y, mean, var = BatchNormalization <training_mode = 1> (x, s, b, m, v)
    }"""
    constants = {name: weights(4, seed=i, low=0.5) for i, name in enumerate("sbmv")}
    proto = build(text, opset=15, **constants)
    prepared = prepare(proto)
    confirm(prepared, feed(2, 4, 3), Clock(None))
    assert prepared.notes == []
    assert agrees(proto, prepared, feed(2, 4, 3))


@pytest.mark.parametrize(("options", "said"), [({"format": "qdq"}, True), ({}, False)])
def test_a_form_of_weights_that_needs_a_newer_operator_set_says_so(options: dict[str, str], said: bool) -> None:
    proto = build("g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }", opset=17, w=weights(64, 64))
    result = onnxq.quantize(proto, preset="w4", benchmark=False, **options)  # type: ignore[arg-type]
    lines = [line for line in result.warnings if "was raised from 17 to 21, and from IR version 8 to 10" in line]
    assert len(lines) == said


def test_what_float16_overflows_or_ties_on_is_no_fault_of_widening() -> None:
    text = """g (float16[N,8] x) => (float16[N,8] y, int64[N,1] best) {
        a = Mul (x, big)  b = Mul (a, big)  s = Softmax <axis = 1> (x)  best = ArgMax <axis = 1> (s)
        y = Neg (b)
    }"""
    proto = build(text, big=np.float16(300))
    prepared = prepare(proto)
    assert prepared.changes["widen"]
    sample = {"x": np.where(np.arange(16).reshape(2, 8) % 3 == 0, 30, 1).astype(np.float16)}
    assert np.isinf(run(proto.SerializeToString(), sample)["y"]).any()
    confirm(prepared, sample, Clock(None))
    assert prepared.notes == []
    assert prepared.changes["widen"]
