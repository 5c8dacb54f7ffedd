"""Experts in one node are packed to QMoE: equal to the float node with the rounded weights, and to numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import RecipeError
from onnxq.runtime.session import open_session
from tests.runtime_version import EXPERTS as LEVELS
from tests.runtime_version import VERSION

EXPERTS, WIDTH, INNER = 4, 64, 96
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Mixture:
    """What a model of one mixture is made of."""

    activation: str = "silu"
    width: int = WIDTH
    inner: int = INNER
    bias: bool = True
    top: int = 2

    @property
    def fused(self) -> int:
        return 2 if self.activation == "swiglu" else 1

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        rng = np.random.default_rng(0)
        shapes = {"router": (self.width, EXPERTS), "up": (EXPERTS, self.fused * self.inner, self.width)}
        shapes |= {"down": (EXPERTS, self.width, self.inner)}
        if self.bias:
            shapes |= {"up.bias": (EXPERTS, self.fused * self.inner), "down.bias": (EXPERTS, self.width)}
        return {
            name: rng.normal(size=shape, scale=shape[-1] ** -0.5).astype(np.float32) for name, shape in shapes.items()
        }

    def attributes(self) -> dict[str, Any]:
        given: dict[str, Any] = {"k": self.top, "activation_type": self.activation, "normalize_routing_weights": 1}
        return given | ({"swiglu_fusion": 1, "activation_alpha": 1.0} if self.fused == 2 else {})

    def model(self, **other: np.ndarray[Any, Any]) -> onnx.ModelProto:
        arrays = {**self.arrays(), **other}
        biases = [name if name in arrays else "" for name in ("up.bias", "down.bias")]
        read = ["x", "scores", "up", biases[0], "down", biases[1]]
        nodes = [
            helper.make_node("MatMul", ["x", "router"], ["scores"], name="choice"),
            helper.make_node("MoE", read, ["y"], name="experts", domain="com.microsoft", **self.attributes()),
        ]
        graph = helper.make_graph(
            nodes, "mixture",
            [helper.make_tensor_value_info("x", FLOAT, ["tokens", self.width])],
            [helper.make_tensor_value_info("y", FLOAT, ["tokens", self.width])],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def in_numpy(self, x: np.ndarray[Any, Any], up: np.ndarray[Any, Any], down: np.ndarray[Any, Any]) -> Any:
        """The mixture in float64, of these experts."""
        arrays = self.arrays()
        scores = x @ arrays["router"]
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        made = np.zeros(x.shape)
        for row, token in enumerate(x.astype(np.float64)):
            chosen = np.argsort(-chances[row])[: self.top]
            for expert in chosen:
                inner = up[expert] @ token + arrays["up.bias"][expert]
                inner = inner / (1 + np.exp(-inner))
                share = chances[row, expert] / chances[row, chosen].sum()
                made[row] += share * (down[expert] @ inner + arrays["down.bias"][expert])
        return made


def tokens(width: int = WIDTH) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=(7, width)).astype(np.float32)


def packed(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, Any]:
    given = {"preset": "w4", "algorithm": "rtn", "benchmark": False, **options}
    result = onnxq.quantize(model, calibration=None, **given)
    return result.model, result


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any], *, optimize: bool = True) -> Any:
    return open_session(model.SerializeToString(), optimize=optimize).run({"x": x}, ["y"])[0]


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "identity", "swiglu"])
@pytest.mark.parametrize("bits", [4, 8, 2])
def test_the_packed_mixture_is_the_float_one_of_its_rounded_experts(activation: str, bits: int) -> None:
    if ((1, 27) if bits == 2 else (1, 25)) > VERSION:
        pytest.skip("onnxruntime before 1.25 has another layout of QMoE, and before 1.27 no 2 bits in it")
    mixture = Mixture(activation, bias=activation != "relu")
    made, _ = packed(mixture.model(), bits=bits, accuracy_level=0)
    assert nodes_of(made)["experts"].op_type == "QMoE" and nodes_of(made)["choice"].op_type == "MatMul"
    back = onnxq.dequantize(made).model
    rounded = {item.name: numpy_helper.to_array(item) for item in back.graph.initializer}
    stacks = [array for array in rounded.values() if array.ndim == 3]
    up, down = sorted(stacks, key=lambda array: array.shape != (EXPERTS, mixture.fused * INNER, WIDTH))
    expected = run(mixture.model(up=up, down=down), tokens())
    for optimize in (True, False):
        assert sqnr_db(expected, run(made, tokens(), optimize=optimize)) > 100
    assert sqnr_db(run(mixture.model(), tokens()), run(made, tokens())) > {2: 2, 4: 14, 8: 35}[bits]
    if activation == "silu":
        assert sqnr_db(mixture.in_numpy(tokens(), up, down), run(made, tokens())) > 100


@LEVELS
def test_affine_blocks_have_zero_points_and_lose_less_than_none() -> None:
    model = Mixture().model()
    made, result = packed(model, symmetric=False, accuracy_level=0)
    assert len(nodes_of(made)["experts"].input) == 13
    assert sqnr_db(run(model, tokens()), run(made, tokens())) > 15
    assert {layer["form"] for layer in result.weights} == {"QMoE"} and len(result.weights) == 2
    assert result.to_dict()["bits_per_weight"] == pytest.approx(4 + 36 / 32)


@LEVELS
def test_kernels_round_activations_unless_told_otherwise() -> None:
    made, _ = packed(Mixture().model())
    node = nodes_of(made)["experts"]
    assert {item.name: item.i for item in node.attribute}["accuracy_level"] == 4
    exact, _ = packed(Mixture().model(), bits=8, accuracy_level=0)
    assert "block_size" not in {item.name for item in nodes_of(exact)["experts"].attribute}


@LEVELS
def test_a_level_between_is_kept_as_asked() -> None:
    made, _ = packed(Mixture().model(), accuracy_level=1)
    assert {item.name: item.i for item in nodes_of(made)["experts"].attribute}["accuracy_level"] == 1


@LEVELS
def test_blocks_divide_the_rows_or_are_refused() -> None:
    narrow = Mixture(inner=48).model()
    made, _ = packed(narrow)
    assert {item.name: item.i for item in nodes_of(made)["experts"].attribute}["block_size"] == 16
    assert sqnr_db(run(narrow, tokens()), run(made, tokens())) > 14
    with pytest.raises(
        RecipeError, match="MoE 'experts': blocks of 32 do not divide its rows of 48 and 64; use 16 or 0"
    ):
        packed(narrow, block_size=32)
    odd = Mixture(inner=36).model()
    made, _ = packed(odd)
    assert "block_size" not in {item.name for item in nodes_of(made)["experts"].attribute}
    assert sqnr_db(run(odd, tokens()), run(made, tokens())) > 10


@LEVELS
def test_shared_experts_are_packed_once_and_a_second_run_changes_nothing() -> None:
    model = Mixture().model()
    twin = helper.make_node("MoE", ["y", "scores", *model.graph.node[1].input[2:]], ["z"], name="twin")
    twin.domain, twin_attributes = "com.microsoft", model.graph.node[1].attribute
    twin.attribute.extend(twin_attributes)
    model.graph.node.append(twin)
    model.graph.output[0].name = "z"
    made, _ = packed(model)
    first, second = nodes_of(made)["experts"], nodes_of(made)["twin"]
    assert first.input[2] == second.input[2] and first.op_type == second.op_type == "QMoE"
    with pytest.raises(onnxq.OnnxqError, match="quantized already"):
        packed(made)


@LEVELS
def test_experts_that_are_no_constants_and_tables_of_values_are_refused_with_the_reason() -> None:
    model = Mixture().model()
    model.graph.input.append(helper.make_tensor_value_info("given", FLOAT, [EXPERTS, WIDTH, INNER]))
    model.graph.node[1].input[4] = "given"
    with pytest.raises(RecipeError, match="its experts are not constant"):
        packed(model)
    with pytest.raises(RecipeError, match="experts in one node are packed in blocks alone: with w8, w4 or w2"):
        packed(Mixture().model(), preset="nf4", algorithm=None)
