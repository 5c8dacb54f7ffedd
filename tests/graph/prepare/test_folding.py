"""Constant expressions become initializers of bounded size; quantized weights keep their DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.folding import evaluate, fold_constants
from tests.graph.build import build, ops, prepared, weights


@pytest.mark.parametrize(
    "chain",
    [
        "u = Reshape (w, s)",
        "u = Transpose <perm = [1, 0]> (w)",
        "a = Unsqueeze (w, zero) u = Squeeze (a, zero)",
        "u = Identity (w)",
        "a = Cast <to = 11> (w) u = Cast <to = 1> (a)",
        "u = Concat <axis = 0> (half, half)",
        "u = Slice (long, zero, four, zero)",
        "u, rest = Split <axis = 0, num_outputs = 2> (long)",
        "a = Mul (w, gain) n = ReduceL2 <axes = [1], keepdims = 1> (a) u = Div (a, n)",
        "p = MatMul (left, left) u = Add (w, p)",
        "i = Constant <value_ints = [3, 2, 1, 0]> () u = Gather (w, i)",
        "t = Transpose (w) i = Identity (t) r = Reshape (i, s) u = Flatten (r)",
    ],
)
def test_a_weight_behind_constants_becomes_an_initializer(chain: str) -> None:
    constants = {
        "w": weights(4, 4), "s": np.array([4, 4], np.int64), "zero": np.array([0], np.int64),
        "four": np.array([4], np.int64), "half": weights(2, 4), "long": weights(8, 4),
        "gain": weights(1, low=1, high=2),
        "left": weights(4, 4, seed=5),
    }  # fmt: skip
    used = {name: array for name, array in constants.items() if f"({name}" in chain or f", {name}" in chain}
    opset = 17 if "ReduceL2" in chain else 18
    model, _ = prepared(
        build(f"g (float[N,4] x) => (float[N,4] y) {{ {chain} y = MatMul (x, u) }}", opset=opset, **used)
    )
    assert ops(model) == {"MatMul": 1}
    assert walk.is_constant(model.graph[0].inputs[1])
    assert list(model.graph.initializers) == ["w" if chain == "u = Identity (w)" else "u"]


def test_the_opset_of_the_model_counts() -> None:
    chain = "a = Unsqueeze <axes = [0]> (w) u = Squeeze <axes = [0]> (a)"
    text = f"g (float[N,4] x) => (float[N,4] y) {{ {chain} y = MatMul (x, u) }}"
    model = io.load(build(text, opset=9, ir=4, w=weights(4, 4)))
    prepare(model, min_opset=9)
    assert ops(model) == {"MatMul": 1}


def test_a_body_is_folded() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        y = If (flag) <
            then_branch = t () => (float[N,4] p) { u = Transpose (w) p = MatMul (x, u) },
            else_branch = e () => (float[N,4] q) { u = Constant <value_floats = [1.0, 2.0]> ()
                v = Concat <axis = 0> (u, u)
                q = Mul (x, v) }>
    }"""
    model, _ = prepared(build(text, w=weights(4, 4)))
    assert ops(model) == {"If": 1, "MatMul": 1, "Mul": 1}


def test_a_shared_weight_is_kept_for_its_other_reader() -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { u = Transpose (w) y = MatMul (x, u) z = MatMul (x, w) }"
    model, _ = prepared(build(text, w=weights(4, 4)))
    assert ops(model) == {"MatMul": 2}
    assert set(model.graph.initializers) == {"w", "u"}


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Constant <value_ints = [1, 400, 400]> () c = ConstantOfShape (s)",
        "s = Constant <value_ints = [1, 400, 400]> () c = Expand (one, s)",
        "s = Constant <value_ints = [1, 400, 400]> () c = Tile (one, s)",
        "c = Add (row, column)",
        "c = MatMul (column, row)",
        "b = Constant <value_float = 0.0> () e = Constant <value_float = 1.6e5> () d = Constant <value_float = 1.0> () "
        "r = Range (b, e, d) c = Unsqueeze (r, zero)",
    ],
)
def test_a_result_that_would_blow_the_model_up_stays_computed(nodes: str) -> None:
    constants = {
        "one": weights(1, 1, 1), "row": weights(1, 1, 400), "column": weights(1, 400, 1),
        "zero": np.array([0], np.int64),
    }  # fmt: skip
    used = {name: array for name, array in constants.items() if f"({name}" in nodes or f", {name}" in nodes}
    proto = build(f"g (float[1] x) => (float y) {{ {nodes} y = Add (c, x) }}", **used)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = io.load(proto)
    prepare(model)
    assert len(io.to_bytes(model)) < 10_000
    assert walk.const_array(model.graph[-1].inputs[0]) is None


