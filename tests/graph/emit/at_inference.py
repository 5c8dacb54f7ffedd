"""What the tests of activations quantized at inference share: the whole way, both levels, numpy references."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import onnxq
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dynamic_params, quantize
from onnxq.core.dtypes import QType
from onnxq.core.spec import Granularity, PerAxis, PerToken, QParams, TensorSpec
from onnxq.report.results import QuantizeResult

Array = np.ndarray[Any, Any]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def quantized(model: onnx.ModelProto, preset: str = "w8a8-dynamic", **options: Any) -> QuantizeResult:
    """The whole way, gate included, without data."""
    result = onnxq.quantize(model, preset=preset, benchmark=False, threads=1, **options)
    assert result.model is not None
    return result


def outputs(model: onnx.ModelProto, feed: dict[str, Array]) -> tuple[list[Array], onnx.GraphProto]:
    """Outputs, the same at both levels up to rounding, and the graph as ONNX Runtime optimized it."""
    found: list[list[Array]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimized.onnx")
        for level in LEVELS:
            options = ort.SessionOptions()
            options.graph_optimization_level, options.intra_op_num_threads = level, 1
            options.log_severity_level, options.optimized_model_filepath = 4, path
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            wanted = {spec.name for spec in session.get_inputs()}
            found.append([np.asarray(v) for v in session.run(None, {k: v for k, v in feed.items() if k in wanted})])
        graph = onnx.load(path).graph
    for plain, optimized in zip(*found, strict=True):
        assert plain.shape == optimized.shape
        scale = float(np.abs(plain.astype(np.float64)).max(initial=1e-30))
        np.testing.assert_allclose(optimized, plain, atol=2e-6 * scale, rtol=0)
    return found[1], graph


def ops(graph: onnx.GraphProto) -> Counter[str]:
    """How often each operator occurs, in subgraphs too."""
    count = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            count.update(ops(attribute.g))
    return count


def close(got: Array, want: Array) -> None:
    """Equal up to float32 arithmetic on the scales."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * float(np.abs(want).max(initial=1e-30)))


def weight(w: Array, granularity: Granularity | None = None, bits: int | None = None) -> tuple[Array, Array]:
    """Integers and scales of a weight, as float64."""
    spec = TensorSpec(QType.INT8, granularity or PerAxis(1), symmetric=True, narrow_range=True, grid_bits=bits)
    tensor = rtn(w, spec)
    return tensor.values.astype(np.float64), tensor.params.scale.astype(np.float64)


def by_tensor(x: Array, w: Array, bits: int | None = None) -> Array:
    """x · w with x on the grid of DynamicQuantizeLinear and w on a symmetric one, in float64."""
    params = dynamic_params(x)
    steps = quantize(x, params).astype(np.float64) - params.zero_point.astype(np.float64)
    integers, scale = weight(w, bits=bits)
    return np.asarray(steps @ integers * scale.reshape(-1) * float(params.scale.reshape(-1)[0]))


def rows_of(x: Array, zero: int = 128) -> tuple[Array, Array]:
    """Steps from the zero point and scales of each row, as float64."""
    low, high = (np.maximum(f(x, axis=-1, keepdims=True), 0) for f in (lambda a, **k: -a.min(**k), np.max))
    ends = [np.maximum(low, high) / np.float32(127)] if zero == 128 else [high / np.float32(255 - zero)]
    if zero not in (0, 128):
        ends.append(low / np.float32(zero))
    scale = np.maximum(np.max(ends, axis=0), np.float32(1e-30)).astype(np.float32)
    params = QParams(TensorSpec(QType.UINT8, PerToken()), scale, np.full(scale.shape, zero, np.uint8))
    return quantize(x, params).astype(np.float64) - zero, scale.astype(np.float64)


def by_row(x: Array, w: Array, zero: int = 128) -> Array:
    """x · w with a grid for each row of x, in float64."""
    steps, scale = rows_of(x, zero)
    integers, scales = weight(w)
    return np.asarray(steps @ integers * scales.reshape(-1) * scale)
