"""A quantized graph as a torch module computes what ONNX Runtime does, and gives back what it learned."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.graph.files import io
from onnxq.graph.views.plain_graph import plain_graph, replace_constants
from tests.graph.emit import networks

pytestmark = pytest.mark.torch

MODELS = networks.every(17)
NEWER = networks.every(21)
PRODUCTS = ("Gemm", "Gemm transB", "Gemm without bias", "MatMul", "MatMul two activations")


def feeds(model: onnx.ModelProto, count: int = 6) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return [{"x": generator.normal(size=(2, *shape)).astype(np.float32)} for _ in range(count)]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray], optimize: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


@cache
def quantized(name: str, preset: str, opset: int = 17) -> onnx.ModelProto:
    model = (MODELS if opset == 17 else NEWER)[name]
    result = onnxq.quantize(model, calibration=feeds(model), preset=preset, include=["*"], benchmark=False)
    assert result.model is not None
    return result.model


def module_of(model: onnx.ModelProto) -> Any:
    from onnxq.qat.graph_module import GraphModule

    return GraphModule(plain_graph(io.load(model)))


def outputs_of(module: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    import torch

    with torch.no_grad():
        found = module({name: torch.from_numpy(array) for name, array in feed.items()})
    return [value.numpy() for value in found.values()]


def step(model: onnx.ModelProto) -> float:
    """The largest scale of the activations: one rounding that falls on the other side may be seen at the output."""
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    dequantized = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return max(
        (
            float(constants[n.input[1]].max())
            for n in dequantized
            if n.input[0] not in constants and n.input[1] in constants
        ),
        default=0.0,
    )


def check(model: onnx.ModelProto) -> None:
    module, feed = module_of(model), feeds(model)[0]
    got = outputs_of(module, feed)
    for optimize in (False, True):
        for one, other in zip(run(model, feed, optimize), got, strict=True):
            if one.dtype.kind != "f":
                assert np.mean(one == other) > 0.99
                continue
            reach = 1.01 * step(model) if optimize else 0.0
            assert np.abs(one - other).max() <= reach + 1e-5 * np.abs(one).max()
    assert module.changed() == {}


@pytest.mark.parametrize("name", MODELS)
def test_module_is_the_emitted_model(name: str) -> None:
    check(quantized(name, "w8a8"))


@pytest.mark.parametrize("name", ["Pad", "Resize", "Split", "MatMul", "Gemm", "MaxPool"])
def test_module_is_the_emitted_model_in_newer_operator_sets(name: str) -> None:
    check(quantized(name, "w8a8", 21))


@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w8a8-token", "w4", "w8"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_module_is_the_emitted_model_at_inference(name: str, preset: str) -> None:
    check(quantized(name, preset))


def test_learned_numbers_come_back_as_constants() -> None:
    import torch

    model = quantized("Relu", "w8a8")
    loaded = io.load(model)
    module, feed = module_of(model), feeds(model)[0]
    with torch.no_grad():
        for grid in module.grids.values():
            grid.scale.shift += 0.1
            if grid.zero is not None and not any(grid.zero.at_end):
                grid.zero.shift += 2.0
        for bias in module.biases.values():
            bias.real += 0.05
        for weight in module.weights.values():
            weight.integers.latent += 1.0
    replace_constants(loaded, module.changed())
    written = io.to_proto(loaded)
    onnx.checker.check_model(written)
    assert [node.name for node in written.graph.node] == [node.name for node in model.graph.node]
    before, after = run(model, feed, False)[0], run(written, feed, False)[0]
    assert np.abs(before - after).max() > 0.1
    np.testing.assert_allclose(outputs_of(module, feed)[0], after, atol=1e-5)
    assert module_of(written).changed() == {}


def test_gradients_of_a_grid_are_those_of_learned_step_sizes() -> None:
    import torch

    from onnxq.qat.fake_quantization import dequantize, quantize

    x = torch.tensor([-1.0, 0.26, 0.9, 5.0], requires_grad=True)
    scale, zero = torch.tensor(0.1, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    dequantize(quantize(x, scale, zero, (0, 15)), scale, zero).sum().backward()
    assert x.grad is not None and scale.grad is not None and zero.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    # below: 0 − 2; inside: round(x / s) − x / s; above: 15 − 2
    assert float(scale.grad) == pytest.approx(-2 + (3 - 2.6) + 0.0 + 13, abs=1e-4)
    assert float(zero.grad) == pytest.approx(-0.2, abs=1e-6)


def test_a_padding_follows_the_zero_point_of_its_grid() -> None:
    import torch

    model = quantized("Pad constant", "w8a8")
    module, feed, loaded = module_of(model), feeds(model)[0], io.load(model)
    with torch.no_grad():
        for grid in module.grids.values():
            grid.zero.shift += 5.0
    replace_constants(loaded, module.changed())
    np.testing.assert_allclose(outputs_of(module, feed)[0], run(io.to_proto(loaded), feed, False)[0], atol=1e-5)


def test_a_model_with_if_says_what_has_no_function() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "then", [], [helper.make_empty_tensor_value_info("y")]
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], name="choose", then_branch=branch, else_branch=branch)],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = module_of(model)
    assert [(node.name, node.captured) for node in module.unsupported] == [("choose", ("x",))]
