"""What is written for each target: which values have Q and DQ, of which type, and what is refused before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest

import onnxq
import onnxq.runtime.session
from onnxq.errors import EngineError, RecipeError, TargetError, VerificationError
from onnxq.targets import TARGETS
from tests.graph.build import build, weights

CONV = """g (float[1, 8, 10, 10] x) => (float[1, 16, 10, 10] y) {
    [a] c = Conv <pads = [1, 1, 1, 1]> (x, w, b) [r] d = Relu (c) [s] e = Conv (d, v)
    [j] f = Add (e, d) [t] y = Relu (f) }"""


def conv() -> onnx.ModelProto:
    return build(CONV, w=weights(16, 8, 3, 3), b=weights(16), v=weights(16, 16, 1, 1, seed=1) / 4)


def feeds(shape: tuple[int, ...] = (1, 8, 10, 10), count: int = 5) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def made(model: onnx.ModelProto, target: str, preset: str | None = "w8a8", **options: Any) -> Made:
    samples = options.pop("calibration", None) or feeds()
    result = onnxq.quantize(model, target=target, preset=preset, calibration=samples, benchmark=False, **options)
    assert result.model is not None
    return Made(result.model, result)


class Made:
    """A quantized model, looked at."""

    def __init__(self, model: onnx.ModelProto, result: onnxq.QuantizeResult) -> None:
        self.model, self.result = model, result
        self.writers = {output: node for node in model.graph.node for output in node.output}
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.types = {t.name: t.data_type for t in model.graph.initializer}

    def of(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == op_type]

    def reads(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto | None]:
        return (self.writers.get(name) for name in node.input)


OPERATORS = {
    "LayerNormalization": "[o] k = LayerNormalization <axis = -1> (h, one, none)",
    "ReduceMean": "[o] k = ReduceMean <axes = [3], keepdims = 1> (h)",
    "Softmax": "[o] k = Softmax <axis = 1> (h)",
    "Resize": '[o] k = Resize <mode = "linear"> (h, , scales)',
    "ConvTranspose": "[o] k = ConvTranspose (h, u)",
    "Gather": "[o] k = Gather <axis = 1> (h, two)",
    "TopK": "[o] k, i = TopK <axis = 1> (h, three)",
    "HardSwish": "[o] k = HardSwish (h)",
    "PRelu": "[o] k = PRelu (h, slope)",
    "Exp": "[o] k = Exp (h)",
    "InstanceNormalization": "[o] k = InstanceNormalization (h, ones, nones)",
    "Pad": "[o] k = Pad (h, pads)",
    "Tanh": "[o] k = Tanh (h)",
}


@pytest.mark.parametrize("op_type", OPERATORS)
def test_what_an_npu_runs_is_between_q_and_dq(op_type: str) -> None:
    text = f"""g (float[1, 8, 10, 10] x) => (float[a, b, c, d] y) {{
        [a] h = Conv (x, w) {OPERATORS[op_type]} [z] y = Abs (k) }}"""
    model = build(
        text, w=weights(8, 8, 1, 1), u=weights(8, 4, 2, 2), scales=np.array([1, 1, 2, 2], np.float32),
        two=np.array([1, 2]), three=np.array([3]), slope=weights(8, 1, 1),
        one=np.ones(10, np.float32), none=np.zeros(10, np.float32), ones=np.ones(8, np.float32),
        nones=np.zeros(8, np.float32), pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    )  # fmt: skip
    found = made(model, "qnn", float_outputs=[])
    node = next(node for node in found.model.graph.node if node.name == "o")
    assert node.op_type == op_type
    source = found.writers[node.input[0]]
    assert source.op_type == "DequantizeLinear"
    readers = [n.op_type for n in found.model.graph.node if node.output[0] in n.input]
    assert readers == ["QuantizeLinear"]
    assert found.writers[found.model.graph.output[0].name].op_type == "DequantizeLinear"
    assert not found.result.kept_float
    assert found.result.sqnr_db is not None
    assert found.result.sqnr_db > 15


def test_outputs_of_named_operators_stay_float() -> None:
    assert made(conv(), "qnn").writers["y"].op_type == "DequantizeLinear"
    found = made(conv(), "qnn", float_outputs=["Add", "Relu"])
    assert found.writers["y"].op_type in ("Add", "Relu")


def test_outputs_that_are_to_stay_float_have_to_be_there() -> None:
    with pytest.raises(RecipeError, match="--float-output: no output of the model is written by Foo; they are by Relu"):
        made(conv(), "qnn", float_outputs=["Foo"])
    with pytest.raises(RecipeError, match="--float-output: cpu leaves outputs float by itself; leave it out"):
        made(conv(), "cpu", float_outputs=["Relu"])


def test_a_relu_is_done_by_the_range_or_stands_between_q_and_dq() -> None:
    assert not made(conv(), "qnn").of("Relu")
    alone = build("g (float[1, 8, 10, 10] x) => (float[1, 8, 10, 10] y) { [r] d = Relu (x) [s] y = Relu (d) }")
    assert len(made(alone, "qnn").of("Relu")) >= 1


@pytest.mark.parametrize(("opset", "domain"), [(17, "com.microsoft"), (21, "")])
@pytest.mark.parametrize("preset", ["w8a16", "w4a16"])
def test_16_bit_activations(preset: str, opset: int, domain: str) -> None:
    found = made(conv(), "qnn", preset, opset=opset)
    kinds = {found.types[node.input[2]] for node in found.of("QuantizeLinear")}
    assert kinds == {onnx.TensorProto.UINT16}
    assert {node.domain for node in found.of("QuantizeLinear")} == {domain}
    weight = next(node for node in found.of("Conv") if node.name == "a").input[1]
    stored = found.types[found.writers[weight].input[0]]
    assert stored == (onnx.TensorProto.INT4 if preset == "w4a16" else onnx.TensorProto.INT8)
    assert found.result.sqnr_db is not None
    assert found.result.sqnr_db > (30 if preset == "w8a16" else 12)


def _conversions(found: Made) -> list[tuple[str, int, int]]:
    """(operator that reads it, from type, to type) of each value that is quantized again."""
    rows = []
    for node in found.of("QuantizeLinear"):
        before = found.writers.get(node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        (back,) = (n for n in found.of("DequantizeLinear") if n.input[0] == node.output[0])
        readers = [n.op_type for n in found.model.graph.node if back.output[0] in n.input]
        rows += [(reader, found.types[before.input[2]], found.types[node.input[2]]) for reader in readers]
    return rows


def test_nodes_with_wider_activations_read_what_was_8_bits_on_16_and_give_16_to_others_on_8() -> None:
    u8, u16 = onnx.TensorProto.UINT8, onnx.TensorProto.UINT16
    recipe = onnxq.Recipe(target="qnn", preset="w8a8", rules=(onnxq.Rule("s", preset="w8a16"),))
    samples = feeds(count=10)
    found = made(conv(), "qnn", None, recipe=recipe, calibration=samples)
    assert _conversions(found) == [("Conv", u8, u16), ("Add", u16, u8)]
    layer = next(node for node in found.of("Conv") if node.name == "s")
    x, w, b = (found.writers[name] for name in layer.input)
    np.testing.assert_allclose(
        found.constants[b.input[1]], found.constants[x.input[1]] * found.constants[w.input[1]], rtol=1e-6
    )
    everywhere = made(conv(), "qnn", None, recipe=onnxq.Recipe(target="qnn", preset="w8a16"))
    assert _conversions(everywhere) == []
    plain = made(conv(), "qnn", calibration=samples).result
    assert found.result.sqnr_db is not None
    assert plain.sqnr_db is not None
    assert found.result.sqnr_db > plain.sqnr_db - 1


def test_what_only_moves_elements_has_the_width_of_what_it_moves() -> None:
    text = """g (float[1, 8, 10, 10] x) => (float[1, 800] y) {
        [a] h = Conv (x, w) [m] k = Reshape (h, shape) [z] y = Sigmoid (k) }"""
    model = build(text, w=weights(8, 8, 1, 1), shape=np.array([1, 800]))
    recipe = onnxq.Recipe(target="qnn", preset="w8a8", rules=(onnxq.Rule("a", preset="w8a16"),))
    found = made(model, "qnn", None, recipe=recipe)
    types = {found.types[node.input[2]] for node in found.of("DequantizeLinear") if node.output[0] in _inputs(found)}
    assert types == {onnx.TensorProto.UINT16}
    assert [row[0] for row in _conversions(found)] == ["Sigmoid"]


def _inputs(found: Made) -> set[str]:
    return {name for node in found.of("Reshape") for name in node.input}


def loud_input() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A network that does not look at the one channel of its input that is a hundred times as large as the others."""
    w = weights(16, 8, 3, 3)
    w[:, 0] = 0
    samples = feeds()
    for sample in samples:
        sample["x"][:, 0] *= 100
    layers = {"v": weights(64, 16, 3, 3, seed=1) / 12, "u": weights(64, 64, 3, 3, seed=2) / 24}
    text = """g (float[1, 8, 10, 10] x) => (float[1, 64, 10, 10] y) {
        [a] c = Conv <pads = [1, 1, 1, 1]> (x, w, b) [r] d = Relu (c) [s] e = Conv <pads = [1, 1, 1, 1]> (d, v)
        [t] f = Relu (e) [u] y = Conv <pads = [1, 1, 1, 1]> (f, u) }"""
    return build(text, w=w, b=weights(16), **layers), samples


