"""The presets fp16 and bf16 from end to end: what stays float32, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.runtime.session import open_session
from tests.graph.build import build

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((32, 32)).astype(np.float32) / 6


def network(body: str, **weights: np.ndarray) -> onnx.ModelProto:
    return build(f"net (float[n, 32] x) => (float[n, 32] y) {{ {body} }}", **weights)


def feeds(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((4, 32)).astype(np.float32)} for _ in range(count)]


LOUD = """[a] h = MatMul (x, w) [up] g = MatMul (h, large) [mid] r = Relu (g) [down] d = MatMul (r, small)
    [b] k = MatMul (d, w) [c] y = Add (k, x)"""


def loud() -> onnx.ModelProto:
    eye = np.eye(32, dtype=np.float32)
    return network(LOUD, w=WEIGHT, large=(eye * 6e4 + 1), small=eye * 1e-4)


def test_values_beyond_float16_keep_just_the_nodes_that_touch_them() -> None:
    result = onnxq.quantize(loud(), preset="fp16", calibration=feeds(), benchmark=False)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert set(kept) == {"up", "mid", "down"}
    assert all("float16 ends at 65504" in reason for reason in kept.values())
    assert result.sqnr_db is not None
    assert result.sqnr_db > 50
    assert {node.name for node in result.plan.nodes.values() if node.action == "half"} == {"a", "b", "c"}


def test_without_samples_one_is_made_up() -> None:
    result = onnxq.quantize(loud(), preset="fp16", benchmark=False)
    assert {name for name, _, _ in result.kept_float} == {"up", "mid", "down"}


def test_bfloat16_reaches_as_far_as_float32_and_is_stored_where_there_are_no_kernels() -> None:
    result = onnxq.quantize(loud(), preset="bf16", calibration=feeds(), benchmark=False)
    assert result.float_type == "bfloat16"
    assert all("cpu has no bfloat16 kernel" in reason for _, _, reason in result.kept_float)
    assert result.size_after < 0.6 * result.size_before


def test_angles_and_indices_stay_float32() -> None:
    body = """[p] t = Mul (x, far) [s] u = Sin (t) [i] j = Cast <to = 7> (t) [f] k = Cast <to = 1> (j)
        [z] l = Mul (k, none) [m] v = Add (u, l) [a] y = MatMul (v, w)"""
    model = network(body, w=WEIGHT, far=np.array(500, np.float32), none=np.array(0, np.float32))
    result = onnxq.quantize(model, preset="fp16", calibration=feeds(), benchmark=False)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert "angles" in kept["s"] or "angles" in kept["p"]
    assert {"p", "s", "i"} <= set(kept)
    assert "a" not in kept


def test_power_spectra_in_front_of_a_log_stay_float32() -> None:
    body = """[a] s = MatMul (x, w) [p] q = Mul (s, s) [e] r = Add (q, eps) [l] t = Log (r) [b] y = MatMul (t, w)"""
    model = network(body, w=WEIGHT, eps=np.array(1e-10, np.float32))
    result = onnxq.quantize(model, preset="fp16", calibration=feeds(), benchmark=False)
    assert {"a", "p", "e"} <= {name for name, _, _ in result.kept_float}
    assert "b" not in {name for name, _, _ in result.kept_float}


def test_what_the_user_excludes_stays_float32() -> None:
    result = onnxq.quantize(loud(), preset="fp16", exclude=["b"], calibration=feeds(), benchmark=False)
    assert {name: reason for name, _, reason in result.kept_float}["b"] == "excluded by --exclude"


def test_packed_weights_with_float16_in_and_out() -> None:
    wide = RNG.standard_normal((32, 512)).astype(np.float32) / 6
    back = RNG.standard_normal((512, 32)).astype(np.float32) / 20
    model = network("[a] h = MatMul (x, w) [r] k = Relu (h) [b] y = MatMul (k, v)", w=wide, v=back)
    result = onnxq.quantize(model, preset="w4", float_type="float16", calibration=feeds(), benchmark=False)
    assert result.model is not None
    packed = [node for node in result.model.graph.node if node.op_type == "MatMulNBits"]
    assert packed
    types = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert all(types[node.input[2]] == onnx.TensorProto.FLOAT16 for node in packed)
    assert result.float_type == "float16"


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_packed_weights_that_stay_float32_are_right_without_optimizations(kind: str) -> None:
    """Their kernel packs integers and scales as it loads, and takes wrong scales where a Cast makes them."""
    text = """g (int64[B,S] ids) => (float[S,B,65] y) {
        [emb] e = Gather (table, ids) [t] x = Transpose <perm = [1,0,2]> (e)
        [rnn] h, hn = LSTM <hidden_size = 128> (x, w, r, b) [s] k = Squeeze (h, one) [out] y = MatMul (k, v) }"""
    shapes = {"table": (65, 128), "w": (1, 512, 128), "r": (1, 512, 128), "b": (1, 1024), "v": (128, 65)}
    constants = {name: RNG.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    model = build(text, **constants, one=np.array([1]))
    samples = [{"ids": RNG.integers(0, 65, (1, 16))} for _ in range(4)]
    result = onnxq.quantize(model, preset="w4", float_type=kind, calibration=samples, benchmark=False, force=True)
    assert result.model is not None
    packed = {node.name: node for node in result.model.graph.node if node.op_type == "MatMulNBits"}
    assert "out" in packed and not any("optimizations off" in warning for warning in result.warnings)
    content = result.model.SerializeToString()
    got = [open_session(content, threads=1, optimize=optimize).run(samples[0])[0] for optimize in (True, False)]
    np.testing.assert_allclose(got[1], got[0], atol=1e-2)


def test_a_float16_model_goes_out_in_the_type_that_is_asked_for() -> None:
    proto = build(
        "g (float16[n, 32] x) => (float16[n, 32] y) { [a] h = MatMul (x, w) [b] y = Relu (h) }",
        w=WEIGHT.astype(np.float16),
    )
    samples = [{"x": feed["x"].astype(np.float16)} for feed in feeds()]
    half = onnxq.quantize(proto, preset="fp16", calibration=samples, benchmark=False)
    assert half.model is not None
    assert [node.op_type for node in half.model.graph.node] == ["MatMul", "Relu"]
    brain = onnxq.quantize(proto, preset="bf16", calibration=samples, benchmark=False)
    assert brain.model is not None
    assert brain.model.graph.initializer[0].data_type == onnx.TensorProto.BFLOAT16
    assert brain.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_inputs_and_outputs_in_float16(digits: Path, tmp_path: Path) -> None:
    result = onnxq.quantize(digits, tmp_path / "h.onnx", preset="fp16", keep_io=False, benchmark=False)
    graph = onnx.load(tmp_path / "h.onnx").graph
    types = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types == {onnx.TensorProto.FLOAT16}
    assert "Cast" not in {node.op_type for node in graph.node}
    assert result.sqnr_db is not None
    assert result.sqnr_db > 50
    assert onnxq.compare(digits, tmp_path / "h.onnx").sqnr_db > 50


def test_the_report_has_size_and_differences(digits: Path, tmp_path: Path) -> None:
    result = onnxq.quantize(digits, tmp_path / "h.onnx", preset="fp16", benchmark=False)
    assert result.size_after < 0.55 * result.size_before
    page = result.summary()
    assert "fp16 (float16, for cpu)" in page
    assert "difference  mean" in page


@pytest.mark.parametrize(("order", "sizes"), [("1, 0, 2", (3, 5, 32)), ("1, 2, 0", (32, 5, 32))])
def test_a_pair_that_brings_the_runtime_down_stays_float32(order: str, sizes: tuple[int, ...]) -> None:
    proto = build(
        "g (float[a, b, 32] x) => (float[d, e, 32] y)"
        f" {{ [e] h = MatMul (x, w) [t] k = Transpose <perm = [{order}]> (h) [m] y = MatMul (k, w) }}",
        w=WEIGHT,
    )
    samples = [{"x": RNG.standard_normal(sizes).astype(np.float32)} for _ in range(3)]
    result = onnxq.quantize(proto, preset="fp16", calibration=samples, benchmark=False)
    assert {name for name, _, _ in result.kept_float} == {"t", "m"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "w8a8", "float_type": "float16"}, "--float-type float16: does nothing with preset w8a8"),
        ({"preset": "fp16", "float_type": "bfloat16"}, "--float-type bfloat16: does nothing with preset fp16"),
        ({"preset": "w4", "store_only": True}, "--store-only: is about float16 and bfloat16"),
        ({"preset": "w4", "keep_io": False}, "--no-keep-io: is about float16 and bfloat16"),
        ({"preset": "bf16", "keep_io": False}, "--no-keep-io: onnxruntime neither takes bfloat16"),
        ({"preset": "fp16", "bits": 4}, "--bits 4: does nothing with preset fp16"),
        ({"preset": "fp16", "float_type": "fp8"}, "--float-type: no 'fp8'"),
    ],
)
def test_options_that_do_not_go_together(digits: Path, tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        onnxq.quantize(digits, tmp_path / "x.onnx", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "x.onnx").exists()


def test_types_that_onnx_does_not_know_follow_from_what_is_read() -> None:
    """Without samples there is no run that would show them."""
    text = """net (float[n, 32] x) => (float[n, 32] y) { [a] f = com.microsoft.FusedMatMul <alpha = 0.5> (x, w)
        [m] k = Mul (f, v) [b] y = MatMul (k, w) }"""
    model = build(text, imports=', "com.microsoft": 1', w=WEIGHT, v=WEIGHT[0])
    result = onnxq.quantize(model, preset="fp16", exclude=["m"], benchmark=False)
    assert {node.name for node in result.plan.nodes.values() if node.action == "half"} == {"a", "b"}


def test_what_reads_a_type_that_is_not_known_stays_float32() -> None:
    text = """net (float[n, 32] x) => (float[n, 32] y) { [t] f = ThresholdedRelu (x) [m] k = Mul (f, v)
        [b] y = MatMul (k, w) }"""  # onnxruntime runs ThresholdedRelu in operator sets that onnx does not know it in
    result = onnxq.quantize(build(text, opset=8, ir=4, w=WEIGHT, v=WEIGHT[0]), preset="fp16", benchmark=False)
    kept = {name: reason for name, _, reason in result.kept_float}
    assert {"t", "m"} <= set(kept)
    assert "types are not known" in kept["m"]


@pytest.mark.parametrize("keep_io", [True, False])
def test_sequences_whose_types_are_not_known_stay_float32(keep_io: bool) -> None:
    text = """net (float[n, 32] x) => (float[n, 32] y) { [a] h = MatMul (x, w) p = SplitToSequence <axis = 1> (h)
        q = Identity (p) c = ConcatFromSequence <axis = 1> (q) [b] y = MatMul (c, w) }"""
    result = onnxq.quantize(build(text, w=WEIGHT), preset="fp16", keep_io=keep_io, benchmark=False)
    assert {node.name for node in result.plan.nodes.values() if node.action == "half"} == {"a", "b"}


def test_packed_weights_in_bodies_stay_float32() -> None:
    """ONNX Runtime's kernel of int8 activations gives zeros there with scales of 16 bits."""
    text = """net (float[2, 64] x) => (float[2, 64] y) { n = Constant <value = int64 {2}> ()
        y = Loop (n, , x) <body = b (int64 i, bool go, float[2, 64] s) => (bool goes, float[2, 64] next) {
            goes = Identity (go) [g] t = Sigmoid (s) [a] d = MatMul (t, w) [h] next = Tanh (d) }> }"""
    model = build(text, w=RNG.standard_normal((64, 64)).astype(np.float32) / 4)
    samples = [{"x": RNG.standard_normal((2, 64)).astype(np.float32)} for _ in range(4)]
    options = {"float_type": "float16", "block_size": 16, "include": ["*"], "benchmark": False}
    result = onnxq.quantize(model, preset="w4", calibration=samples, **options)  # type: ignore[arg-type]
    assert result.sqnr_db is not None and result.sqnr_db > 15


