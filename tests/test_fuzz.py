"""Random models, in whatever way: quantized without a crash, in the user's interface, and right in both formats."""

from __future__ import annotations

import random
from collections import Counter

import hypothesis
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import numpy_helper

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import RecipeError
from onnxq.graph.names import scopes
from onnxq.recipe.recipe import Recipe, Rule
from tests.random_graphs import Array, RandomGraph, session

VARIANTS: list[dict[str, object]] = [
    {"include": ["*"]},
    {"include": ["*"], "symmetric": True},
    {"include": ["*"], "per_channel": False, "range": "mse"},
    {"include": ["*"], "target": "cpu-avx2", "range": "percentile"},
    {"include": ["*"], "bias_correct": False, "range": "entropy"},
    {},
]


def interface(model: onnx.ModelProto) -> list[tuple[object, ...]]:
    """Names, types and shapes of inputs and outputs, in order."""
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in [*model.graph.input, *model.graph.output]
    ]


def outputs(model: onnx.ModelProto, feeds: list[dict[str, Array]], optimize: bool) -> list[Array]:
    """Each output over all feeds."""
    opened = session(model, optimize)
    return [np.stack(arrays) for arrays in zip(*(opened.run(None, feed) for feed in feeds), strict=True)]


def coarsest(model: onnx.ModelProto) -> float:
    """The largest step between two numbers of a quantized activation."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [node for graph in scopes(model.graph) for node in graph.node]
    steps = [constants[node.input[1]].max() for node in nodes if node.op_type == "QuantizeLinear"]
    return float(max(steps, default=0.0))


def check(expected: list[Array], got: list[Array], decibels: float, step: float) -> None:
    """Outputs are alike; where almost nothing is left of a signal, they differ by a step or two."""
    for left, right in zip(expected, got, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        if left.dtype.kind == "f" and np.abs(left - right).max() > 2 * step:
            assert sqnr_db(left, right) > decibels


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from(VARIANTS))
@hypothesis.example(628, 5, {"include": ["*"]})  # an output that changed places with another value lost its shape
@hypothesis.example(271, 5, {"include": ["*"]})  # onnx counts a window of a pool that rounds up too many
def test_any_model_is_quantized_right(seed: int, steps: int, options: dict[str, object]) -> None:
    graph = RandomGraph(random.Random(seed), steps)  # fewer steps of a seed give a part of its graph
    model, feeds = graph.model(), graph.feeds(15)
    if model is None:
        return
    expected = outputs(model, feeds[:12], False)
    before, results = model.SerializeToString(), {}
    for form in ("qdq", "qoperator"):
        arguments = {"preset": "w8a8", "range": "minmax", "format": form, **options}
        try:
            result = onnxq.quantize(model, calibration=feeds, benchmark=False, threads=1, **arguments)  # type: ignore[arg-type]
        except RecipeError as error:
            assert "nothing in this model would be quantized" in str(error)
            return
        quantized = result.model
        assert quantized is not None
        assert model.SerializeToString() == before
        assert interface(quantized) == interface(model)
        names = Counter(node.name for graph in scopes(quantized.graph) for node in graph.node)
        assert all(names[plan.name] == 1 for plan in result.plan.nodes.values() if plan.action != "folded")
        assert all(reason for _, _, reason in result.kept_float)
        results[form] = [outputs(quantized, feeds[:12], optimize) for optimize in (False, True)]
        step = coarsest(quantized)
        for got in results[form]:
            check(expected, got, 3.0 if options.get("range") == "entropy" else 8.0, step)
    for qdq, qoperator in zip(results["qdq"], results["qoperator"], strict=True):
        check(qdq, qoperator, 20.0, step)


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from(["w8a8-dynamic", "w8a8-token"]))
def test_any_model_is_quantized_right_at_inference(seed: int, steps: int, preset: str) -> None:
    graph = RandomGraph(random.Random(seed), steps)
    model, feeds = graph.model(), graph.feeds(4)
    if model is None:
        return
    expected = outputs(model, feeds, False)
    recipe = Recipe(preset=preset, rules=(Rule("*", quantize=True),))  # the layers are too small to pay
    try:
        result = onnxq.quantize(model, calibration=feeds, recipe=recipe, benchmark=False, threads=1)
    except RecipeError as error:
        assert any(text in str(error) for text in ("nothing in this model would be quantized", "matches no node"))
        return
    quantized = result.model
    assert quantized is not None
    assert interface(quantized) == interface(model)
    plain, best = (outputs(quantized, feeds, optimize) for optimize in (False, True))
    check(expected, best, 12.0, 0.02)
    check(plain, best, 30.0, 0.01)
