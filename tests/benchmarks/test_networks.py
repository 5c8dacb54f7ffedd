"""The two shapes are what they say: operators, parameters, sane activations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.networks import CLASSES, images, mobilenet_v2, resnet50


def parameters(model: onnx.ModelProto) -> float:
    return sum(np.prod(tensor.dims) for tensor in model.graph.initializer)


def test_mobilenet_v2_has_the_published_size_and_sane_activations() -> None:
    model = mobilenet_v2()
    onnx.checker.check_model(model, full_check=True)
    operators = Counter(node.op_type for node in model.graph.node)
    assert (operators["Conv"], operators["Clip"], operators["Add"], operators["Gemm"]) == (52, 35, 10, 1)
    assert parameters(model) == pytest.approx(3.5e6, rel=0.01)
    watched = [node.output[0] for node in model.graph.node if node.op_type in {"Conv", "Add"}]
    for name in watched:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits, *values = session.run(None, images(1, seed=0)[0])
    assert logits.shape == (1, CLASSES)
    for name, value in zip(watched, values, strict=True):
        assert 0.2 < value.std() < 10, name


def test_resnet50_has_the_published_size() -> None:
    model = resnet50()
    operators = Counter(node.op_type for node in model.graph.node)
    assert (operators["Conv"], operators["Relu"], operators["Add"], operators["MaxPool"]) == (53, 49, 16, 1)
    assert parameters(model) == pytest.approx(25.5e6, rel=0.01)


def test_the_same_seed_gives_the_same_images() -> None:
    first, again, other = images(1, seed=3)[0], images(1, seed=3)[0], images(1, seed=4)[0]
    assert np.array_equal(first["input"], again["input"])
    assert not np.array_equal(first["input"], other["input"])