def test_small_results_are_folded() -> None:
    text = (
        "g (float[4] x) => (float[4] y) { s = Constant <value_ints = [4]> () c = ConstantOfShape (s) y = Add (x, c) }"
    )
    model, _ = prepared(build(text))
    assert ops(model) == {"Add": 1}


def test_huge_shapes_are_never_computed() -> None:
    nodes = "s = Constant <value_ints = [1000000000000]> () c = ConstantOfShape (s) y = Add (x, c)"
    model = io.load(build(f"g (float[1] x) => (float[M] y) {{ {nodes} }}"))
    prepare(model)
    assert ops(model) == {"ConstantOfShape": 1, "Add": 1}


def test_nonsense_constants_are_left_to_the_runtime() -> None:
    text = "g (float[N,4] x) => (float y) { u = Reshape (w, s) y = MatMul (x, u) }"
    proto = build(text, w=weights(4, 4), s=np.array([3, 5], np.int64))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = io.load(proto)
    prepare(model)
    assert ops(model)["Reshape"] == 1


def test_integer_division_of_negative_numbers_is_left_to_the_runtime() -> None:
    text = "g (int64[1] x) => (int64[1] y) { d = Div (a, b) y = Add (x, d) }"
    model, _ = prepared(build(text, a=np.array([-7], np.int64), b=np.array([2], np.int64)))
    assert ops(model) == {"Div": 1, "Add": 1}


def test_fixed_shapes_are_folded_and_dynamic_ones_stay() -> None:
    text = "g (float[{}] x) => (float[?] y) {{ r = Relu (x) s = Shape (r) y = Reshape (r, s) }}"
    fixed, _ = prepared(build(text.format("2,3").replace("float[?]", "float[2,3]")))
    assert ops(fixed) == {"Relu": 1, "Reshape": 1}
    dynamic, _ = prepared(build(text.format("N,3").replace("float[?]", "float[N,3]")))
    assert ops(dynamic) == {"Relu": 1, "Shape": 1, "Reshape": 1}


def test_random_operators_stay() -> None:
    model = io.load(build("g (float[2] x) => (float[2] y) { r = RandomUniform <shape = [2]> () y = Add (x, r) }"))
    prepare(model)
    assert ops(model) == {"RandomUniform": 1, "Add": 1}


def test_constant_outputs_stay() -> None:
    text = "g (float[4] x) => (float[4] y, float[4] c) { c = Neg (w) y = Add (x, c) }"
    model, _ = prepared(build(text, w=weights(4)))
    assert [value.name for value in model.graph.outputs] == ["y", "c"]


def qat(axis: str, scale: np.ndarray, zero: np.ndarray, kind: str) -> object:
    text = f"""g (float[N,3,8,8] x) => (float[N,6,6,6] y) {{
        q = QuantizeLinear <axis = {axis}> (w, s, z)
        d = DequantizeLinear <axis = {axis}> (q, s, z)
        qx = QuantizeLinear (x, sx, zx)
        dx = DequantizeLinear (qx, sx, zx)
        y = Conv (dx, d)
    }}"""
    scales = {"s": scale, "z": zero, "sx": np.float32(0.05), "zx": np.uint8(128)}
    return build(text, w=weights(6, 3, 3, 3), **{k: np.asarray(v) for k, v in scales.items()})


@pytest.mark.parametrize(
    ("axis", "scale", "zero"),
    [
        ("0", weights(6, low=0.002, high=0.01), np.zeros(6, np.int8)),
        ("1", np.float32(0.0078), np.uint8(128)),
    ],
)
def test_fake_quantized_weights_become_integers_and_keep_their_dequantization(
    axis: str, scale: np.ndarray, zero: np.ndarray
) -> None:
    proto = qat(axis, scale, zero, "int8")
    model, report = prepared(proto)
    assert ops(model) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "Conv": 1}
    assert report.has_qdq and report.qdq_nodes == 3
    stored = model.graph.initializers["q"].const_value.numpy()
    assert stored.dtype == np.asarray(zero).dtype
    proto.graph.output.add(name="q")
    expected = ort.InferenceSession(proto.SerializeToString()).run(["q"], {"x": np.zeros((1, 3, 8, 8), np.float32)})[0]
    assert np.array_equal(stored, expected)
    assert "w" not in model.graph.initializers


