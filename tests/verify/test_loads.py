from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import ModelError, VerificationError
from onnxq.verify import loads as room
from onnxq.verify.loads import check

GOOD = "g (float[N,W] x) => (float[N,W] y) { y = Relu(x) }"


def test_a_model_that_runs_passes_with_and_without_a_feed(content, tmp_path):
    check(content(GOOD))
    check(content(GOOD), {"x": np.ones((2, 3), np.float32)}, threads=1)
    (tmp_path / "m.onnx").write_bytes(content(GOOD))
    check(tmp_path / "m.onnx")


def test_what_the_checker_refuses_is_refused(content):
    model = onnx.load_from_string(content(GOOD))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(VerificationError, match=r"quantized model: the ONNX checker refuses it: .*nowhere"):
        check(model.SerializeToString())


def test_what_the_checker_says_of_the_float_model_too_is_let_pass(content):
    model = onnx.load_from_string(content(GOOD))
    model.graph.name = ""
    nameless = model.SerializeToString()
    with pytest.raises(VerificationError, match=r"Field 'name' of 'graph' is required to be non-empty"):
        check(nameless, original=content(GOOD))
    check(nameless, {"x": np.ones((2, 3), np.float32)}, original=nameless)
    model.graph.node[0].input[0] = "nowhere"
    model.graph.name = "g"
    with pytest.raises(VerificationError, match="nowhere"):
        check(model.SerializeToString(), original=nameless)


def test_a_model_that_does_not_load_or_run_names_the_level(content, tmp_path):
    unknown = onnx.load_from_string(content(GOOD))
    unknown.graph.node[0].domain = "my.ops"
    unknown.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    with pytest.raises(
        VerificationError, match=r"quantized model at ORT_DISABLE_ALL: .* cannot load it: operator 'Relu'"
    ):
        check(unknown.SerializeToString())
    square = "g (float[N,M] x) => (float[N,K] y) { y = MatMul(x, x) }"
    with pytest.raises(VerificationError, match=r"at ORT_DISABLE_ALL: onnxruntime cannot run it: .*mismatch"):
        check(content(square), {"x": np.ones((2, 3), np.float32)})


def test_the_optimized_level_is_checked_too(content, monkeypatch):
    # microsoft/onnxruntime#11576: some models load only without optimizations
    plain = room.open_session

    def fails_optimized(model, *, optimize, **options):
        if optimize:
            raise ModelError(f"{options['label']}: onnxruntime cannot load it: a fusion failed")
        return plain(model, optimize=optimize, **options)

    monkeypatch.setattr(room, "open_session", fails_optimized)
    with pytest.raises(VerificationError, match=r"quantized model at ORT_ENABLE_ALL: .* a fusion failed"):
        check(content(GOOD))


def test_inputs_and_outputs_of_open_rank_are_no_fault_and_hide_none(content):
    # the checker misses a shape that onnxruntime does not need
    model = onnx.load_from_string(content(GOOD))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    check(model.SerializeToString(), {"x": np.ones((2, 3), np.float32)})
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(VerificationError, match=r"the ONNX checker refuses it: .*nowhere"):
        check(model.SerializeToString())


def simplified(*names: str) -> onnx.ModelProto:
    """A chain of an operator that ONNX Runtime has in ONNX's domain and onnx does not know."""
    graph = onnx.parser.parse_graph("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    del graph.node[:]
    values = ["x", *(f"h{i}" for i in range(len(names) - 1)), "y"]
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "scale"))
    for name, source, result in zip(names, values, values[1:], strict=False):
        graph.node.append(
            onnx.helper.make_node("SimplifiedLayerNormalization", [source, "scale"], [result], name=name, axis=-1)
        )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_a_complaint_in_common_may_be_about_a_node_of_another_name():
    feed = {"x": np.ones((2, 4), np.float32)}
    check(simplified("a", "b").SerializeToString(), feed, original=simplified("", "").SerializeToString())


def test_a_complaint_more_of_the_same_kind_is_not_in_common():
    with pytest.raises(VerificationError, match=r"refuses it: SimplifiedLayerNormalization: No Op registered"):
        check(simplified("a", "b").SerializeToString(), original=simplified("a").SerializeToString())


def test_a_complaint_about_another_operator_is_not_in_common():
    other = simplified("a")
    other.graph.node.append(onnx.helper.make_node("Clip", ["y"], ["z"], bogus=1))
    with pytest.raises(VerificationError, match=r"refuses it: Clip: Unrecognized attribute: bogus"):
        check(other.SerializeToString(), original=simplified("a").SerializeToString())


def test_a_float_model_that_the_checker_refuses_is_quantized():

    proto = simplified("", "")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, 300, dtype=np.float32), "w"))
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["y", "w"], ["z"]))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 300]))
    result = onnxq.quantize(proto, preset="w8", benchmark=False)
    assert result.coverage["MatMul"]["quantized"] == 1
