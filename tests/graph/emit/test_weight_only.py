"""Every form of packed weights, run in ONNX Runtime and compared with the dequantized reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.core.affine import dequantize
from onnxq.graph import walk
from onnxq.graph.emit.apply import emit
from onnxq.graph.emit.rewrite import Rewrite
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.plan.make_plan import ModelFacts, make_plan
from onnxq.plan.placement.select import Choice
from onnxq.plan.solve import Solution, solve
from onnxq.plan.weights.constants import Weights
from onnxq.plan.weights.weight_only import needed_opset, plan_weight, weight_rewrite
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.targets import target_named
from tests.graph.build import build
from tests.runtime_version import before, needs_runtime

RNG = np.random.default_rng(7)
JOINS_ALL = not before("1.28")
"""Whether the runtime makes MatMulNBits of a DQ in front of a Gemm, and where blocks leave a rest."""
PACKED_TWO = needs_runtime("1.28", "makes no MatMulNBits of 2 bits of Q and DQ")
BLOCK_SIZES = {2: (32, 128, 0), 3: (32, 0), 4: (16, 32, 256, 0), 8: (16, 64, 0)}
FORMS = [
    pytest.param(bits, block, symmetric, form, marks=[PACKED_TWO] * (bits == 2))
    for bits, blocks in BLOCK_SIZES.items()
    for block in blocks
    for symmetric in (True, False)
    for form in ("qdq", "qoperator")
]


def quantized(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Solution, onnx.ModelProto]:
    """(the quantized model, its numbers, the prepared float model); nodes are named with ``include`` to insist."""
    recipe = Recipe(**{"preset": "w4", **options})
    loaded = io.load(model)
    prepare(loaded, min_opset=max(13, needed_opset(recipe)))
    float_model = io.to_proto(loaded.clone())
    sources = {node.name or "": (node.name or "",) for node in walk.all_nodes(loaded.graph)}
    plan = make_plan(loaded, recipe, target_named("cpu"), ModelFacts({}, {}, sources))
    solution = solve(loaded, plan, None)
    emit(loaded, solution.rewrite, recipe.format or "qdq")
    result = io.to_proto(loaded)
    onnx.checker.check_model(result)
    return result, solution, float_model


def run(model: onnx.ModelProto, feed: dict[str, Any], path: Path | None = None, *, optimize: bool = True) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if path is not None:
        options.optimized_model_filepath = str(path)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def unfolded(solution: Solution, node: str) -> Any:
    """The weight of a node as its integers stand for it, (out, in)."""
    (tensor,) = solution.rewrite.weights[node].constants.values()
    return dequantize(tensor.values, tensor.params)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("bits", "block", "symmetric", "form"), FORMS)
@pytest.mark.parametrize("inputs", [64, 301], ids=["even", "uneven"])
def test_matmul_equals_its_dequantized_weight(
    bits: int, block: int, symmetric: bool, form: str, inputs: int, tmp_path: Path
) -> None:
    weight = RNG.standard_normal((inputs, 20)).astype(np.float32)
    model = build("g (float[B, S, C] x) => (float[B, S, 20] y) { [layer] y = MatMul(x, w) }", w=weight)
    level = 0 if form == "qoperator" else 4
    result, solution, _ = quantized(
        model, bits=bits, block_size=block, symmetric=symmetric, format=form, accuracy_level=level, include=("layer",)
    )
    x = RNG.standard_normal((2, 3, inputs)).astype(np.float32)
    expected = x @ unfolded(solution, "layer").T
    for optimize in (True, False):
        (actual,) = run(result, {"x": x}, tmp_path / f"{optimize}.onnx", optimize=optimize)
        close(actual, expected)
    fused = [node.op_type for node in onnx.load(tmp_path / "True.onnx").graph.node]
    if JOINS_ALL or form == "qoperator":
        assert fused == ["MatMulNBits"]


def test_integers_and_scales_take_the_space_they_should() -> None:
    weight = RNG.standard_normal((128, 64)).astype(np.float32)
    model = build("g (float[B, 128] x) => (float[B, 64] y) { [layer] y = MatMul(x, w) }", w=weight)
    result, _, _ = quantized(model, symmetric=False, accuracy_level=1)
    stored = {i.name: tuple(i.dims) for i in result.graph.initializer}
    assert stored == {"w_packed": (64, 4, 16), "w_scale": (64, 4), "w_zero_point": (64, 2)}
    (node,) = result.graph.node
    assert (node.name, node.op_type, list(node.output)) == ("layer", "MatMulNBits", ["y"])
    attributes = {a.name: a.i for a in node.attribute}
    assert attributes == {"K": 128, "N": 64, "bits": 4, "block_size": 32, "accuracy_level": 1}


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("bias", [(24,), (1, 24), (), (5, 24), (5, 1)], ids=str)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(form: str, bias: tuple[int, ...], transposed: int, tmp_path: Path) -> None:
    weight = RNG.standard_normal((24, 70) if transposed else (70, 24)).astype(np.float32)
    gemm = f"Gemm<transB={transposed}, alpha=0.5, beta=2.0>(x, w, b)"
    model = build(
        "g (float[5, 70] x) => (float[5, 24] y) { [layer] y = " + gemm + " }",
        w=weight,
        b=RNG.standard_normal(bias).astype(np.float32),
    )
    options = {"accuracy_level": 0} if form == "qoperator" else {}
    result, solution, float_model = quantized(model, format=form, **options)
    tensor = unfolded(solution, "layer")
    prepared = float_model.graph
    node = next(node for node in prepared.node if node.name == "layer")
    index = next(i for i, t in enumerate(prepared.initializer) if t.name == node.input[1])
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    rounded = onnx.numpy_helper.from_array(np.ascontiguousarray(tensor if turned else tensor.T), node.input[1])
    prepared.initializer[index].CopyFrom(rounded)
    x = RNG.standard_normal((5, 70)).astype(np.float32)
    (expected,) = run(float_model, {"x": x})
    for optimize in (True, False):
        (actual,) = run(result, {"x": x}, tmp_path / f"{optimize}.onnx", optimize=optimize)
        if form == "qdq" and any(node.op_type == "MatMulNBits" for node in result.graph.node):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=0.02 * np.abs(expected).max())
        else:
            close(actual, expected)
    if JOINS_ALL or form == "qoperator" or bias in ((5, 24), (5, 1)):
        assert "MatMulNBits" in [node.op_type for node in onnx.load(tmp_path / "True.onnx").graph.node]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [64, 100, 51])
def test_embedding(bits: int, symmetric: bool, width: int) -> None:
    table = RNG.standard_normal((40, width)).astype(np.float32)
    model = build("g (int64[B, S] ids) => (float[B, S, W] y) { [emb] y = Gather(t, ids) }", t=table)
    result, solution, _ = quantized(model, bits=bits, symmetric=symmetric)
    (node,) = result.graph.node
    stored = {a.name: a.i for a in node.attribute}
    assert (node.op_type, stored["bits"]) == ("GatherBlockQuantized", 8 if width % 2 else max(bits, 4))
    ids = np.array([[0, 3, 39], [-1, 7, 7]])
    for optimize in (True, False):
        (actual,) = run(result, {"ids": ids}, optimize=optimize)
        np.testing.assert_array_equal(actual, unfolded(solution, "emb")[ids])


TIED = needs_runtime("1.28", "computes with affine weights of a table wrongly where they are shared")


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=TIED)])
def test_tied_embedding_and_output_layer_share_their_integers(transposed: bool, symmetric: bool) -> None:
    table = RNG.standard_normal((40, 96)).astype(np.float32)
    head = (
        "tt = Transpose<perm=[1, 0]>(t) [head] y = MatMul(e, tt)" if transposed else "[head] y = Gemm<transB=1>(e, t)"
    )
    model = build("g (int64[B] ids) => (float[B, 40] y) { [emb] e = Gather(t, ids) " + head + " }", t=table)
    result, solution, _ = quantized(model, symmetric=symmetric, accuracy_level=0)
    large = [i.name for i in result.graph.initializer if np.prod(i.dims) >= table.size // 2]
    assert len(large) == 1
    ids = np.array([0, 3, 39])
    whole = unfolded(solution, "head")
    for optimize in (True, False):
        (actual,) = run(result, {"ids": ids}, optimize=optimize)
        close(actual, whole[ids] @ whole.T)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_shared_weight_is_quantized_and_stored_once(form: str, tmp_path: Path) -> None:
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    model = build("g (float[B, 64] x) => (float[B, 64] y) { [a] h = MatMul(x, w) [b] y = MatMul(h, w) }", w=weight)
    result, solution, _ = quantized(model, format=form)
    first, second = (solution.rewrite.weights[name].constants[1] for name in "ab")
    assert first is second
    assert len(result.graph.initializer) == 2
    run(result, {"x": np.zeros((1, 64), np.float32)}, tmp_path / "m.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node] == ["MatMulNBits"] * 2


HALVES = needs_runtime("1.28", "has no MatMulNBits of 2 bits in float16")


@pytest.mark.parametrize("bits", [pytest.param(2, marks=HALVES), 4, 8])
def test_half_precision(bits: int) -> None:
    weight = RNG.standard_normal((100, 20)).astype(np.float16)
    model = build("g (float16[B, 100] x) => (float16[B, 20] y) { [layer] y = MatMul(x, w) }", w=weight)
    result, solution, _ = quantized(model, bits=bits, accuracy_level=0, include=("layer",))
    x = RNG.standard_normal((3, 100)).astype(np.float16)
    expected = x.astype(np.float32) @ unfolded(solution, "layer").T
    for optimize in (True, False):
        (actual,) = run(result, {"x": x}, optimize=optimize)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [8, 13, 23])
def test_operator_sets(opset: int) -> None:
    weight = RNG.standard_normal((64, 32)).astype(np.float32)
    model = build("g (float[B, 64] x) => (float[B, 32] y) { [layer] y = MatMul(x, w) }", opset=opset, ir=4, w=weight)
    if opset > 21:
        model.ir_version = 10
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    for form in ("qdq", "qoperator"):
        result, solution, _ = quantized(model, format=form)
        (actual,) = run(result, {"x": x}, optimize=False)
        np.testing.assert_allclose(actual, x @ unfolded(solution, "layer").T, rtol=0, atol=0.3)


@pytest.mark.parametrize("clamp", ["Relu(h)", "Clip(h, low, high)"])
def test_qdq_before_a_clamp_that_would_keep_it_float(clamp: str, tmp_path: Path) -> None:
    model = build(
        "g (float[B, 64] x) => (float[B, 32] y) { [layer] h = MatMul(x, w) r = " + clamp + " y = Exp(r) }",
        w=RNG.standard_normal((64, 32)).astype(np.float32),
        low=np.float32(0),
        high=np.float32(6),
    )
    result, _, _ = quantized(model, format="qdq")
    run(result, {"x": np.zeros((1, 64), np.float32)}, tmp_path / "m.onnx")
    assert "MatMulNBits" in [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node]


def test_weights_of_bodies() -> None:
    """Nodes of a branch are rewritten in the branch, with initializers that all graphs see."""
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    model = build(
        "g (float[B, 64] x, bool c) => (float[B, 64] y) { [outer] h = MatMul(x, w) y = If(c) <"
        "then_branch = t () => (float[B, 64] a) { [inner] a = MatMul(h, w) }, "
        "else_branch = e () => (float[B, 64] b) { [other] b = Gemm<transB=1>(h, v) }> }",
        w=weight, v=RNG.standard_normal((64, 64)).astype(np.float32),
    )  # fmt: skip
    loaded = io.load(model)
    prepare(loaded)
    nodes = {node.name or "": node for node in walk.all_nodes(loaded.graph)}
    recipe, target = Recipe(preset="w4", accuracy_level=0), target_named("cpu")
    packed, weights = {}, Weights()
    for name in ("outer", "inner", "other"):
        plan = plan_weight(nodes[name], PRESETS["w4"], recipe, target, Choice(None, False, Rule("")), 17, inside=True)
        assert not isinstance(plan, str)
        packed[name] = weight_rewrite(nodes[name], plan, weights, None)
    emit(loaded, Rewrite(weights=packed), "qdq")
    result = io.to_proto(loaded)
    onnx.checker.check_model(result)
    assert len(result.graph.initializer) == 4
    first, second = (dequantize(t.values, t.params) for t in (packed[n].constants[1] for n in ("outer", "other")))
    x = RNG.standard_normal((3, 64)).astype(np.float32)
    for optimize in (True, False):
        for branch in (True, False):
            (actual,) = run(result, {"x": x, "c": np.array(branch)}, optimize=optimize)
            close(actual, x @ first.T @ (first if branch else second).T)


def test_the_qdq_form_is_not_used_in_bodies() -> None:
    loaded = io.load(
        build("g (float[B, 64] x) => (float[B, 64] y) { [n] y = MatMul(x, w) }", w=np.ones((64, 64), "f4"))
    )
    recipe, choice = Recipe(preset="w4", format="qdq"), Choice(None, False, Rule(""))
    (node,) = loaded.graph
    found = [
        plan_weight(node, PRESETS["w4"], recipe, target_named("cpu"), choice, 21, inside=inside)
        for inside in (False, True)
    ]
    assert [plan.form for plan in found if not isinstance(plan, str)] == ["DequantizeLinear", "MatMulNBits"]
