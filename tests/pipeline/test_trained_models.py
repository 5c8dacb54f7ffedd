"""Exports of quantization-aware training, as each exporter writes them: grids are kept, and what lacks is added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.dtypes import QType
from onnxq.core.spec import QTensor
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.trained.lift import comes_trained, lift
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import load_and_prepare
from onnxq.pipeline.trained_model import take_training
from onnxq.targets import target_named
from tests.graph.build import Array, build, run, weights

FEEDS = [{"x": np.random.default_rng(i).normal(size=(2, 8, 8, 8)).astype(np.float32)} for i in range(6)]
RNG = np.random.default_rng(11)


def integers(*shape: int, low: int = -127, high: int = 127) -> Array:
    return RNG.integers(low, high + 1, shape).astype(np.int8)


def steps(count: int) -> Array:
    return RNG.uniform(0.0008, 0.0016, count).astype(np.float32)


def grid(name: str, scale: float, zero: int, dtype: type = np.int8) -> dict[str, Array]:
    return {f"s{name}": np.asarray(np.float32(scale)), f"z{name}": np.asarray(zero, dtype)}


PT2E = """g (float[N,8,8,8] x) => (float[N,10] y) {
    q0 = QuantizeLinear (x, sx, zx) d0 = DequantizeLinear (q0, sx, zx)
    w1 = DequantizeLinear <axis = 0> (i1, s1, z1)
    [conv1] c1 = Conv <pads = [1,1,1,1]> (d0, w1, b1)
    q1 = QuantizeLinear (c1, sc, zc) d1 = DequantizeLinear (q1, sc, zc)
    [relu1] r1 = Relu (d1)
    q2 = QuantizeLinear (r1, sr, zr) d2 = DequantizeLinear (q2, sr, zr)
    w2 = DequantizeLinear <axis = 0> (i2, s2, z1)
    [conv2] c2 = Conv <pads = [1,1,1,1]> (d2, w2, b2)
    [add] a = Add (d2, c2)
    q3 = QuantizeLinear (a, sa, za) d3 = DequantizeLinear (q3, sa, za)
    [relu2] r2 = Relu (d3)
    [pool] p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r2)
    [mean] m = ReduceMean <axes = [2,3], keepdims = 0> (p)
    q4 = QuantizeLinear (m, sm, zr) d4 = DequantizeLinear (q4, sm, zr)
    w3 = DequantizeLinear <axis = 0> (i3, s3, z3)
    [fc] y = Gemm <transB = 1> (d4, w3, b3) }"""


def pt2e() -> onnx.ModelProto:
    """As torchao's quantizer for x86 exports: integers as weights, float biases, one term of the Add without a grid."""
    given = grid("x", 0.03, 2) | grid("c", 0.02, 3) | grid("r", 0.01, -128) | grid("a", 0.02, -20)
    given |= {"sm": np.asarray(np.float32(0.006)), "z1": np.zeros(16, np.int8), "z3": np.zeros(10, np.int8)}
    given |= {"i1": integers(16, 8, 3, 3), "s1": steps(16), "i2": integers(16, 16, 3, 3), "s2": steps(16)}
    given |= {"i3": integers(10, 16), "s3": steps(10)}
    given |= {"b1": weights(16), "b2": weights(16, seed=1), "b3": weights(10)}
    return build(PT2E, **given)


def quantized(proto: onnx.ModelProto, *, data: bool = True, **options: Any) -> onnxq.QuantizeResult:
    return onnxq.quantize(
        proto, calibration=FEEDS if data else None, preset=options.pop("preset", "w8a8"), benchmark=False, **options
    )


def apart(result: onnxq.QuantizeResult, proto: onnx.ModelProto, name: str = "y") -> Array:
    assert result.model is not None
    found = [run(result.model.SerializeToString(), feed)[name] for feed in FEEDS]
    return np.abs(np.stack(found) - np.stack([run(proto.SerializeToString(), feed)[name] for feed in FEEDS]))


