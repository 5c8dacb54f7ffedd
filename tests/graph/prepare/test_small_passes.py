"""Functions, inputs, constants, no-ops, dead nodes, duplicates, shapes: what each does and leaves alone."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from tests.graph.build import build, ops, prepared, weights

FUNCTION = """g (float[N,4] x) => (float[N,4] y) {
    a = local.block <k = 2> (x, w)
    y = local.block <k = 3> (a, w)
}
<domain: "local", opset_import: ["" : 17]>
block <k> (p, q) => (r) {
    m = MatMul (p, q)
    n = Identity (m)
    r = Relu (n)
}
"""


def test_functions_are_inlined() -> None:
    model, report = prepared(build(FUNCTION, imports=', "local": 1', w=weights(4, 4)))
    assert ops(model) == {"MatMul": 2, "Relu": 2}
    assert not model.functions
    assert "local" not in model.opset_imports
    assert report.notes == []


def test_functions_for_another_operator_set_stay_calls() -> None:
    model, report = prepared(build(FUNCTION.replace('["" : 17]', '["" : 16]'), imports=', "local": 1', w=weights(4, 4)))
    assert ops(model)["block"] == 2
    assert len(report.notes) == 1 and "'block' needs operator set 16 of 'ai.onnx', the model 17" in report.notes[0]


def test_initializers_are_no_inputs_afterwards() -> None:
    text = "g (float[2,4] x, float[4,4] w, float[4] b) => (float[2,4] y) { m = MatMul (x, w) y = Add (m, b) }"
    model, report = prepared(build(text, opset=8, ir=3, w=weights(4, 4), b=weights(4)), min_opset=13)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version >= 4
    assert report.changes["inputs"] == 2
    assert ops(model) == {"Gemm": 1}


def test_an_initializer_and_an_input_may_be_outputs() -> None:
    text = "g (float[2] x) => (float[2] x, float[2] w, float[2] y) { y = Add (x, w) }"
    proto = build(text, w=weights(2))
    model = io.load(proto)
    prepare(model)
    assert [value.name for value in model.graph.outputs] == ["x", "w", "y"]
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weights(2))
    onnx.checker.check_model(io.to_proto(model))


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1.5, 2.5}", np.array([1.5, 2.5], np.float32)),
        ("value_float = 2.5", np.float32(2.5)),
        ("value_floats = [1.5, 2.5]", np.array([1.5, 2.5], np.float32)),
    ],
)
def test_constants_are_lifted(attribute: str, expected: np.ndarray) -> None:
    text = f"g (float[2] x) => (float[2] y) {{ c = Constant <{attribute}> () y = Add (x, c) }}"
    model, _ = prepared(build(text))
    assert ops(model) == {"Add": 1}
    assert np.array_equal(model.graph.initializers["c"].const_value.numpy(), expected)


def test_constants_in_sibling_bodies_get_names_of_their_own() -> None:
    text = """g (float[2] x, bool flag) => (float[2] y) {
        y = If (flag) <
            then_branch = t () => (float[2] p) { c = Constant <value_floats = [1.0, 2.0]> () p = Add (x, c) },
            else_branch = e () => (float[2] p) { c = Constant <value_floats = [3.0, 4.0]> () p = Add (x, c) }>
    }"""
    model, _ = prepared(build(text))
    assert ops(model) == {"If": 1, "Add": 2}


def test_a_constant_that_is_an_output_stays() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] c) { c = Constant <value_floats = [1.0, 2.0]> () y = Add (x, c) }"
    model, _ = prepared(build(text))
    assert ops(model) == {"Constant": 1, "Add": 1}


def test_identity_and_dropout_disappear() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        a = Identity (x) b = Relu (a) c = Dropout (b) d = Cast <to = 1> (c) e = Neg (d) y = Identity (e)
    }"""
    model, _ = prepared(build(text))
    assert ops(model) == {"Relu": 1, "Neg": 1}
    assert model.graph[-1].outputs[0] is model.graph.outputs[0]


def test_identity_stays_where_an_output_needs_it() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] z, float[N,4] a, float[4] v) {
        y = Identity (x) a = Relu (x) z = Identity (a) v = Identity (w)
    }"""
    model, _ = prepared(build(text, w=weights(4)))
    assert ops(model) == {"Identity": 3, "Relu": 1}


def test_identity_of_an_outer_value_stays_in_its_body() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        r = Relu (x)
        y = If (flag) <then_branch = t () => (float[N,4] p) { p = Identity (r) },
                       else_branch = e () => (float[N,4] q) { s = Neg (r) q = Identity (s) }>
    }"""
    model, _ = prepared(build(text))
    assert ops(model) == {"If": 1, "Relu": 1, "Identity": 1, "Neg": 1}


def test_training_dropout_and_a_used_mask_stay() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, bool[N,4] m) { y, m = Dropout (x) }"
    model, _ = prepared(build(text))
    assert ops(model) == {"Dropout": 1}
    text = "g (float[N,4] x) => (float[N,4] y) { y = Dropout (x, r, t) }"
    model = io.load(build(text, r=np.array(0.5, np.float32), t=np.array(True)))
    prepare(model)
    assert ops(model) == {"Dropout": 1}


def test_a_cast_that_changes_the_type_stays() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { h = Cast <to = 10> (x) y = Cast <to = 1> (h) }"
    model, _ = prepared(build(text))
    assert ops(model) == {"Cast": 2}