@pytest.mark.parametrize("square", ["Pow (s, two)", "Mul (s, s)"])
def test_norms_that_are_written_out(square: str) -> None:
    """ONNX Runtime joins them, and leaves out a Cast in front of them that is not the one it looks for."""
    body = f"""m = ReduceMean <axes = [-1]> (x) s = Sub (x, m) p = {square} v = ReduceMean <axes = [-1]> (p)
        e = Add (v, small) r = Sqrt (e) d = Div (s, r) g = Mul (d, gain) b = Add (g, gain) y = MatMul (b, w)"""
    numbers = {"two": np.float32(2), "small": np.float32(1e-3)}
    used = {name: number for name, number in numbers.items() if name != "two" or "two" in square}
    model = network(body, w=WEIGHT, gain=WEIGHT[0], **used)  # type: ignore[arg-type]
    result = onnxq.quantize(model, preset="fp16", calibration=feeds(), benchmark=False)
    assert result.sqnr_db is not None and result.sqnr_db > 45


def test_a_norm_that_the_runtime_writes_out_wrongly_stays_float32() -> None:
    text = """net (float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
        [a] h = Conv <pads = [4, 4, 4, 4]> (x, w) [n] m = MeanVarianceNormalization (h)
        [b] y = Conv <pads = [4, 4, 4, 4]> (m, w) }"""
    model = build(text, w=RNG.standard_normal((4, 4, 9, 9)).astype(np.float32) / 20)
    result = onnxq.quantize(model, preset="fp16", benchmark=False)
    assert {name for name, _, _ in result.kept_float} >= {"n"}