def parameters(model: onnx.ModelProto | None, op_type: str = "QuantizeLinear") -> dict[str, tuple[float, int]]:
    """(scale, zero point) of each value that one Q reads."""
    assert model is not None
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0]: (float(arrays[node.input[1]]), int(arrays[node.input[2]]))
        for node in model.graph.node
        if node.op_type == op_type and arrays[node.input[1]].size == 1
    }


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("format_", ["qdq", "qoperator"])
def test_a_pt2e_export_runs_on_integers_throughout(data: bool, format_: str) -> None:
    proto = pt2e()
    result = quantized(proto, data=data, format=format_)
    assert {node.action for node in result.plan.nodes.values()} == {"integer", "folded"}
    assert result.trained == {
        "kept": {"activations": 4, "weights": 3}, "given": {"activations": 5, "weights": 3},
        "added": {"activations": ["c2"], "biases": 3}, "refused": {},
    }  # fmt: skip
    expected = run(proto.SerializeToString(), FEEDS[0])["y"]
    assert apart(result, proto).max() < 0.06 * np.abs(expected).max()
    assert np.sqrt(np.mean(apart(result, proto) ** 2)) < 0.02 * np.std(expected)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}  # type: ignore[union-attr]
    given = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in ("i1", "i2", "i3")]
    for array in given:
        assert any(np.array_equal(array, found) or np.array_equal(array.T, found) for found in stored.values())


def test_scales_and_zero_points_are_those_of_training_as_the_targets_type() -> None:
    found = parameters(quantized(pt2e()).model)
    assert found["x"] == (np.float32(0.03), 130)
    assert found["r1"] == (np.float32(0.01), 0)
    assert found["r2"] == (np.float32(0.02), 108)  # the grid in front of the Relu, which ends at its zero point
    assert found["m"] == (np.float32(0.006), 0)


def test_what_has_no_scale_and_no_data_stays_float_and_says_so() -> None:
    text = PT2E.replace("[add] a = Add (d2, c2)", "[tanh] t = Tanh (c2) [add] a = Add (d2, t)")
    proto = pt2e()
    replaced = build(text, **{t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer})
    result = quantized(replaced, data=False)
    reason = "value 'c2' has no scale from training, and there is no calibration data to find one"
    assert result.plan.nodes["conv2"].reason == f"{reason}; its weight is stored as int8"
    assert quantized(replaced).plan.nodes["conv2"].action == "integer"


BREVITAS = """g (float[N,8,8,8] x) => (float[N,16,8,8] y) {
    q0 = QuantizeLinear (x, sx, zx) k0 = Clip (q0, low, high) d0 = DequantizeLinear (k0, sx, zx)
    qw = QuantizeLinear <axis = 0> (w1, s1, z1) kw = Clip (qw, low, high) e1 = DequantizeLinear <axis = 0> (kw, s1, z1)
    [conv1] c1 = Conv <pads = [1,1,1,1]> (d0, e1)
    [bn] n1 = BatchNormalization (c1, gamma, beta, mean, var)
    [relu] r1 = Relu (n1)
    q1 = QuantizeLinear (r1, sr, zr) k1 = Clip (q1, zero, most) d1 = DequantizeLinear (k1, sr, zr)
    v2 = QuantizeLinear <axis = 0> (w2, s1, z1) k2 = Clip (v2, low, high) e2 = DequantizeLinear <axis = 0> (k2, s1, z1)
    [conv2] c2 = Conv <pads = [1,1,1,1]> (d1, e2, b2)
    q2 = QuantizeLinear (c2, sy, zx) y = DequantizeLinear (q2, sy, zx) }"""