def test_a_float_model_has_no_qdq() -> None:
    _, report = prepared(build("g (float[2] x) => (float[2] y) { y = Relu (x) }"))
    assert not report.has_qdq


@pytest.mark.parametrize("op_type", sorted(evaluate.OPERATORS))
def test_every_operator_knows_its_size_before_it_is_computed(op_type: str) -> None:
    arguments = {
        "Reshape": "(a, s)", "Unsqueeze": "(a, k)", "Squeeze": "(a, k)", "Cast": "<to = 10> (a)", "CastLike": "(a, s)",
        "Concat": "<axis = 0> (a, a)", "Slice": "(a, k, l)", "QuantizeLinear": "(a, sc)", "Not": "(t)", "And": "(t, t)",
        "Or": "(t, t)", "Xor": "(t, t)", "Where": "(t, a, a)", "Range": "(f, g, h)", "ConstantOfShape": "(s)",
        "Expand": "(a, e)", "Tile": "(a, r)", "Gather": "(a, k)", "GatherElements": "(a, ix)", "MatMul": "(a, a)",
        "CumSum": "(a, z)", "Clip": "(a)", "Sum": "(a, a)", "Mean": "(a, a)", "Max": "(a, row)", "Min": "(a, row)",
        "Split": "<num_outputs = 2, axis = 1> (a)", "Mod": "<fmod = 1> (a, a)", "Pad": "(a, p)",
    }  # fmt: skip
    binary = ("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
    nodes = f"y = {op_type} {arguments.get(op_type, '(a, row)' if op_type in binary else '(a)')}"
    if op_type == "Split":
        nodes = nodes.replace("y =", "y, y2 =")
    constants = {
        "a": weights(4, 4, low=0.1), "s": np.array([2, 8], np.int64), "k": np.array([0], np.int64),
        "l": np.array([2], np.int64), "sc": np.float32(0.1), "t": np.ones((4, 4), bool), "f": np.int64(0),
        "g": np.int64(9), "h": np.int64(2), "e": np.array([3, 4, 4], np.int64), "r": np.array([2, 3], np.int64),
        "ix": np.zeros((2, 4), np.int64), "z": np.int64(1), "row": weights(1, 4, low=0.1),
        "p": np.array([1, 0, 2, 5], np.int64),
    }  # fmt: skip
    if op_type == "Squeeze":
        constants["a"] = weights(1, 4)
    text = f"g (float[1] x) => (float[1] o) {{ {nodes} o = Identity (x) }}"
    used = {name: np.asarray(a) for name, a in constants.items() if f"({name}" in nodes or f", {name}" in nodes}
    model = io.load(build(text, opset=18, **used))
    node = model.graph[0]
    inputs = fold_constants.constants_of(node)
    assert inputs is not None
    bound = evaluate.result_bytes(node, inputs)
    results = evaluate.evaluate(node, inputs, 18)
    assert results is not None and bound is not None
    assert sum(result.nbytes for result in results) <= bound

    proto = build(text, opset=18, **used)
    proto.graph.output.append(onnx.ValueInfoProto(name="y"))
    expected = ort.InferenceSession(proto.SerializeToString()).run(["y"], {"x": np.zeros(1, np.float32)})[0]
    np.testing.assert_allclose(results[0], expected, rtol=1e-6, atol=1e-7)
    assert results[0].dtype == expected.dtype


@pytest.mark.parametrize("nodes", ["w = ConstantOfShape <value = float[1] {0.25}> (s)", "w = Expand (quarter, s)"])
@pytest.mark.parametrize("between", ["", "Transpose"])
def test_a_large_weight_that_is_filled_becomes_an_initializer(nodes: str, between: str) -> None:
    turned = "u = Transpose (w)" if between else "u = Identity (w)"
    text = f"g (float[N,400] x) => (float[N,400] y) {{ {nodes} {turned} y = MatMul (x, u) }}"
    constants = {"s": np.array([400, 400], np.int64), "quarter": np.array([0.25], np.float32)}
    used = {name: array for name, array in constants.items() if name in nodes}
    model, _ = prepared(build(text, **used))
    assert ops(model) == {"MatMul": 1}
    assert walk.is_constant(model.graph[0].inputs[1])


def test_a_filled_weight_of_any_size_is_not() -> None:
    text = "g (float[N,9000] x) => (float[N,9000] y) { w = ConstantOfShape (s) y = MatMul (x, w) }"
    model = io.load(build(text, s=np.array([9000, 9000], np.int64)))
    prepare(model)
    assert ops(model)["ConstantOfShape"] == 1