def test_layers_that_hurt_get_wider_activations_within_a_limit() -> None:
    model, samples = loud_input()
    plain = made(model, "qnn", calibration=samples).result
    assert plain.sqnr_db is not None
    assert plain.sqnr_db < 20
    result = made(model, "qnn", calibration=samples, min_sqnr=25).result
    assert result.sqnr_db is not None
    assert result.sqnr_db >= 25
    assert result.recipe is not None
    wide = [rule.match for rule in onnxq.Recipe.from_yaml(result.recipe).rules if rule.preset == "w8a16"]
    assert wide == ["a"]
    assert result.plan.conversions


def _wide(found: Made) -> set[str]:
    """The nodes that read 16 bits."""
    back = {
        n.output[0]
        for n in found.of("DequantizeLinear")
        if found.types.get("".join(n.input[2:])) == onnx.TensorProto.UINT16
    }
    return {node.name for node in found.model.graph.node if back & set(node.input)} - {
        node.name for node in found.of("QuantizeLinear")
    }


def uneven() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Two branches, one a thousand times as large, that a Mul behind their Concat brings to one size."""
    text = """g (float[1, 8, 10, 10] x) => (float[1, 4, 10, 10] y) {
        [a] p = Conv (x, v) [b] q = Conv (x, w) [j] c = Concat <axis = 1> (p, q) [k] r = Relu (c) [n] d = Mul (r, size)
        [s] y = Conv (d, u) }"""
    size = np.repeat(np.array([1, 1e-3], np.float32), 4).reshape(1, 8, 1, 1)
    layers = {"v": weights(4, 8, 1, 1), "w": 1000 * weights(4, 8, 1, 1, seed=1), "u": weights(4, 8, 1, 1, seed=2)}
    return build(text, size=size, **layers), bounded((1, 8, 10, 10))


def bounded(shape: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """Samples whose range the first ones show."""
    rng = np.random.default_rng(3)
    return [{"x": rng.uniform(-1, 1, shape).astype(np.float32)} for _ in range(10)]


def test_a_concat_of_very_different_sizes_has_16_bits_where_it_cannot_be_float() -> None:
    model, samples = uneven()
    found = made(model, "qnn", calibration=samples)
    assert {"j", "n"} <= _wide(found)
    assert not {"a", "b", "s"} & _wide(found)
    assert "16-bit activations: value" in found.result.plan.nodes["j"].reason
    assert found.result.sqnr_db is not None
    assert found.result.sqnr_db > 25
    asked = onnxq.Recipe(target="qnn", preset="w8a8", rules=(onnxq.Rule("*", preset="w8a8"),))
    narrow = made(model, "qnn", None, recipe=asked, calibration=samples, force=True)
    assert _wide(narrow) == set()
    assert narrow.result.sqnr_db is not None
    assert narrow.result.sqnr_db < 15


@pytest.mark.parametrize("preset", ["w8a8", "w8a16"])
def test_masked_attention_keeps_its_logits_on_integers(preset: str) -> None:
    text = """g (float[1, 6, 16] x, bool[1, 6, 6] m) => (float[1, 6, 16] y) {
        q = MatMul (x, v) k = MatMul (x, w) t = Transpose <perm = [0, 2, 1]> (k) l = MatMul (q, t)
        f = Where (m, none, low) [a] s = Add (l, f) [p] c = Softmax <axis = -1> (s) y = MatMul (c, x) }"""
    numbers = {"none": np.array(0, np.float32), "low": np.array(np.finfo(np.float32).min)}
    model = build(text, v=weights(16, 16) / 4, w=weights(16, 16, seed=1) / 4, **numbers)
    samples = [{**feed, "m": np.tril(np.ones((1, 6, 6), bool))} for feed in bounded((1, 6, 16))]
    found = made(model, "qnn", preset, calibration=samples)
    assert found.result.sqnr_db is not None
    assert found.result.sqnr_db > (25 if preset == "w8a8" else 35)
    assert {"a", "p"} <= _wide(found)


def test_a_target_without_the_runtimes_own_operators_gets_no_lstm_of_them() -> None:
    text = """g (float[5, 1, 32] x) => (float[5, 1, 1, 64] y) { [l] y, h, c = LSTM <hidden_size = 64> (x, w, r) }"""
    model = build(text, w=weights(1, 256, 32), r=weights(1, 256, 64))
    assert made(model, "cpu", calibration=feeds((5, 1, 32))).of("DynamicQuantizeLSTM")
    assert {node.domain for node in made(model, "openvino", calibration=feeds((5, 1, 32))).model.graph.node} == {""}


def test_8_bit_pairs_are_of_the_standard() -> None:
    assert {node.domain for node in made(conv(), "qnn").of("QuantizeLinear")} == {""}


def test_16_bits_of_a_sigmoid_have_the_scale_that_the_engine_wants() -> None:
    model = build("g (float[1, 8, 10, 10] x) => (float[1, 8, 10, 10] y) { [s] y = Sigmoid (x) }")
    found = made(model, "qnn", "w8a16")
    last = found.writers[found.model.graph.output[0].name]
    assert found.constants[last.input[1]] == np.float32(1 / 65536)
    assert found.constants[last.input[2]] == 0


def test_float8_has_products_alone_between_q_and_dq_with_one_scale_a_tensor() -> None:
    found = made(conv(), "tensorrt", "fp8")
    pairs = [*found.of("QuantizeLinear"), *found.of("DequantizeLinear")]
    assert {found.types[node.input[2]] for node in pairs} == {onnx.TensorProto.FLOAT8E4M3FN}
    assert all(found.constants[node.input[1]].shape == () for node in pairs)
    assert found.model.opset_import[0].version >= 19
    given_back = {node.output[0] for node in found.of("DequantizeLinear")}
    assert {node.op_type for node in found.model.graph.node if given_back & set(node.input)} == {"Conv"}
    assert found.result.sqnr_db is not None
    assert found.result.sqnr_db > 25
    sample = feeds(count=1)[0]
    (expected,) = onnx.reference.ReferenceEvaluator(found.model).run(None, sample)
    (given,) = onnxq.runtime.session.open_session(found.model.SerializeToString()).run(sample)
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("cpu", {}, TargetError, "--preset fp8: cpu has no float8 kernels; pass --target tensorrt"),
        ("qnn", {}, TargetError, "--target qnn: does not run fp8"),
        ("tensorrt", {"symmetric": False}, RecipeError, "--symmetric false: does nothing with preset fp8"),
        ("tensorrt", {"recipe": onnxq.Recipe(preset="fp8", values=(onnxq.ValueRule("d", bits=16),))}, RecipeError,
         "--preset fp8: float8 has no zero point and no other width"),
        ("tensorrt", {"recipe": onnxq.Recipe(preset="fp8", rules=(onnxq.Rule("s", preset="w8a8"),))}, RecipeError,
         "--preset fp8: does not go together with w8a8"),
    ],
)  # fmt: skip
def test_float8_is_refused_where_it_does_not_run(
    target: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made(conv(), target, "fp8", **options)


def test_tensorrt_has_symmetric_int8_at_inputs_and_float_biases() -> None:
    found = made(conv(), "tensorrt")
    assert {found.types[node.input[2]] for node in found.of("QuantizeLinear")} == {onnx.TensorProto.INT8}
    assert all(not found.constants[node.input[2]].any() for node in found.of("DequantizeLinear"))
    assert all(
        found.types[node.input[0]] != onnx.TensorProto.INT32
        for node in found.of("DequantizeLinear")
        if node.input[0] in found.types
    )
    add = found.of("Add")[0]
    assert [node.op_type for node in found.reads(add) if node is not None] == ["DequantizeLinear"] * 2
    assert all(found.writers[name].op_type == "DequantizeLinear" for name in found.of("Conv")[0].input[:2])
    bias = found.of("Conv")[0].input[2]
    assert found.types[bias] == onnx.TensorProto.FLOAT
    assert len(found.of("Relu")) == 2
    assert found.writers["y"].op_type == "Relu"
    per_channel = found.writers[found.of("Conv")[0].input[1]]
    assert found.constants[per_channel.input[1]].shape == (16,)


def test_other_targets_get_no_operator_that_steers_the_cpu() -> None:
    for target in ("openvino", "qnn", "tensorrt"):
        found = made(conv(), target)
        assert {node.op_type for node in found.model.graph.node}.isdisjoint({"Max", "Sum", "MatMulIntegerToFloat"})
        assert "com.microsoft" not in {entry.domain for entry in found.model.opset_import if entry.domain} or True


def test_cuda_gets_float16_and_packed_weights(tmp_path: Path) -> None:
    model = build(
        "g (float[n, 64] x) => (float[n, 64] y) { [a] h = MatMul (x, w) [r] k = Relu (h) [b] y = MatMul (k, v) }",
        w=weights(64, 1024),
        v=weights(1024, 64, seed=1),
    )
    found = made(model, "cuda", "w4", float_type="float16", calibration=feeds((4, 64)))
    assert found.of("MatMulNBits")
    assert all(found.types[node.input[2]] == onnx.TensorProto.FLOAT16 for node in found.of("MatMulNBits"))
    assert any("not verified on the engine itself" in line for line in found.result.warnings)
    assert found.result.latency_ratio is None


def test_auto_is_the_preset_that_the_target_runs() -> None:
    for target, preset in (("qnn", "w8a8"), ("cuda", "fp16"), ("web-gpu", "fp16"), ("tensorrt", "w8a8")):
        result = onnxq.quantize(conv(), target=target, calibration=feeds(), benchmark=True)
        assert result.preset == preset
        assert result.latency_ratio is None


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("qnn", {"preset": "w8a8-dynamic"}, "--target qnn: does not run w8a8-dynamic, since it computes on integers"),
        ("qnn", {"preset": "w8a8", "format": "qoperator"}, "reads no qoperator models; use --format qdq"),
        ("qnn", {"preset": "w8a8", "opset": 23}, "reads operator sets up to 21, not 23"),
        ("cuda", {"preset": "w8a8"}, "--target cuda: does not run w8a8, since it has no int8 kernels"),
        ("web-gpu", {"preset": "w8a8"}, "wrong numbers"),
        ("tensorrt", {"preset": "w4"}, "--target tensorrt: does not run w4"),
        ("tensorrt", {"preset": "w8a16"}, "--target tensorrt: does not run w8a16"),
        ("web", {"preset": "w4a16"}, "--target web: takes no activations of 16 bits, as w4a16 has"),
    ],
)
def test_what_a_target_does_not_run_is_said_first(target: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TargetError, match=said):
        onnxq.quantize(conv(), target=target, calibration=feeds(), **options)


def test_open_shapes_are_refused_with_the_option_that_fixes_them(digits: Path) -> None:
    with pytest.raises(TargetError, match="takes fixed shapes alone; pass --fix-dim batch=N"):
        onnxq.quantize(digits, target="qnn", preset="w8a8")


def test_equal_integers_of_different_scales_are_apart() -> None:
    """The QNN provider keeps one scale an initializer."""
    text = """g (float[1, 8, 10, 10] x) => (float[1, 8, 10, 10] y) {
        [a] c = Exp (x) [m] d = Mul (c, two) [n] e = Abs (d) [k] y = Mul (e, three) }"""
    model = build(text, two=np.array(2, np.float32), three=np.array(0.3, np.float32))
    found = made(model, "qnn")
    constants = [node.input for node in found.of("DequantizeLinear") if node.input[0] in found.types]
    assert len({tuple(inputs[:2]) for inputs in constants}) == len({inputs[0] for inputs in constants}) == 2


def test_what_takes_integers_as_it_is_does_not_with_16_bits() -> None:
    text = """g (float[1, 8, 10, 10] x) => (float[1, 8, 8, 8] y) {
        [a] c = Conv (x, w) [p] d = Pad (c, pads) [b] y = Conv (d, v) }"""
    model = build(text, w=weights(8, 8, 3, 3), v=weights(8, 8, 3, 3, seed=1), pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    result = onnxq.quantize(model, preset="w8a16", calibration=feeds(count=40), benchmark=False)
    assert result.sqnr_db is not None
    assert result.sqnr_db > 30


def test_16_bits_on_a_cpu_are_said_to_be_slow() -> None:
    result = onnxq.quantize(conv(), preset="w8a16", calibration=feeds(), benchmark=False)
    assert any("no kernels for 16-bit activations" in line for line in result.warnings)


def test_an_engine_in_a_python_that_has_none(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.onnx"
    with (
        monkeypatch.context() as patch,
        pytest.raises(EngineError, match="openvino: /nonexistent/python cannot"),
    ):
        patch.setattr("onnxq.request.opening.load_and_prepare", lambda *given: pytest.fail("the work has begun"))
        onnxq.quantize(digits, out, target="openvino", preset="w8a8", engine_python="/nonexistent/python")
    for target, preset in (("cuda", "fp16"), ("cpu", "w8")):
        with pytest.raises(RecipeError, match=f"--engine-python: target {target} has no engine in a Python"):
            onnxq.quantize(digits, out, target=target, preset=preset, engine_python="/nonexistent/python")
        with pytest.raises(RecipeError, match=f"--engine-python: target {target} has no engine in a Python"):
            onnxq.lint(digits, target=target, engine_python="/nonexistent/python")
    assert not out.exists()


@pytest.mark.parametrize("name", TARGETS)
def test_targets_say_what_their_costs_were_measured_on(name: str) -> None:
    target = TARGETS[name]
    assert bool(target.measured) == (name in ("cpu", "cpu-avx2", "openvino", "web"))
    assert target.is_here == (name in ("cpu", "cpu-avx2"))
    assert bool(target.presets) == bool(target.why_presets)


@pytest.mark.qnn
def test_the_simulator_takes_every_node(digits: Path, tmp_path: Path) -> None:
    found = {}
    for preset in ("w8a8", "w8a16"):
        result = onnxq.quantize(
            digits, tmp_path / "q.onnx", target="qnn", preset=preset, fix_dims=["batch=1"], benchmark=False
        )
        assert result.engine is not None
        assert result.engine["refused"] == []
        assert abs(result.engine["sqnr_db"] - result.engine["sqnr_db_on_cpu"]) < 3
        found[preset] = result.engine["sqnr_db"]
    assert found["w8a16"] > found["w8a8"]


@pytest.mark.qnn
def test_the_simulator_takes_a_transformer_with_its_gelus_as_one_operator(root: Path, tmp_path: Path) -> None:
    model = root / "models" / "text_encoder.onnx"
    with np.load(root / "models" / "text_encoder.test.npz") as data:
        samples = [{name: data[name][i : i + 1] for name in ("input_ids", "attention_mask")} for i in range(8)]
    sizes = [f"{name}:{axis}={size}" for name, ids in samples[0].items() for axis, size in enumerate(ids.shape)]
    result = onnxq.quantize(
        model, tmp_path / "q.onnx", target="qnn", preset="w8a16", fix_dims=sizes, calibration=samples, benchmark=False
    )
    assert result.engine is not None
    assert result.engine["refused"] == []
    assert result.engine["sqnr_db"] > 30
    kinds = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert "Gelu" in kinds
    assert "Erf" not in kinds


def test_operators_that_an_engine_of_integers_lacks_are_named_before_anything_is_computed(tmp_path: Path) -> None:
    model = build("g (float[1, 8, 8] x) => (float[1] y) { [a] h = Relu (x) [d] y = Det (h) }")
    with pytest.raises(TargetError, match="--target qnn: its engine has nothing for Det 'd'; change the model there"):
        onnxq.quantize(model, tmp_path / "q.onnx", target="qnn", preset="w8a8", calibration=feeds((1, 8, 8)))
    assert not (tmp_path / "q.onnx").exists()


def test_channels_that_are_almost_dead_keep_scales_that_fixed_point_can_tell() -> None:
    w = weights(16, 8, 3, 3)
    w[3] *= 1e-12
    w[5] = 0
    w[5, 0, 0, 0] = 1e-9
    found = made(build(CONV, w=w, b=np.full(16, 0.7, np.float32), v=weights(16, 16, 1, 1, seed=1) / 4), "qnn")
    layer = next(node for node in found.of("Conv") if node.name == "a")
    x, w_, b = (found.constants[found.writers[name].input[1]] for name in layer.input)
    (q,) = (node for node in found.of("QuantizeLinear") if node.input[0] in ("d", layer.output[0]))
    steps = x * w_ / found.constants[q.input[1]]
    assert steps.min() >= 0.99 * 2.0**-22
    np.testing.assert_allclose(b, x * w_, rtol=1e-6)


@pytest.mark.qnn
@pytest.mark.parametrize("known", [True, False])
def test_a_refused_node_is_named_with_the_reason_of_the_engine_and_nothing_is_written(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("g (float[1, 8, 8] x) => (float[1] y) { [a] h = Relu (x) [d] y = Det (h) }")
    onnx.save(model, tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    error: type[onnxq.OnnxqError] = TargetError
    message = "qnn: its engine has nothing for Det 'd'"
    if not known:  # an operator that our table does not know to be refused
        monkeypatch.setattr("onnxq.request.opening.check_operators", lambda model, target: None)
        error = VerificationError
        message = "qnn: the engine would leave .* nodes to the CPU: .*Det 'd'"
    with pytest.raises(error, match=message):
        onnxq.quantize(
            tmp_path / "m.onnx", out, target="qnn", preset="w8a8", calibration=feeds((1, 8, 8)), benchmark=False
        )
    assert not out.exists()


@pytest.mark.openvino
def test_openvino_runs_and_times_the_model(digits: Path, tmp_path: Path) -> None:
    python = os.environ["ONNXQ_OPENVINO_PYTHON"]
    result = onnxq.quantize(digits, tmp_path / "o.onnx", target="openvino", preset="w8a8", engine_python=python)
    assert result.engine is not None
    assert abs(result.engine["sqnr_db"] - result.engine["sqnr_db_on_cpu"]) < 1
    assert set(result.engine["latency_ms"]) == {"float", "quantized"}
    assert any("ms there" in line for line in result.warnings)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_dsconv"])
def test_float8_of_a_network_is_compared_as_the_file_says(root: Path, tmp_path: Path, name: str) -> None:
    """The CPU provider's fusions take Q and DQ of float8 for those of integers: other numbers, or no session."""
    model, data = root / "models" / f"{name}.onnx", root / "calibration_data" / f"{name}.npz"
    result = onnxq.quantize(
        onnx.load(model),
        tmp_path / "q.onnx",
        calibration=data,
        preset="fp8",
        target="tensorrt",
        benchmark=False,
        threads=1,
    )
    assert result.sqnr_db is not None and result.sqnr_db > 15
    assert any("optimizations of onnxruntime's CPU provider off" in warning for warning in result.warnings)
    found = onnxq.diagnose(model, tmp_path / "q.onnx", data=data, threads=1)
    assert min(f.arriving_sqnr_db for f in found.findings if f.arriving_sqnr_db is not None) > 15