def brevitas() -> onnx.ModelProto:
    """QCDQ: a Clip of integers stands for fewer bits; BatchNormalization was not merged, one of its scales negative."""
    gamma = np.linspace(0.5, 1.5, 16).astype(np.float32)
    gamma[3] = -gamma[3]
    given = grid("x", 0.4, 0) | grid("r", 0.11, 0, np.uint8) | {"sy": np.asarray(np.float32(0.2))}
    given |= {"low": np.int8(-7), "high": np.int8(7), "zero": np.uint8(0), "most": np.uint8(15)}
    given |= {"s1": np.full(16, 0.02, np.float32) * np.linspace(0.9, 1.1, 16, dtype=np.float32)}
    given |= {"w1": weights(16, 8, 3, 3, low=-0.2, high=0.2), "w2": weights(16, 16, 3, 3, low=-0.2, high=0.2)}
    given |= {"gamma": gamma, "beta": weights(16), "mean": weights(16, seed=2), "var": np.full(16, 0.7, np.float32)}
    given |= {"b2": weights(16, seed=3), "z1": np.zeros(16, np.int8)}
    return build(BREVITAS, **{name: np.asarray(array) for name, array in given.items()})


@pytest.mark.parametrize("format_", ["qdq", "qoperator"])
def test_fewer_bits_of_brevitas_and_its_batch_normalization(format_: str) -> None:
    proto = brevitas()
    result = quantized(proto, data=False, format=format_)
    assert {name: node.action for name, node in result.plan.nodes.items()} == {
        "conv1": "integer", "relu": "folded", "conv2": "integer",
    }  # fmt: skip
    assert result.trained is not None and result.trained["kept"] == {"activations": 3, "weights": 2}
    off = apart(result, proto)
    assert off.max() < 1.01 * 0.2 and np.mean(off > 0.01) < 0.04  # a step of the output where a bias was rounded
    model = result.model
    assert model is not None
    small = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sorted(int(np.abs(array).max()) for array in small if array.size > 1000) == [7, 7]


SYMMETRIC = """g (float[N,8,8,8] x) => (float[N,16,8,8] y) {
    q0 = QuantizeLinear (x, sx, z) d0 = DequantizeLinear (q0, sx, z)
    qw = QuantizeLinear <axis = 0> (w1, s1, z1) e1 = DequantizeLinear <axis = 0> (qw, s1, z1)
    [conv1] c1 = Conv <pads = [1,1,1,1]> (d0, e1, b1)
    [relu] r1 = Relu (c1)
    q1 = QuantizeLinear (r1, sr, z) d1 = DequantizeLinear (q1, sr, z)
    v2 = QuantizeLinear <axis = 0> (w2, s1, z1) e2 = DequantizeLinear <axis = 0> (v2, s1, z1)
    [conv2] y = Conv <pads = [1,1,1,1]> (d1, e2, b1) }"""


def symmetric(text: str = SYMMETRIC, **more: Array) -> onnx.ModelProto:
    """As pytorch-quantization exports: every zero point is 0, and what a Relu gives uses half of its grid."""
    given = {"sx": np.asarray(np.float32(0.02)), "z": np.asarray(np.int8(0)), "sr": np.asarray(np.float32(0.006))}
    given |= {"s1": np.full(16, 0.0016, np.float32), "z1": np.zeros(16, np.int8), "b1": weights(16)}
    given |= {"w1": weights(16, 8, 3, 3, low=-0.2, high=0.2), "w2": weights(16, 16, 3, 3, low=-0.2, high=0.2)}
    return build(text, **(given | more))


def test_a_relu_on_a_symmetric_grid_is_a_clip_of_integers() -> None:
    proto = symmetric()
    result = quantized(proto, data=True)
    assert result.plan.nodes["conv1"].action == "integer" and result.plan.nodes["relu"].action == "folded"
    assert result.model is not None
    assert parameters(result.model)["r1"] == (np.float32(0.006), 128)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    clip = next(node for node in result.model.graph.node if node.op_type == "Clip")
    assert [int(arrays[name]) for name in clip.input[1:]] == [128, 255]
    assert result.trained is not None and result.trained["added"]["activations"] == ["y"]
    assert np.abs(apart(result, proto)).max() < 0.03 * np.abs(run(proto.SerializeToString(), FEEDS[0])["y"]).max()


