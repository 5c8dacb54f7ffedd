"""float16, bfloat16 and float64 become float32 inside; inputs and outputs keep their types, weights their size."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.whole import widen
from tests.graph.build import Array, build, ops, run, weights

KINDS = {"float16": np.float16, "double": np.float64}
TYPES = {"float16": 10, "bfloat16": 16, "double": 11}


def net(edge: str, inner: str) -> onnx.ModelProto:
    text = f"""g ({edge}[N,3,8,8] x) => ({edge}[N,?,?] y, {edge}[N,16,8,8] r) {{
        h = Cast <to = {TYPES[inner]}> (x)
        c = Conv <pads = [1,1,1,1]> (h, w, b)
        rr = Relu (c)
        f = Reshape (rr, shape)
        m = MatMul (f, v)
        y = Cast <to = {TYPES.get(edge, 1)}> (m)
        r = Cast <to = {TYPES.get(edge, 1)}> (rr)
    }}"""
    proto = build(text, shape=np.array([0, -1, 64], np.int64))
    kind = {"float16": np.float16, "double": np.float64, "bfloat16": ml_dtypes.bfloat16}[inner]
    for name, array in {"w": weights(16, 3, 3, 3), "b": weights(16), "v": weights(64, 64)}.items():
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=TYPES[inner])
        tensor.raw_data = array.astype(kind).tobytes()
        proto.graph.initializer.append(tensor)
    return proto


def samples(edge: str, count: int = 6) -> list[dict[str, Array]]:
    kind = KINDS.get(edge, np.float32)
    return [{"x": weights(1, 3, 8, 8, seed=i).astype(kind)} for i in range(count)]


def signature(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(v.name, v.type.tensor_type.elem_type) for v in (*proto.graph.input, *proto.graph.output)]


@pytest.mark.parametrize("edge", ["float16", "float"])
def test_a_float16_model_computes_in_float32(edge: str) -> None:
    proto = net(edge, "float16")
    model = io.load(proto)
    report = prepare(model, widened=widen.EVERY)
    assert report.changes["widen"]
    inside = {value.dtype for value in walk.all_values(model.graph) if walk.is_float(value)}
    assert {str(kind) for kind in inside} == {"FLOAT"} | ({"FLOAT16"} if edge == "float16" else set())
    content = io.to_bytes(model)
    check_model(content)
    assert signature(io.to_proto(model)) == signature(proto)
    sample = samples(edge)[0]
    before, after = run(proto.SerializeToString(), sample), run(content, sample)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=0.02)
        assert after[name].dtype == array.dtype
    prepare(model, widened=widen.EVERY)
    assert io.to_bytes(model) == content


@pytest.mark.parametrize("preset", ["w8a8", "w8", "w8a8-dynamic", "w4", "w8a8-smooth"])
@pytest.mark.parametrize(
    ("edge", "inner"), [("float16", "float16"), ("float", "float16"), ("double", "double"), ("float", "bfloat16")]
)
def test_every_preset_takes_them(edge: str, inner: str, preset: str) -> None:
    proto = net(edge, inner)
    result = onnxq.quantize(proto, preset=preset, calibration=samples(edge), benchmark=False)
    assert result.model is not None
    assert signature(result.model) == signature(proto)
    assert result.sqnr_db is not None
    assert result.sqnr_db > (15 if preset == "w4" else 30)
    assert result.size_after < result.size_before
    assert not any("float16" in line for line in result.warnings)


def test_weights_that_stay_float_keep_their_size_and_name() -> None:
    proto = net("float16", "float16")
    result = onnxq.quantize(proto, preset="w8a8", exclude=["MatMul*"], calibration=samples("float16"), benchmark=False)
    assert result.model is not None
    stored = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert stored["v"] == onnx.TensorProto.FLOAT16
    cast = next(node for node in result.model.graph.node if node.input[0] == "v")
    assert cast.op_type == "Cast"


def test_a_weight_that_changed_stays_float32() -> None:
    model = io.load(net("float16", "float16"))
    widen.run(model, widen.EVERY)
    value = model.graph.initializers["v"]
    assert value.const_value is not None
    edited = value.const_value.numpy() * np.float32(1 / 3)
    value.const_value = type(value.const_value)(edited, name="v")
    assert widen.narrow(model) == 1  # w alone: b is small
    assert str(model.graph.initializers["v"].dtype) == "FLOAT"
    assert widen.narrow(model) == 0


def test_a_float32_model_is_left_alone() -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.ones((4, 400), np.float32)[:, :4])
    model = io.load(proto)
    assert widen.run(model, widen.EVERY) == 0
    assert widen.narrow(model) == 0
    assert io.to_proto(model) == io.to_proto(io.load(proto))


def test_bodies_attributes_and_shared_weights() -> None:
    text = """g (float16[2,4] x, bool flag) => (float16[2,4] y, float16[2,4] same) {
        z = ConstantOfShape <value = float16[1] {15360}> (s)
        a = Add (x, z)
        y = If (flag) <
            then_branch = t () => (float16[2,4] p) { p = MatMul (a, w) },
            else_branch = e () => (float16[2,4] q) { n = Cast <to = 10> (whole) u = MatMul (x, w)
                q = Add (n, u) }>
        same = Identity (x)
    }"""
    proto = build(text, w=weights(4, 4).astype(np.float16), s=np.array([2, 4], np.int64), whole=np.arange(4))
    model = io.load(proto)
    assert widen.run(model, widen.EVERY)
    content = io.to_bytes(model)
    check_model(content)
    for flag in (True, False):
        feed = {"x": weights(2, 4, seed=9).astype(np.float16), "flag": np.array(flag)}
        before, after = run(proto.SerializeToString(), feed), run(content, feed)
        assert all(np.allclose(before[name], after[name], atol=0.01) for name in before)
    assert ops(model)["If"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "g (float16[2] x) => (seq(float16[2]) y) { y = SequenceConstruct (x, x) }",
        "g (float16[2] x) => (float16[2] y) { b = BitCast <to = 5> (x) y = BitCast <to = 10> (b) }",
    ],
)
def test_what_cannot_be_widened_stays(text: str) -> None:
    proto = build(text)
    model = io.load(proto)
    assert widen.run(model, widen.EVERY) == 0
    assert io.to_proto(model) == io.to_proto(io.load(proto))


def test_bfloat16_at_the_edge_is_refused_with_the_remedy() -> None:
    proto = build("g (bfloat16[2,4] x) => (float[2,4] y) { y = Cast <to = 1> (x) }")
    with pytest.raises(onnxq.OnnxqError, match="'x' is bfloat16, which onnxruntime neither takes .* export the model"):
        onnxq.quantize(proto, preset="w8")


def test_statistics_of_a_float16_model_serve_every_preset(tmp_path) -> None:  # type: ignore[no-untyped-def]
    proto = net("float16", "float16")
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    onnxq.calibrate(path, calibration=samples("float16"), output=tmp_path / "stats.npz", moments=True)
    for preset in ("w8a8", "w4"):
        result = onnxq.quantize(
            path, tmp_path / f"{preset}.onnx", preset=preset, statistics=tmp_path / "stats.npz", benchmark=False
        )
        assert result.coverage


@pytest.mark.parametrize("preset", ["w8a8", "w8", "w8a8-dynamic"])
def test_casts_at_the_edge_are_nobodys_nodes(preset: str) -> None:
    proto = net("float16", "float16")
    mine = {(node.name, node.op_type) for node in io.load(proto).graph}
    result = onnxq.quantize(proto, preset=preset, calibration=samples("float16"), benchmark=False)
    assert result.coverage.get("Cast", {"total": 0})["total"] <= sum(op_type == "Cast" for _, op_type in mine)
    assert not {name for name, op_type, _ in result.kept_float if op_type == "Cast"} - {name for name, _ in mine}


@pytest.mark.parametrize("edge", ["float16", "double"])
def test_a_model_that_was_widened_is_diagnosed(edge: str) -> None:
    result = onnxq.diagnose(net(edge, edge), data=samples(edge), recipe=onnxq.Recipe(preset="w8a8", include=("*",)))
    assert {finding.op_type for finding in result.findings} >= {"Conv", "MatMul"}
    assert all((finding.output_sqnr_db or 0) > 20 for finding in result.findings)