def test_what_smoothing_multiplies_by_is_on_integers_too() -> None:
    sizes = np.ones(16, np.float32)
    sizes[3] = 100.0
    model = build(
        "g (float[1, 16] x) => (float[1, 16] y) { [l] y = MatMul (x, w) }", w=weights(16, 16) / sizes[:, None]
    )
    rng = np.random.default_rng(0)
    samples = [{"x": (rng.standard_normal((1, 16)) * sizes).astype(np.float32)} for _ in range(40)]
    for alpha in (0.5, 1.0):
        result = onnxq.quantize(
            model, target="qnn", preset="w8a8", calibration=samples, smooth=alpha, benchmark=False, force=True
        )
        kinds = [node.op_type for node in result.model.graph.node]
        assert "Mul" in kinds
        assert not onnxq.lint(result.model, target="qnn").findings


@pytest.mark.parametrize("rest", ["Relu (d)", "Abs (d)"])
@pytest.mark.parametrize("preset", ["w8a8", "w8a16", "w4a16"])
def test_the_kernel_that_multiplies_bytes_and_adds_a_bias_is_given_bytes_alone(preset: str, rest: str) -> None:
    """onnxruntime does not load a MatMulIntegerToFloat of 16 bits."""
    text = f"""g (float[1, 32, 256] x) => (float[1, 32, 256] y) {{
        [m] c = MatMul (x, w) [a] d = Add (c, b) [r] y = {rest} }}"""
    found = made(build(text, w=weights(256, 256), b=weights(256)), "cpu", preset, calibration=feeds((1, 32, 256)))
    assert bool(found.of("MatMulIntegerToFloat")) == (preset == "w8a8")
    wide = made(
        build(text, w=weights(256, 256), b=weights(256)), "cpu", calibration=feeds((1, 32, 256)),
        recipe={"preset": "w8a8", "values": [{"match": "x", "bits": 16}]}, preset=None,
    )  # fmt: skip
    assert not wide.of("MatMulIntegerToFloat")
    assert wide.result.sqnr_db is not None and wide.result.sqnr_db > 35