KERAS = """g (float[N,8,8,8] x) => (float[N,16,8,8] y) {
    q0 = QuantizeLinear (x, sx, zx) d0 = DequantizeLinear (q0, sx, zx)
    qw = QuantizeLinear <axis = 3> (kernel, s1, z1) e1 = DequantizeLinear <axis = 3> (qw, s1, z1)
    t1 = Transpose <perm = [3,2,0,1]> (e1)
    [conv1] c1 = Conv <pads = [1,1,1,1]> (d0, t1, b1)
    [relu6] r1 = Clip (c1, lo, hi)
    q1 = QuantizeLinear (r1, sr, zr) y = DequantizeLinear (q1, sr, zr) }"""


def test_a_kernel_of_keras_is_turned_with_its_scales() -> None:
    given = grid("x", 0.03, -3) | grid("r", 6 / 255, -128) | {"lo": np.float32(0), "hi": np.float32(6)}
    given |= {"kernel": weights(3, 3, 8, 16, low=-0.3, high=0.3), "s1": 2 * steps(16), "z1": np.zeros(16, np.int8)}
    given |= {"b1": weights(16)}
    proto = build(KERAS, **{name: np.asarray(array) for name, array in given.items()})
    result = quantized(proto, data=False)
    assert {n.name: n.action for n in result.plan.nodes.values()} == {"conv1": "integer", "relu6": "folded"}
    off = apart(result, proto)
    assert off.max() < 1.01 * 6 / 255 and np.mean(off > 1e-4) < 0.01
    assert (np.float32(6 / 255), 0) in parameters(result.model).values()


def test_grids_that_no_kernel_takes_are_refused_with_the_reason() -> None:
    affine = symmetric(z1=np.arange(16, dtype=np.int8))
    result = quantized(affine)
    reason = "zero points of a weight are not the middle of its grid, and integer kernels here take no others"
    assert result.trained is not None and result.trained["refused"] == {reason: 2}
    assert f"trained grids, 2 not kept: {reason}" in result.warnings
    assert result.sqnr_db is not None and result.sqnr_db > 30
    per_channel = SYMMETRIC.replace("QuantizeLinear (r1, sr, z)", "QuantizeLinear <axis = 1> (r1, s1, z1)").replace(
        "DequantizeLinear (q1, sr, z)", "DequantizeLinear <axis = 1> (q1, s1, z1)"
    )
    result = quantized(symmetric(per_channel))
    reason = "an activation has scales for each channel, and integer kernels take one"
    assert result.trained is not None and result.trained["refused"] == {reason: 1}
    wide = SYMMETRIC.replace("(r1, sr, z)", "(r1, sr, wide)").replace("(q1, sr, z)", "(q1, sr, wide)")
    given = {t.name: onnx.numpy_helper.to_array(t) for t in symmetric().graph.initializer}
    result = quantized(build(wide, opset=21, ir=10, wide=np.asarray(np.int16(0)), **given))
    assert result.trained is not None
    assert result.trained["refused"] == {"an activation is int16, which is no uint8": 1}


@pytest.mark.parametrize(
    ("options", "named"),
    [({"equalize": True}, "--equalize"), ({"smooth": 0.5}, "--smooth"), ({"adaround": True}, "--adaround")],
)
def test_what_would_move_trained_weights_is_refused(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"{named}: the model brings the scales and weights"):
        quantized(pt2e(), **options)


def test_presets_without_fixed_scales_leave_the_model_as_it_is() -> None:
    result = quantized(symmetric(), preset="w8")
    assert result.trained is None and result.plan.counts("present")


def test_statistics_of_an_earlier_run_serve(tmp_path: Path) -> None:
    path, saved = tmp_path / "model.onnx", tmp_path / "saved.npz"
    onnx.save(symmetric(), path)
    onnxq.calibrate(path, saved, calibration=FEEDS)
    result = onnxq.quantize(path, statistics=saved, preset="w8a8", benchmark=False)
    assert result.plan.calibrated == ["y"]


