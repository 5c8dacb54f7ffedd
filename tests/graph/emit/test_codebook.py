"""Weights as indices into a table, run in ONNX Runtime and compared with the decoded reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.core.codebook import decode
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerTensor, TensorSpec
from onnxq.graph.files import io
from onnxq.plan.decisions import NodePlan
from onnxq.plan.placement.select import Choice
from onnxq.plan.weights.tables import plan_codebook
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build
from tests.graph.emit.test_weight_only import close, quantized, run

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("preset", ["nf4", "fp4"])
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("inputs", [64, 75])
@pytest.mark.parametrize("block", [None, 16, 0])
def test_matmul(preset: str, form: str, inputs: int, block: int | None, tmp_path: Path) -> None:
    weight = RNG.standard_normal((inputs, 21)).astype(np.float32)
    model = build("g (float[B, S, C] x) => (float[B, S, 21] y) { [layer] y = MatMul(x, w) }", w=weight)
    result, solution, _ = quantized(model, preset=preset, format=form, block_size=block)
    tensor = solution.rewrite.weights["layer"].codebooks[1]
    x = RNG.standard_normal((2, 3, inputs)).astype(np.float32)
    for optimize in (True, False):
        (actual,) = run(result, {"x": x}, tmp_path / f"{optimize}.onnx", optimize=optimize)
        close(actual, x @ decode(tensor).reshape(21, inputs).T)
    kinds = [node.op_type for node in onnx.load(tmp_path / "True.onnx").graph.node]
    assert kinds == (["MatMul"] if form == "qdq" or block == 0 else ["MatMulBnb4"])


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(form: str, transposed: int) -> None:
    weight = RNG.standard_normal((24, 70) if transposed else (70, 24)).astype(np.float32)
    gemm = f"Gemm<transB={transposed}, alpha=0.5, beta=2.0>(x, w, b)"
    bias = RNG.standard_normal(24).astype(np.float32)
    model = build("g (float[B, 70] x) => (float[B, 24] y) { [layer] y = " + gemm + " }", w=weight, b=bias)
    result, solution, _ = quantized(model, preset="nf4", format=form)
    tensor = solution.rewrite.weights["layer"].codebooks[1]
    x = RNG.standard_normal((5, 70)).astype(np.float32)
    decoded = decode(tensor).reshape(24, 70)
    folded = 1.0 if np.abs(decoded).max() < 0.75 * np.abs(weight).max() else 0.5  # whether alpha is in the weight
    for optimize in (True, False):
        (actual,) = run(result, {"x": x}, optimize=optimize)
        close(actual, folded * (x @ decoded.T) + 2 * bias)


LAYERS = {
    "matmul": ("float[B, 160] x", "MatMul(x, w)", (160, 21), (3, 160)),
    "gemm": ("float[B, 160] x", "Gemm<transB=1>(x, w)", (21, 160), (3, 160)),
    "conv": ("float[B, 16, 6, 6] x", "Conv(x, w)", (24, 16, 3, 3), (2, 16, 6, 6)),
    "deconv": ("float[B, 24, 6, 6] x", "ConvTranspose(x, w)", (24, 16, 3, 3), (2, 24, 6, 6)),
    "stacked": ("float[4, B, 40] x", "MatMul(x, w)", (4, 40, 21), (4, 3, 40)),
    "table": ("int64[B] x", "Gather(w, x)", (50, 130), (7,)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("preset", "per_channel", "block"),
    [("lut4", True, None), ("lut4", False, None), ("lut4", True, 64), ("lut8", True, None), ("nf4", True, 64)],
)
def test_tables_are_unfolded_at_load(
    name: str, preset: str, per_channel: bool, block: int | None, tmp_path: Path
) -> None:
    declared, operator, shape, sample = LAYERS[name]
    weight = RNG.standard_normal(shape).astype(np.float32)
    model = build("g (" + declared + ") => (float y) { [layer] y = " + operator + " }", w=weight)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result, solution, float_model = quantized(
        model, preset=preset, per_channel=per_channel, block_size=block, format="qdq"
    )
    tensor = next(iter(solution.rewrite.weights["layer"].codebooks.values()))
    rows = weight.shape[-1] if name == "matmul" else weight.shape[0]
    decoded = decode(tensor).reshape(rows, -1) if name != "stacked" else decode(tensor).reshape(weight.shape)
    index, old = next((i, t) for i, t in enumerate(float_model.graph.initializer) if np.prod(t.dims) == weight.size)
    turned = decoded.T if tuple(old.dims) == decoded.T.shape and "able" not in name else decoded
    whole = onnx.numpy_helper.from_array(np.ascontiguousarray(turned.reshape(list(old.dims))), old.name)
    float_model.graph.initializer[index].CopyFrom(whole)
    x = RNG.integers(0, 50, sample) if name == "table" else RNG.standard_normal(sample).astype(np.float32)
    (expected,) = run(float_model, {"x": x})
    for optimize in (True, False):
        (actual,) = run(result, {"x": x}, tmp_path / f"{optimize}.onnx", optimize=optimize)
        close(actual, expected)
    left = {node.op_type for node in onnx.load(tmp_path / "True.onnx").graph.node}
    assert left.isdisjoint({"Cast", "GatherElements", "Mul", "Slice"})
    stored = sum(len(t.raw_data) for t in result.graph.initializer)
    assert stored < weight.nbytes * (0.65 if preset == "lut8" or block else 0.4)


def test_below_operator_set_21_lut4_has_one_table_of_256() -> None:
    """Indices take 8 bits there: 256 entries for each channel would be larger than the weight."""
    weight = RNG.standard_normal((128, 256)).astype(np.float32)
    model = io.load(build("g (float[B, 128] x) => (float[B, 256] y) { [layer] y = MatMul(x, w) }", w=weight))
    (node,) = model.graph
    choice = Choice(None, insisted=False, rule=Rule("*"))
    old, new = (plan_codebook(node, PRESETS["lut4"], Recipe(preset="lut4"), choice, opset) for opset in (17, 21))
    assert isinstance(old, NodePlan) and old.weights == {1: TensorSpec(QType.UINT8, PerTensor())}
    assert isinstance(new, NodePlan) and new.weights == {1: TensorSpec(QType.UINT4, PerAxis(0))}
