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
from onnxq.errors import OnnxqError, RecipeError
from onnxq.graph.names import scopes
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe, Rule
from tests.random_graphs import Array, RandomGraph, session
from tests.runtime_version import needs_runtime
from tests.wide_graphs import WideGraph

VARIANTS: list[dict[str, object]] = [
    {"include": ["*"]},
    {"include": ["*"], "symmetric": True},
    {"include": ["*"], "per_channel": False, "range": "mse"},
    {"include": ["*"], "target": "cpu-avx2", "range": "percentile"},
    {"include": ["*"], "bias_correct": False, "range": "entropy"},
    {},
]


PLAIN = [name for name in PRESETS if name not in ("auto", "w8a8-learned", "zeroquant", "fp8", "float", "bf16")]
WAYS: list[dict[str, object]] = [
    {"preset": "fp8", "target": "tensorrt"},
    {"preset": "w8a8", "target": "tensorrt"},
    {"preset": "w8a8", "target": "arm", "equalize": True},
    {"preset": "w8a8", "format": "qoperator"},
    {"preset": "w8a8", "format": "qoperator", "algorithm": "gptq"},
    {"preset": "w4", "algorithm": "hqq", "float_type": "float16"},
    {"preset": "w4", "bits": 3, "symmetric": True},
    {"preset": "w8", "float_type": "float16"},
    {"preset": "fp16", "calibration": None},
    {"preset": "bf16", "store_only": True},
    {"preset": "float"},
]
WAYS += [{"preset": name} for name in PLAIN]


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


@hypothesis.settings(max_examples=70)
@hypothesis.given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from(VARIANTS))
@hypothesis.example(628, 5, {"include": ["*"]})  # an output that changed places with another value lost its shape
@hypothesis.example(271, 5, {"include": ["*"]})  # onnx counts a window of a pool that rounds up too many
def test_any_model_is_quantized_right(seed: int, steps: int, options: dict[str, object]) -> None:
    graph = RandomGraph(random.Random(seed), steps)  # fewer steps of a seed give a part of its graph
    model, feeds = graph.model(), graph.feeds(15)
    if model is None:
        return
    try:
        expected = outputs(model, feeds[:12], False)
    except Exception:  # it contradicts what the runtime infers of the whole
        return
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


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from(["w8a8-dynamic", "w8a8-token"]))
def test_any_model_is_quantized_right_at_inference(seed: int, steps: int, preset: str) -> None:
    graph = RandomGraph(random.Random(seed), steps)
    model, feeds = graph.model(), graph.feeds(4)
    if model is None:
        return
    try:
        expected = outputs(model, feeds, False)
    except Exception:
        return
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


def keeps(given: onnx.ModelProto, made: onnx.ModelProto) -> bool:
    """Whether inputs and outputs are those that were given: initializers may stop being inputs, shapes may be added."""
    held = {tensor.name for tensor in given.graph.initializer}
    for before, after, optional in (
        (given.graph.input, made.graph.input, held),
        (given.graph.output, made.graph.output, set[str]()),
    ):
        there = {value.name: value.type.tensor_type for value in after}
        kept = [value for value in before if value.name in there or value.name not in optional]
        if [value.name for value in kept] != [value.name for value in after]:
            return False
        for value in kept:
            said, found = value.type.tensor_type, there[value.name]
            if said.elem_type != found.elem_type or (said.HasField("shape") and said.shape != found.shape):
                return False
    return True


@needs_runtime("1.32", "crashes when it opens some of these models as they are")
@hypothesis.settings(max_examples=60)
@hypothesis.given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from(WAYS))
def test_what_exporters_write_is_quantized_in_every_way(seed: int, steps: int, way: dict[str, object]) -> None:
    """A model that loads, runs and is like the float one or says why not; or an error that is none of the runtime's."""
    graph = WideGraph(random.Random(seed), steps)
    model, feeds = graph.model(), graph.feeds(6)
    if model is None:
        return
    try:
        expected = outputs(model, feeds, False)
        session(model, True)
    except Exception:
        return
    before = model.SerializeToString()
    include = [] if way["preset"] in ("float", "bf16") else ["*"]
    try:
        result = onnxq.quantize(
            model,
            **{"calibration": feeds, "include": include, "benchmark": False, "threads": 1, **way},  # type: ignore[arg-type]
        )
    except OnnxqError as error:
        assert str(error) and "\n" not in str(error)
        assert not any(text in str(error) for text in ("cannot load", "checker refuses")), str(error)
        return
    quantized = result.model
    assert quantized is not None
    assert model.SerializeToString() == before
    assert keeps(model, quantized)
    for optimize in (False, True)[: 1 if way["preset"] == "fp8" else 2]:  # ONNX Runtime takes float8 for integers
        for left, right in zip(expected, outputs(quantized, feeds, optimize), strict=True):
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            if left.dtype.kind == "f" and not result.warnings:
                assert not (np.isfinite(left) & ~np.isfinite(right)).any()