def test_quantize_linear_moves_by_128_alone() -> None:
    """From int8 to uint8 every real stays, at both ends and in between."""
    proto = symmetric()
    model = io.load(proto)
    found = lift(model, QType.UINT8, QType.INT8)
    for grid_ in found.values.values():
        assert grid_.dtype is QType.UINT8 and (grid_.low, grid_.high) == (0, 255)
        assert grid_.zero_point.tolist() == [128]


def test_a_body_is_taken_apart_too_and_a_second_run_finds_nothing() -> None:
    text = """g (float[N,8] x, bool c) => (float[N,8] y) {
        y = If (c) <then_branch = t () => (float[N,8] a) {
            q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
            w = DequantizeLinear (i, s, z) a = Gemm (d, w, b) },
        else_branch = e () => (float[N,8] b1) { b1 = Neg (x) }> }"""
    constants = {"s": np.asarray(np.float32(0.02)), "z": np.asarray(np.int8(0)), "i": integers(8, 8), "b": weights(8)}
    model = io.load(build(text, **constants))
    assert comes_trained(model, 0)
    found = lift(model, QType.UINT8, QType.INT8)
    assert list(found.values) == ["x"] and len(found.weights) == 1
    assert not any("Linear" in node.op_type for node in walk.all_nodes(model.graph))
    assert not lift(model, QType.UINT8, QType.INT8).values


def test_shared_weights_keep_their_integers_at_each_reader() -> None:
    text = SYMMETRIC.replace("(w1, s1, z1)", "(w2, s1, z1)").replace("float[N,8,8,8] x", "float[N,16,8,8] x")
    proto = symmetric(text)
    prepared = load_and_prepare(proto, target_named("cpu"), Clock(None))
    take_training(prepared, target_named("cpu"))
    assert prepared.training is not None
    found: list[QTensor] = [prepared.training.given.weights[(name, 1)] for name in ("conv1", "conv2")]
    assert np.array_equal(found[0].values, found[1].values)
    assert all(tensor.params.scale.reshape(-1).tolist() == [np.float32(0.0016)] * 16 for tensor in found)


def test_complete_models_of_other_tools_are_left_to_their_makers() -> None:
    """Biases as int32 tell a model that was quantized after training, in which what is float was meant to be."""
    text = "g (float[N,8,8,8] x) => (float[N,16,8,8] y) { y = Conv (x, w, b) }"
    done = onnxq.quantize(
        build(text, w=weights(16, 8, 1, 1), b=weights(16)), calibration=FEEDS, preset="w8a8", benchmark=False
    )
    assert done.model is not None
    assert not comes_trained(io.load(done.model), 0)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # what the exporter itself is warned of
def test_an_export_of_torchao_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pt2e_module = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    torch.manual_seed(0)
    layers = torch.nn
    network = layers.Sequential(
        layers.Conv2d(8, 16, 3, padding=1), layers.BatchNorm2d(16), layers.ReLU(),
        layers.Conv2d(16, 16, 3, padding=1), layers.BatchNorm2d(16), layers.ReLU(),
        layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(16, 10),
    ).train()  # fmt: skip
    sample = (torch.from_numpy(FEEDS[0]["x"]),)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    trained = pt2e_module.prepare_qat_pt2e(torch.export.export(network, sample).module(), quantizer)
    optimizer = torch.optim.SGD(trained.parameters(), 1e-2)
    for feed in FEEDS:
        optimizer.zero_grad()
        (trained(torch.from_numpy(feed["x"])) ** 2).mean().backward()
        optimizer.step()
    converted = pt2e_module.convert_pt2e(trained)
    converted.training = False  # its Dropout and BatchNormalization are gone, and it refuses eval()
    program = torch.onnx.export(converted, sample, dynamo=True, input_names=["x"], output_names=["y"], verbose=False)
    proto = program.model_proto
    result = quantized(proto)
    assert result.trained is not None and result.trained["kept"]["weights"] == 3
    assert all(result.plan.nodes[name].action == "integer" for name in result.plan.nodes if "conv2d" in name)
    assert result.sqnr_db is not None and result.sqnr_db > 25
