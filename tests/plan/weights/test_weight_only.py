"""What becomes of nodes whose preset packs weights, and why not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.packing import pack
from onnxq.errors import RecipeError
from onnxq.recipe.recipe import Recipe, Rule
from tests.graph.build import build
from tests.runtime_version import EXPERTS, TWO_BITS

RNG = np.random.default_rng(11)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def result_of(model: onnx.ModelProto, **options: Any) -> onnxq.QuantizeResult:
    return onnxq.quantize(model, **{"preset": "w4", "benchmark": False, "force": True, "threads": 1, **options})


def reasons(model: onnx.ModelProto, **options: Any) -> dict[str, tuple[str, str]]:
    plan = result_of(model, **options).plan
    return {node.name: (node.action, node.reason) for node in plan.nodes.values()}


def layer(inputs: int = 64, outputs: int = 32) -> onnx.ModelProto:
    return build(
        f"g (float[B, {inputs}] x) => (float[B, {outputs}] y) {{ [layer] y = MatMul(x, w) }}", w=normal(inputs, outputs)
    )


def test_every_reason_not_to_pack() -> None:
    model = build(
        "g (float[32, 64] x, int64[N] ids) => (float[32, 32] a, float[2, 32, 32] b, float[32, 32] c, float[20, 64] d,"
        " float[N, 8] e, float[2, 32, 32, 32] f, float[64, 40] g, float[B, 40] h) {"
        " [fine] a = MatMul(x, w1) [many] b = MatMul(x, w2) xt = Transpose<perm=[1, 0]>(x) [both] c = MatMul(x, xt)"
        " [left] d = MatMul(w3, x) [short] e = Gather(t, ids) x4 = Reshape(x, shape)"
        " [conv] f = Conv<pads=[1, 1, 1, 1]>(x4, w4) [turned] g = Gemm<transA=1>(x, w5)"
        " [tiny] h = MatMul(x, w6) }",
        w1=normal(64, 32), w2=normal(2, 64, 32), w3=normal(20, 32), t=normal(200, 8), shape=np.array([2, 1, 32, 32]),
        w4=normal(128, 1, 3, 3), w5=normal(32, 40), w6=normal(64, 15),
    )  # fmt: skip
    found = reasons(model)
    assert found.pop("fine") == found.pop("turned") == ("weight", "")
    said = {name: reason for name, (_, reason) in found.items()}
    assert said["many"] == "its weight of shape (2, 64, 32) is no matrix, and kernels read packed matrices"
    assert said["both"] == "neither of its operands is constant: there is no weight to pack"
    assert said["left"] == (
        "its weight has fewer than 1024 elements, so that storing it as integers would save nothing"
    )
    assert said["short"] == "its rows of 8 elements are shorter than the smallest block, 16"
    assert said["conv"] == "no kernel reads packed weights of Conv"
    assert said["tiny"] == (
        "its weight has fewer than 1024 elements, so that storing it as integers would save nothing"
    )
    assert {name for name, (action, _) in found.items() if action == "storage"} == {"many", "conv"}


def test_small_layers_are_not_packed_unless_asked_for() -> None:
    action, reason = reasons(build(
        "g (float[B, 256] x) => (float[B, 8] y) { [layer] h = MatMul(x, w) [big] z = MatMul(x, v) y = Add(h, z) }",
        w=normal(256, 8), v=normal(256, 8),
    ))["layer"]  # fmt: skip
    assert (action, reason) == (
        "storage",
        "its weight of 256 × 8 is so small that unpacking it takes longer than multiplying",
    )


@pytest.mark.parametrize("level", [0, 4])
def test_w8_packs_where_that_is_faster(level: int) -> None:
    model = build(
        "g (float[B, 256] x) => (float[B, 64] y) { [wide] h = MatMul(x, w) [narrow] y = MatMul(h, v) }",
        w=normal(256, 256), v=normal(256, 64),
    )  # fmt: skip
    found = reasons(model, preset="w8", accuracy_level=level)
    assert found["narrow"] == ("storage", "its weight of 256 × 64 is faster in 8 bits that are dequantized at load")
    slow = "MatMulNBits in 8 bits is slower than float at accuracy level 0; dequantized at load it is as exact"
    assert found["wide"] == (("weight", "") if level == 4 else ("storage", slow))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"preset": "w2", "block_size": 16},
            r"MatMul 'layer': block size 16 .* at 2 bits \(K = 64\); use 32, 64, 128",
            marks=TWO_BITS,
        ),
        pytest.param({"preset": "w2", "block_size": 256}, r"block size 256 has no kernel at 2 bits", marks=TWO_BITS),
        ({"block_size": 48}, "48 has no kernel; use 16, 32, 64, 128 or 256, or 0 for columns"),
        ({"format": "qdq", "accuracy_level": 0}, "--accuracy-level 0: MatMul 'layer' in the QDQ format"),
        ({"bits": 5}, "5 bits have no kernel; use 2, 3, 4, 8"),
    ],
)
def test_what_no_kernel_does_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        result_of(layer(), **options)


def test_a_model_without_kernels_for_packed_weights_says_so() -> None:
    model = build(
        "g (float[1, 16, 8, 8] x) => (float[1, 64, 6, 6] y) { [conv] y = Conv(x, w) }", w=normal(64, 16, 3, 3)
    )
    result = result_of(model)
    assert [node.action for node in result.plan.nodes.values()] == ["storage"]
    assert any("--preset w4: no layer of this model has a kernel for packed weights" in w for w in result.warnings)
    assert not any("no layer of this model" in w for w in result_of(model, preset="w8").warnings)


def test_rules_give_layers_their_own_bits_and_blocks() -> None:
    model = build(
        "g (float[B, 64] x) => (float[B, 32] y) { [a] h = MatMul(x, w) [b] y = MatMul(h, v) }",
        w=normal(64, 64), v=normal(64, 32),
    )  # fmt: skip
    rules = (Rule("b", bits=8, block_size=64, accuracy_level=1),)
    result = result_of(model, recipe=Recipe(preset="w4", rules=rules))
    made = {n.name: {a.name: a.i for a in n.attribute} for n in result.model.graph.node}
    assert [made["a"][key] for key in ("bits", "block_size", "accuracy_level")] == [4, 32, 4]
    assert [made["b"][key] for key in ("bits", "block_size", "accuracy_level")] == [8, 64, 1]
    assert result.bits_per_weight == pytest.approx((64 * 64 * 5 + 64 * 32 * 8.5) / (64 * 96))


@pytest.mark.parametrize(("inputs", "block"), [(16, 16), (24, 32), (64, 64), (100, 128), (512, 128)])
def test_blocks_are_no_longer_than_the_rows(inputs: int, block: int) -> None:
    """A block that is filled up with zeros would make the file larger."""
    model = layer(inputs, 256)
    result = result_of(model, preset="w8", include=["layer"])
    (packed,) = (node for node in result.model.graph.node if node.op_type == "MatMulNBits")
    assert {a.name: a.i for a in packed.attribute}["block_size"] == block
    assert result.size_after < result.size_before


def test_three_bits_are_said_to_be_stored_as_four() -> None:
    result = result_of(layer(), bits=3)
    assert result.plan.nodes["layer"].reason == "3 bits: 8 levels on the grid of 4-bit storage"
    (packed,) = [i for i in result.model.graph.initializer if i.name == "w_packed"]
    integers = onnx.numpy_helper.to_array(packed)
    assert {int(v) for v in np.unique(np.stack([integers & 15, integers >> 4]))} <= set(range(8))


def test_bits_and_error_are_reported() -> None:
    affine = result_of(layer(100, 64), symmetric=False)
    assert affine.bits_per_weight == pytest.approx(64 * 4 * (32 * 4 + 32 + 4) / 6400)
    (entry,) = affine.to_dict()["weights"]
    assert (entry["node"], entry["form"], entry["algorithm"]) == ("layer", "MatMulNBits", "kquant")
    assert 18 < entry["error_db"] < 26
    stored = result_of(layer(100, 64), preset="w8")
    assert stored.bits_per_weight == pytest.approx(8 + 32 / 100)
    assert all(math.isfinite(row["error_db"]) and row["error_db"] > 40 for row in stored.weights)


@pytest.mark.parametrize("algorithm", ["hqq", "kquant"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_algorithms_that_need_no_data(algorithm: str, symmetric: bool) -> None:
    model = layer(128, 64)
    errors = {
        name: result_of(model, algorithm=name, symmetric=symmetric).weights[0]["error_db"]
        for name in ("rtn", algorithm)
    }
    assert errors[algorithm] > errors["rtn"] - (1.0 if algorithm == "hqq" else 0.0)


def packs() -> onnx.ModelProto:
    """A MatMulNBits and a DequantizeLinear → MatMul, plain and transposed, as tools leave them, and a float layer."""
    packed = pack(RNG.integers(0, 16, (64, 2, 32)), 4)
    model = build(
        "g (float[B, 64] x) => (float[B, 32] y) { h = Relu(x) h2 = Relu(h) [float] f = MatMul(h2, w)"
        " [unfold] d = DequantizeLinear<axis=1>(q, s) [kept] k = MatMul(f, d)"
        " [unfold2] d2 = DequantizeLinear<axis=0>(q2, s) [turn] t = Transpose<perm=[1, 0]>(d2)"
        " [kept2] y = MatMul(k, t) }",
        opset=21, ir=10, imports=', "com.microsoft": 1', w=normal(64, 64),
        q=RNG.integers(-127, 128, (64, 32)).astype(np.int8), s=np.full(32, 0.01, np.float32),
        q2=RNG.integers(-127, 128, (32, 32)).astype(np.int8),
    )  # fmt: skip
    node = onnx.helper.make_node("MatMulNBits", ["h", "B", "S"], ["h2"], "nbits", domain="com.microsoft")
    node.attribute.extend(
        onnx.helper.make_attribute(k, v) for k, v in {"K": 64, "N": 64, "bits": 4, "block_size": 32}.items()
    )
    index = next(i for i, n in enumerate(model.graph.node) if n.output[0] == "h2")
    model.graph.node[index].CopyFrom(node)
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(packed, "B"),
            onnx.numpy_helper.from_array(np.full((64, 2), 0.01, np.float32), "S"),
        ]
    )
    return model


@TWO_BITS
def test_weights_on_a_grid_already_are_kept() -> None:
    model = packs()
    result = result_of(model)
    found = {node.name: node.action for node in result.plan.nodes.values()}
    assert [found[name] for name in ("nbits", "kept", "kept2", "float")] == ["present"] * 3 + ["weight"]
    before = {i.name: i.raw_data for i in model.graph.initializer}
    after = {i.name: i.raw_data for i in result.model.graph.initializer}
    assert all(after[name] == before[name] for name in ("B", "S", "q", "q2"))
    assert "w" not in after
    assert result.sqnr_db is not None and result.sqnr_db > 10


@EXPERTS
def test_experts_in_one_node_are_packed_and_their_router_stays_float() -> None:
    model = build(
        "g (float[N, 64] x) => (float[N, 64] y) { [router] r = MatMul (x, R) \n"
        ' [experts] m = com.microsoft.MoE <k = 2, activation_type = "relu"> (x, r, A, , B)'
        " [out] y = MatMul (m, O) }",
        imports=', "com.microsoft": 1', R=normal(64, 4), A=normal(4, 96, 64), B=normal(4, 64, 96), O=normal(64, 64),
    )  # fmt: skip
    made = result_of(model)
    found = {node.name: (node.action, node.reason) for node in made.plan.nodes.values()}
    assert found["experts"][0] == "weight" and found["router"][0] == "float" and found["out"][0] == "weight"
    assert made.model is not None and [node.op_type for node in made.model.graph.node][1:] == ["QMoE", "MatMulNBits"]
