"""Raising the operator set keeps outputs, names and subgraphs; what cannot be raised stays, with a note."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from tests.graph.build import build, ops, prepared, weights

SHAPE = "float[2,4,6,6]"
SCALES = "s = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()"
SMALLER = "s = Constant <value_floats = [1.0, 1.0, 0.6, 0.6]> ()"

# (operator set, type of the output, nodes)
CASES = [
    (8, "float[2,4,12,12]", 'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (x)'),
    (8, "float[2,4,12,12]", 'y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]> (x)'),
    (8, SHAPE, "y = BatchNormalization (x, c0, c1, c2, c3)"),
    (8, "float[2,4,3,3]", "y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)"),
    (8, SHAPE, "y = Sum (x, x)"),
    (8, SHAPE, "y = Softmax (x)"),
    (9, "float[2,4,2,6]", "y = Slice <axes = [2], starts = [1], ends = [3]> (x)"),
    (9, SHAPE, "y, mask = Dropout <ratio = 0.4> (x)"),
    (9, "float[2,4,9,9]", SCALES.replace("2.0, 2.0", "1.5, 1.5") + ' y = Upsample <mode = "nearest"> (x, s)'),
    (10, "float[2,4,12,12]", SCALES + ' y = Resize <mode = "nearest"> (x, s)'),
    (10, "float[2,4,12,12]", SCALES + ' y = Resize <mode = "linear"> (x, s)'),
    (10, "float[2,4,3,3]", SMALLER + ' y = Resize <mode = "nearest"> (x, s)'),
    (10, "float[2,4,3,3]", SMALLER + ' y = Resize <mode = "linear"> (x, s)'),
    (10, "float[2,4,8,6]", 'y = Pad <mode = "constant", pads = [0,0,1,0,0,0,1,0], value = 1.5> (x)'),
    (10, SHAPE, "y = Clip <min = 0.0, max = 6.0> (x)"),
    (10, SHAPE, "y = Clip <max = 6.0> (x)"),
    (11, "float[2,4,12,12]", SCALES + ' y = Resize <mode = "linear"> (x, roi, s)'),
    (11, SHAPE, "y = Softmax <axis = 3> (x)"),
    (11, SHAPE, "y = LogSoftmax <axis = 2> (x)"),
    (11, "float[2,4,1,1]", "y = ReduceSum <axes = [2, 3]> (x)"),
    (11, "float[2,4]", "y = ReduceMean <axes = [2, 3], keepdims = 0> (x)"),
    (11, "float[2,1,6,6]", "y, z = Split <axis = 1, split = [1, 3]> (x)"),
    (11, SHAPE, "a = Unsqueeze <axes = [0]> (x) y = Squeeze <axes = [0]> (a)"),
    (11, SHAPE, "a, b = TopK <axis = 3> (x, k) y = Pad (a, p)"),
    (12, SHAPE, "y = Dropout (x)"),
    (13, "float[2,4,12,12]", SCALES + ' y = Resize <mode = "linear"> (x, , s)'),
    (13, "float[2,4,3,3]", SMALLER + ' y = Resize <mode = "nearest"> (x, , s)'),
    (13, "float[2,2,6,6]", "y, z = Split <axis = 1> (x)"),
    (13, "float[2,4,1,1]", "y = ReduceMax <axes = [2, 3]> (x)"),
    (13, "float[2,4,1,1]", "y = ReduceL2 <axes = [2, 3]> (x)"),
    (
        13,
        "float[2,4,3,3]",
        "y = AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1], ceil_mode = 0> (x)",
    ),
    (13, SHAPE, "h = Cast <to = 10> (x) y = Cast <to = 1> (h)"),
    (16, "float[2,4,3,3]", 'y = GridSample <mode = "bilinear"> (x, grid)'),
    (17, SHAPE, "y = LayerNormalization <axis = 3> (x, e0)"),
    (12, SHAPE, "q = SpaceToDepth <blocksize = 2> (x) y = DepthToSpace <blocksize = 2> (q)"),
]


@pytest.mark.parametrize("target", [13, 21])
@pytest.mark.parametrize(("opset", "kind", "nodes"), CASES)
def test_outputs_are_kept(opset: int, kind: str, nodes: str, target: int) -> None:
    constants = {f"c{i}": weights(4, seed=i, low=0.5) for i in range(4)}
    constants |= {"k": np.array([5], np.int64), "p": np.array([0, 0, 0, 1, 0, 0, 0, 0], np.int64), "roi": weights(8)}
    constants |= {"grid": weights(2, 3, 3, 2), "e0": weights(6)}
    used = {name: array for name, array in constants.items() if f", {name}" in nodes}
    model, report = prepared(
        build(f"g ({SHAPE} x) => ({kind} y) {{ {nodes} }}", opset=opset, ir=6, **used), min_opset=target
    )
    assert report.notes == []
    assert model.opset_imports[""] == max(opset, target)


@pytest.mark.parametrize(
    ("scales", "reason"),
    [("s = Identity (q)", "has scales that are computed"), (SCALES.replace("2.0, 2.0", "2.0, 0.5"), "grows one axis")],
)
def test_a_resize_without_an_equivalent_is_not_converted(scales: str, reason: str) -> None:
    text = f'g ({SHAPE} x, float[4] q) => (float[a,b,c,d] y) {{ {scales} y = Resize <mode = "nearest"> (x, s) }}'
    model = io.load(build(text, opset=10, ir=5))
    report = prepare(model)
    assert model.opset_imports[""] == 10
    assert len(report.notes) == 1 and reason in report.notes[0]


def test_group_normalization_is_not_converted_to_another_meaning() -> None:
    text = f"g ({SHAPE} x) => ({SHAPE} y) {{ y = GroupNormalization <num_groups = 2> (x, s, b) }}"
    model = io.load(build(text, opset=18, s=weights(2), b=weights(2)))
    report = prepare(model, min_opset=21)
    assert model.opset_imports[""] == 18
    assert report.notes == [
        "the model stays at operator set 18 instead of 21: "
        "GroupNormalization 'GroupNormalization_0' has scales of another shape from operator set 21 on"
    ]


def test_last_axis_softmax_stays_one_node() -> None:
    text = "g (float[2,4,6] x) => (float[2,4,6] y) { y = Softmax <axis = 2> (x) }"
    model, _ = prepared(build(text, opset=11, ir=6))
    assert ops(model) == {"Softmax": 1}


def test_last_axis_softmax_behind_shape_arithmetic_stays_one_node() -> None:
    text = """g (float[2,4,6] x) => (float[2,4,6] y) {
        s = Shape (x)
        r = Reshape (x, s)
        y = Softmax <axis = 2> (r)
    }"""
    model, _ = prepared(build(text, opset=9, ir=6))
    assert ops(model) == {"Reshape": 1, "Softmax": 1}


def test_bodies_are_raised_with_the_main_graph() -> None:
    text = """g (bool flag, float[2,3,4] x) => (float[2,3,4] y) {
        y = If (flag) <
            then_branch = t () => (float[2,3,4] a) { q = Softmax <axis = 1> (x)
                u = Unsqueeze <axes = [0]> (q)
                a = Squeeze <axes = [0]> (u) },
            else_branch = e () => (float[2,3,4] b) { p = Mul (x, w)
                b = Softmax <axis = 1> (p) }
        >
    }"""
    model, report = prepared(build(text, opset=11, ir=6, w=weights(2, 3, 4)), min_opset=13)
    assert report.opset == (11, 13)
    assert ops(model)["Softmax"] == 2


# Subgraphs of models as PyTorch exports them, whose outputs declare a type and no shape.
BARE = {
    "Loop": """g (float[2,3] x, int64 n, bool k) => (float[2,3] y, float[4,2,3] s) {
        y, s = Loop (n, k, x) <body = b (int64 i, bool c, float[2,3] a) => (bool e, float[2,3] h, float[2,3] o) {
            e = Identity (c) u = Unsqueeze <axes = [0]> (a) t = Squeeze <axes = [0]> (u) h = Mul (t, w)
            o = Neg (h) }> }""",
    "If": """g (float[2,3] x, bool k) => (float[2,3] y) {
        y = If (k) <
            then_branch = t () => (float[2,3] p) { u = Unsqueeze <axes = [0]> (x) p = Squeeze <axes = [0]> (u) },
            else_branch = f () => (float[2,3] q) { q = Mul (x, w) }> }""",
    "Scan": """g (float[2,3] x) => (float[3] y, float[2,3] s) {
        y, s = Scan <num_scan_inputs = 1, body = b (float[3] a, float[3] i) => (float[3] h, float[3] o) {
            u = Unsqueeze <axes = [0]> (i) t = Squeeze <axes = [0]> (u) h = Add (a, t) o = Neg (h) }> (z, x) }""",
}


@pytest.mark.parametrize("kind", BARE)
def test_body_outputs_without_a_shape_do_not_hold_a_model_back(kind: str) -> None:
    extra = {"z": weights(3)} if kind == "Scan" else {"w": weights(2, 3)}
    proto = build(BARE[kind], opset=11, ir=6, **extra)
    for node in proto.graph.node:
        for attribute in node.attribute:
            for output in attribute.g.output:
                output.type.tensor_type.ClearField("shape")
    model, report = prepared(proto, min_opset=13)
    assert report.opset == (11, 13)
    assert report.notes == []
    assert ops(model)[kind] == 1


def test_large_weights_and_metadata_survive() -> None:
    text = """g (float[1,3,16,16] x) => (float[1,32,14,14] y) {
        [stem] c = Conv (x, w, b)
        [out] y = Relu (c)
    }"""
    proto = build(text, opset=11, ir=6, w=weights(32, 3, 3, 3), b=weights(32))
    proto.graph.node[0].metadata_props.add(key="origin", value="stem.py")
    model, _ = prepared(proto, min_opset=13)
    assert [node.name for node in model.graph] == ["stem", "out"]
    assert model.graph.node("stem").metadata_props == {"origin": "stem.py"}
    assert set(model.graph.initializers) == {"w", "b"}


def test_the_shapes_that_a_model_declares_for_its_outputs_stay() -> None:
    proto = build("g (float[N,3] x) => (float[rows,columns] y) { y = Relu (x) }", opset=11, ir=6)
    model, report = prepared(proto, min_opset=13)
    assert report.opset == (11, 13)
    assert [str(dim) for dim in model.graph.outputs[0].shape] == ["rows", "columns"]


def test_what_has_no_adapter_stays_with_a_note() -> None:
    proto = build("g (float[2,3] x) => (float[2,3] y) { y = NoSuchOperator (x) }", opset=11, ir=6)
    model = io.load(proto)
    report = prepare(model, min_opset=13)
    assert model.opset_imports[""] == 11
    assert report.opset == (11, 11)
    assert any("stays at operator set 11 instead of 13" in note for note in report.notes)
    assert all("\n" not in note for note in report.notes)


def test_a_failed_conversion_gives_the_weights_back() -> None:
    text = "g (float[2,300] x) => (float[2,300] y) { a = Mul (x, w)\n y = NoSuchOperator (a) }"
    model = io.load(build(text, opset=11, ir=6, w=weights(300)))
    prepare(model, min_opset=13)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weights(300))


def test_custom_operators_do_not_keep_a_model_back() -> None:
    text = "g (float[2,3] x) => (float[2,3] y) { a = com.microsoft.Gelu (x)\n y = Clip <min = 0.0> (a) }"
    model, report = prepared(build(text, opset=10, ir=5, imports=', "com.microsoft": 1'), min_opset=13)
    assert report.notes == []
    assert ops(model) == {"Gelu": 1, "Clip": 1}


def test_a_new_enough_model_is_not_converted() -> None:
    _, report = prepared(build("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=17), min_opset=13)
    assert report.opset == (17, 17)
    assert "opset" not in report.changes


@pytest.mark.parametrize(("ir", "opset", "expected"), [(3, 8, 7), (4, 13, 7), (8, 13, 8), (13, 17, 10), (8, 21, 10)])
def test_ir_version_fits_the_operator_set(ir: int, opset: int, expected: int) -> None:
    proto = build("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=opset, ir=ir)
    model = io.load(proto)
    prepare(model)
    assert model.ir_version == expected
    onnx.checker.check_model(io.to_proto(model))


def test_why_it_stays_is_said_without_the_converters_source() -> None:
    proto = build("g (float[2,3] x) => (float[2,3] y) { y = ThresholdedRelu (x) }", opset=9, ir=5)
    report = prepare(io.load(proto))
    assert report.notes == ["the model stays at operator set 9 instead of 13: onnx cannot convert ThresholdedRelu"]


@pytest.mark.parametrize("change", ["rename", "reorder", "add"])
def test_a_converter_that_changes_the_signature_is_not_believed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx.version_converter.convert_version

    def convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        result = real(proto, version)
        if change == "rename":
            result.graph.output[0].name = result.graph.node[0].output[0] = "other"
        elif change == "reorder":
            first, second = list(result.graph.input)
            del result.graph.input[:]
            result.graph.input.extend([second, first])
        else:
            result.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("more", 1, [1]))
        return result

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    proto = build("g (float[2,3] x, float[2,3] z) => (float[2,3] y) { y = Add (x, z) }", opset=11, ir=6)
    model = io.load(proto)
    report = prepare(model)
    assert report.opset == (11, 11)
    assert "onnx's converter changes the " in report.notes[0]
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "z", "y"]


def test_types_that_the_converter_forgets_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx.version_converter.convert_version

    def convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        result = real(proto, version)
        for value in (*result.graph.input, *result.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "unk__3"
        return result

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    model, report = prepared(build("g (float[N,3] x) => (float[M,3] y) { y = Relu (x) }", opset=11, ir=6))
    assert report.opset == (11, 13)
    assert [str(value.shape[0]) for value in (*model.graph.inputs, *model.graph.outputs)] == ["N", "M"]
