"""Real models come out of `prepare` smaller, valid and with the outputs they had."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model, check_weights
from onnxq.graph.prepare import prepare
from tests.graph.build import NUMPY, ops, run, same, session

TASKS = [
    "ad01_autoencoder", "charrnn_shakespeare", "keypoint_mlp", "kws_dscnn", "mnist_cnn", "resnet20_cifar10",
    "resnet8_cifar10", "rfb320_face", "silero_vad", "squeezenet_imagenet",
]  # fmt: skip
RUN_ONLY = ["dnsmos_model_v8", "slim-320", "st_mbv2_035_128", "yunet_n_320"]
FILES = [f"{name}/model.onnx" for name in TASKS] + [f"run_only/{name}.onnx" for name in RUN_ONLY]


@pytest.mark.zoo
@pytest.mark.parametrize("target", [13, 21])
@pytest.mark.parametrize("file", FILES)
def test_outputs_are_kept(zoo: ModuleType, file: str, target: int) -> None:
    path = zoo.HERE / file
    model = io.load(path)
    before = ops(model)
    check_weights(model)
    report = prepare(model, min_opset=target)
    content = io.to_bytes(model)
    check_model(content)
    assert report.notes == []
    assert model.opset_imports[""] >= target

    feeds = {}
    rng = np.random.default_rng(0)
    for spec in session(path.read_bytes()).get_inputs():
        shape = [dim if isinstance(dim, int) else (2 if axis == 0 else 576) for axis, dim in enumerate(spec.shape)]
        if spec.name == "state":
            shape = [2, 2, 128]
        if spec.type == "tensor(int64)":
            feeds[spec.name] = np.asarray(rng.integers(0, 60, shape)) if shape else np.array(16000)
        else:
            feeds[spec.name] = rng.normal(0, 1, shape).astype(NUMPY[spec.type])
    same(run(path.read_bytes(), feeds), run(content, feeds), rtol=1e-5)

    after = ops(model)
    assert after.total() - after["Squeeze"] <= before.total()
    assert not after["Constant"] and not after["BatchNormalization"]
    assert "Identity" not in [node.op_type for node in model.graph]
    for node in walk.all_nodes(model.graph):
        if node.op_type == "Gemm":
            assert not walk.attr_int(node, "transB")
        if node.op_type in ("Conv", "Gemm"):
            assert walk.is_constant(node.inputs[1]) or file.startswith("silero")
    prepare(model, min_opset=target)
    assert io.to_bytes(model) == content


@pytest.mark.zoo
def test_mnist_cnn_has_constant_weights_and_fused_biases(zoo: ModuleType) -> None:
    model = io.load(zoo.HERE / "mnist_cnn/model.onnx")
    prepare(model)
    assert ops(model) == {"Conv": 2, "Relu": 2, "MaxPool": 2, "Reshape": 1, "Gemm": 1}
    assert [value.name for value in model.graph.inputs] == ["Input3"]


@pytest.mark.zoo
def test_ad01_autoencoder_is_nothing_but_gemm_and_relu(zoo: ModuleType) -> None:
    model = io.load(zoo.HERE / "ad01_autoencoder/model.onnx")
    prepare(model)
    assert ops(model) == {"Gemm": 10, "Relu": 9}
