"""Networks made hard to quantize on purpose, without changing what they compute.

Their accuracy is real: features are fixed at random, and a linear head is fitted to the digits of ``models/``.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnxruntime as ort

from benchmarks.feeds import Feed
from benchmarks.workloads import ROOT, Workload, one_by_one, own_model
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.passes.scales import scale_channels

Array = np.ndarray[Any, Any]

SPREAD = 6
"""Channels are multiplied by 2^k with k drawn from −SPREAD…SPREAD."""

OUTLIERS, LARGER = 4, 50.0
"""So many channels of each value become so many times larger."""

_DIGITS = ROOT / "models" / "digits_resnet.test.npz"
_RIDGE = 0.3
"""Shrinkage of a head, so that it does not live on differences that any rounding would drown."""


@functools.cache
def _digits() -> tuple[Array, Array]:
    """Images, (n, 1, 16, 16), and classes; the first half fits heads, the second scores them."""
    with np.load(_DIGITS, allow_pickle=False) as arrays:
        images = next(array for name, array in arrays.items() if name != "labels")
        return images.reshape(len(images), 1, 16, 16).astype(np.float32), arrays["labels"]


def _parsed(text: str, constants: dict[str, Array]) -> onnx.ModelProto:
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>\n' + text)
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def _run(model: onnx.ModelProto, images: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def _with_head(text: str, constants: dict[str, Array]) -> onnx.ModelProto:
    """The features of a text that ends in ``features``, with a fitted Gemm behind them."""
    images, classes = _digits()
    half = len(images) // 2
    features = _run(_parsed(text.replace("OUT", "float[N, F] features").replace("HEAD", ""), constants), images[:half])
    centre, size = features.mean(0), np.maximum(features.std(0), 0.2 * features.std())
    centred = (features - centre) / size
    square = centred.T @ centred + _RIDGE * len(centred) * np.eye(centred.shape[1])
    wanted = np.eye(10)[classes[:half]] - 0.1
    weight = np.linalg.solve(square, centred.T @ wanted) / size[:, None]
    head = {"head_weight": weight, "head_bias": wanted.mean(0) - centre @ weight}
    return _parsed(
        text.replace("OUT", "float[N, 10] logits").replace("HEAD", "logits = Gemm (features, head_weight, head_bias)"),
        {**constants, **head},
    )


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return np.asarray(rng.normal(0.0, np.sqrt(2.0 / np.prod(shape[1:])), shape))


def depthwise() -> onnx.ModelProto:
    """A depthwise-separable network whose channels were spread by powers of two between its layers."""
    rng = np.random.default_rng(0)
    widths = (1, 24, 48, 96)
    weights: dict[str, Array] = {}
    lines, last = [], "image"
    for block in range(3):
        narrow, wide = widths[block], widths[block + 1]
        weights[f"p{block}_weight"] = _normal(rng, wide, narrow, *((3, 3) if block == 0 else (1, 1)))
        weights[f"p{block}_bias"] = rng.normal(0.0, 0.1, wide)
        weights[f"d{block}_weight"] = _normal(rng, wide, 1, 3, 3)
        weights[f"d{block}_bias"] = rng.normal(0.0, 0.1, wide)
        pads = "pads = [1,1,1,1]" if block == 0 else "pads = [0,0,0,0]"
        stride = 1 if block == 0 else 2
        lines.append(f"p{block} = Conv <{pads}> ({last}, p{block}_weight, p{block}_bias) r{block} = Relu (p{block})")
        lines.append(
            f"d{block} = Conv <group = {wide}, pads = [1,1,1,1], strides = [{stride},{stride}]> "
            f"(r{block}, d{block}_weight, d{block}_bias) s{block} = Relu (d{block})"
        )
        last = f"s{block}"
    text = f"g (float[N, 1, 16, 16] image) => (OUT) {{ {' '.join(lines)} features = Flatten ({last}) HEAD }}"
    order = [f"{kind}{block}" for block in range(3) for kind in "pd"]
    for first, second in itertools.pairwise(order):
        factor = 2.0 ** rng.integers(-SPREAD, SPREAD + 1, len(weights[f"{first}_bias"]))
        weights[f"{first}_weight"] *= factor[:, None, None, None]
        weights[f"{first}_bias"] *= factor
        axis = (-1, 1, 1, 1) if second.startswith("d") else (1, -1, 1, 1)
        weights[f"{second}_weight"] /= factor.reshape(axis)
    return _with_head(text, weights)


def heavy_tailed() -> onnx.ModelProto:
    """An MLP whose second layer reads cubes: nearly all elements are small, a few are huge."""
    rng = np.random.default_rng(1)
    weights = {
        "a_weight": _normal(rng, 256, 256).T,
        "a_bias": rng.normal(0.0, 0.3, 256),
        "b_weight": _normal(rng, 192, 256).T,
        "b_bias": rng.normal(0.0, 0.3, 192),
    }
    text = """g (float[N, 1, 16, 16] image) => (OUT) {
        flat = Flatten (image) a = Gemm (flat, a_weight, a_bias) r = Relu (a)
        square = Mul (r, r) cube = Mul (square, r)
        b = Gemm (cube, b_weight, b_bias) features = Relu (b) HEAD
    }"""
    return _with_head(text, weights)


def outlier_encoder() -> onnx.ModelProto:
    """The text encoder of ``models/``, with a few channels of what its layers read 50 times as large."""
    model = io.load(ROOT / "models" / "text_encoder.onnx")
    prepare(model)
    rng = np.random.default_rng(2)
    readers: dict[str, list[str]] = {}
    widths: dict[str, int] = {}
    for node in model.graph:
        weight = node.inputs[1].const_value if node.op_type == "MatMul" and node.inputs[1] is not None else None
        source = node.inputs[0] if node.inputs else None
        if weight is None or source is None or source.name is None or node.name is None:
            continue
        readers.setdefault(source.name, []).append(node.name)
        widths[source.name] = int(weight.numpy().shape[0])
    for value, layers in readers.items():
        scales = np.ones(widths[value], np.float32)
        scales[rng.choice(widths[value], OUTLIERS, replace=False)] = LARGER
        scale_channels(model, value, layers, scales)
    return io.to_proto(model)


def workloads() -> list[Workload]:
    """All of them, as the tables take them."""
    images, classes = _digits()
    half = len(images) // 2

    def feeds() -> list[Feed]:
        return [{"image": images[i : i + 1]} for i in range(min(half, 120))]

    def score(path: Path) -> float:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return float((session.run(None, {"image": images[half:]})[0].argmax(1) == classes[half:]).mean())

    def saved(make: Any, name: str) -> Any:
        def model(folder: Path) -> Path:
            path = folder / f"{name}.onnx"
            onnx.save(make(), path)
            return path

        return model

    text = own_model(ROOT / "models" / "text_encoder.onnx")
    return [
        Workload("depthwise, channels spread", "hard", saved(depthwise, "depthwise"), feeds, metric="acc", score=score),
        Workload("MLP of cubes", "hard", saved(heavy_tailed, "cubes"), feeds, metric="acc", score=score),
        Workload(
            "encoder, outliers x50",
            "hard",
            saved(outlier_encoder, "outliers"),
            lambda: one_by_one(ROOT / "calibration_data" / "text_encoder.npz"),
            metric=text.metric,
            score=text.score,
        ),
    ]