def test_dead_nodes_and_initializers_are_dropped() -> None:
    text = """g (float[N,4] x, float[N,4] spare, bool flag) => (float[N,4] y) {
        dead = MatMul (x, w)
        deader = Relu (dead)
        gone = If (flag) <then_branch = t () => (float[N,4] p) { p = Relu (deader) },
                          else_branch = e () => (float[N,4] q) { q = Neg (deader) }>
        y = If (flag) <then_branch = t2 () => (float[N,4] p2) { unused = Neg (x) p2 = Relu (x) },
                       else_branch = e2 () => (float[N,4] q2) { q2 = Neg (x) }>
    }"""
    model, _ = prepared(build(text, w=weights(4, 4), lonely=weights(300)))
    assert ops(model) == {"If": 1, "Relu": 1, "Neg": 1}
    assert not model.graph.initializers
    assert [value.name for value in model.graph.inputs] == ["x", "spare", "flag"]


def test_optional_outputs_that_nothing_reads_are_dropped() -> None:
    text = """g (float[N, 2, 6, 6] x) => (float[?, ?, ?, ?] y, int64[?, ?, ?, ?] k) {
        a, i = MaxPool <kernel_shape = [2, 2]> (x)
        b, k = MaxPool <kernel_shape = [2, 2]> (a)
        y, z = Split <axis = 1> (b)
    }"""
    model, report = prepared(build(text))
    assert [[output.name for output in node.outputs] for node in model.graph] == [["a", ""], ["b", "k"], ["y", "z"]]
    assert report.changes["unused"] == 1


def test_custom_operators_stay_whatever_reads_them() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = my.ops.Print (x) b = my.ops.Scale <k = 2> (x) y = Relu (b) }"
    model = io.load(build(text, imports=', "my.ops": 1'))
    report = prepare(model)
    assert ops(model) == {"Print": 1, "Scale": 1, "Relu": 1}
    assert report.notes == []


def test_equal_large_initializers_become_one() -> None:
    nodes = "a = MatMul (x, w) b = MatMul (a, v) c = MatMul (b, u) y = MatMul (c, z)"
    text = f"g (float[N,32] x) => (float[N,32] y) {{ {nodes} }}"
    constants = {"w": weights(32, 32), "v": weights(32, 32), "u": weights(32, 32, seed=1), "z": weights(32, 32).copy()}
    constants["u"][0, 0] = constants["w"][0, 0]
    model, report = prepared(build(text, **constants))
    assert set(model.graph.initializers) == {"w", "u"}
    assert report.changes["deduplicate"] == 2


def test_initializers_that_are_outputs_are_not_merged() -> None:
    text = "g (float[N,32] x) => (float[N,32] y, float[32,32] v) { a = MatMul (x, w) y = MatMul (a, v) }"
    model, _ = prepared(build(text, w=weights(32, 32), v=weights(32, 32)))
    assert set(model.graph.initializers) == {"w", "v"}


def test_types_and_shapes_are_inferred_also_in_bodies() -> None:
    text = """g (float[N,3,8,8] x, bool flag) => (float[N,6,6,6] y) {
        c = Conv (x, w)
        r = Relu (c)
        y = If (flag) <then_branch = t () => (float[N,6,6,6] p) { i = Neg (r) p = Exp (i) },
                       else_branch = e () => (float[N,6,6,6] q) { q = Neg (r) }>
    }"""
    model, _ = prepared(build(text, w=weights(6, 3, 3, 3)))
    values = {value.name: value for value in walk.all_values(model.graph)}
    for name in ("c", "r", "i"):
        assert walk.dims(values[name]) == (None, 6, 6, 6)
        assert walk.is_float(values[name])


def test_failing_inference_is_a_note(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("incomplete\nsymbolic inference")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    with caplog.at_level(logging.WARNING):
        _, report = prepared(build("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"))
    assert report.notes == ["shape inference failed, types come from calibration: incomplete symbolic inference"]
    assert not caplog.records


def test_wrong_types_in_the_file_are_no_error() -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { r = Relu (x) y = Neg (r) }")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [7, 9, 11]))
    model = io.load(proto)
    prepare(model)
    assert ops(model) == {"Relu": 1, "Neg": 1}


def test_unnamed_and_equal_node_names() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        a = Relu (x)
        [same] b = Neg (a)
        [same] c = Neg (b)
        d = Relu (c)
        [Relu_3] e = Relu (d)
        y = If (flag) <then_branch = t () => (float[N,4] p) { p = Relu (e) },
                       else_branch = u () => (float[N,4] q) { [same] q = Neg (e) }>
    }"""
    model = io.load(build(text))
    prepare(model)
    names = [node.name for node in walk.all_nodes(model.graph)]
    assert names == ["Relu_0", "same", "same_1", "Relu_1", "Relu_3", "If_0", "Relu_3_", "same_2"]


def test_weights_in_external_files_are_prepared_and_not_changed(tmp_path: object) -> None:
    text = "g (float[N,32] x) => (float[N,16] y) { m = Gemm <transB = 1> (x, w, b) y = Mul (m, k) }"
    proto = build(text, opset=11, ir=6, w=weights(16, 32), b=weights(16), k=np.float32(2).reshape(1))
    path = tmp_path / "m.onnx"  # type: ignore[operator]
    onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=64)
    before = (tmp_path / "m.bin").read_bytes()  # type: ignore[operator]
    model = io.load(path)
    report = prepare(model)
    assert ops(model) == {"Gemm": 1}
    assert report.opset == (11, 13)
    expected = (weights(16, 32).T * np.float32(2)).astype(np.float32)
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), expected)
    assert (tmp_path / "m.bin").read_bytes() == before  # type: ignore[operator]
