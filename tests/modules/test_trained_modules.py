"""Modules of PyTorch that are trained as they will be quantized: they behave as modules, and give what is written."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq import qat
from onnxq.errors import (
    CalibrationError,
    MissingExtraError,
    ModelError,
    OnnxqError,
    RecipeError,
    TargetError,
    VerificationError,
)  # fmt: skip

trains = pytest.mark.torch
exports = pytest.mark.exporters


def torch_net() -> Any:
    torch = importlib.import_module("torch")
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.drop, self.head = nn.Dropout(0.4), nn.Linear(16, 5)
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x: Any, scale: float = 1.0) -> dict[str, Any]:
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)) + y)
            logits = self.head(self.drop(y.mean((2, 3)))) * scale
            return {"logits": logits, "normal": self.norm(logits)}

    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net()
    for _ in range(3):
        net(images(16))
    return net


def images(count: int = 12, seed: int = 0) -> Any:
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count, 3, 1, 1)) + np.cumsum(rng.normal(size=(count, 3, 8, 8)), axis=3) * 0.4
    return torch.from_numpy(np.asarray(base, np.float32))


ALL = {"preset": "w8a8", "include": ["*conv2d*", "*linear*"]}


def prepared(net: Any = None, **options: Any) -> Any:
    options = {"recipe": ALL, "output_names": ["logits", "normal"], **options}
    return qat.prepare(torch_net() if net is None else net, images(), **options)


def learn(module: Any, steps: int = 6, rate: float = 0.01) -> list[float]:
    torch = importlib.import_module("torch")
    optimizer = torch.optim.SGD(module.parameters(), rate)
    module.train()
    losses = []
    for step in range(steps):
        x = images(16, seed=step % 2)
        optimizer.zero_grad()
        found = module(x)
        loss = torch.nn.functional.cross_entropy(found["logits"], (x.mean((1, 2, 3)) > 0).long())
        loss = loss + 0.01 * (found["normal"] - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    module.eval()
    return losses


def outputs(path: Path, x: Any, level: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(path, options).run(["logits", "normal"], {"x": x.numpy()})


@trains
@exports
def test_what_is_prepared_is_what_quantize_writes(tmp_path: Path) -> None:
    module = prepared()
    written = tmp_path / "net.onnx"
    qat.export(module, written, benchmark=False)
    feeds = [{"x": image[None].numpy()} for image in images()]
    plain = onnxq.quantize(module.origin.exported.model, calibration=feeds, recipe=ALL, benchmark=False)
    assert plain.model is not None
    ours, theirs = onnx.load(written).graph, plain.model.graph
    assert [node.op_type for node in ours.node] == [node.op_type for node in theirs.node]
    arrays = [
        {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
        for graph in (ours, theirs)
    ]
    assert arrays[0].keys() == arrays[1].keys() and len(arrays[0]) >= 3
    for name, array in arrays[0].items():
        assert np.abs(array.astype(int) - arrays[1][name]).max() <= 1, name


@trains
@exports
def test_training_moves_what_it_should_and_evaluation_is_what_is_written(tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    net = torch_net()
    module = prepared(net)
    assert module.training and len(module.graph.threads.norms) == 2 and len(module.graph.threads.alone) == 1
    assert module.notes == []
    before, mean = net.conv1.weight.detach().clone(), net.bn1.running_mean.clone()
    losses = learn(module, 8)
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    assert not torch.equal(before, net.conv1.weight) and not torch.equal(mean, net.bn1.running_mean)
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    written = tmp_path / "net.onnx"
    result = qat.export(module, written, benchmark=False)
    assert result.sqnr_db is not None and result.sqnr_db > 35
    x = images(20, seed=9)
    with torch.no_grad():
        expected = module(x)
    (step,) = {
        float(array.reshape(-1)[0])
        for name, array in constants(written).items() if "logits" in name and "scale" in name and array.size == 1
    } or {0.02}  # fmt: skip
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        logits, _ = outputs(written, x, getattr(onnxruntime.GraphOptimizationLevel, level))
        assert np.abs(logits - expected["logits"].numpy()).max() <= 1.01 * step


def constants(path: Path) -> dict[str, Any]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@trains
@exports
def test_modes_are_those_of_the_users_modules() -> None:
    torch = importlib.import_module("torch")
    net = torch_net()
    module, x = prepared(net), images(16)
    module.eval()
    with torch.no_grad():
        assert float((module(images())["logits"] - net(images())["logits"]).abs().max()) < 0.1
    module.train()
    torch.manual_seed(1)
    first, second = module(x)["logits"], module(x)["logits"]
    assert not torch.equal(first, second)  # dropout
    net.drop.eval()
    net.bn1.eval()  # one norm frozen, as users do
    mean = net.bn1.running_mean.clone()
    other = net.bn2.running_mean.clone()
    assert torch.equal(module(x)["logits"], module(x)["logits"])
    assert torch.equal(mean, net.bn1.running_mean) and not torch.equal(other, net.bn2.running_mean)
    module.eval()
    assert not net.training and not net.bn2.training
    other = net.bn2.running_mean.clone()
    assert torch.equal(module(x)["logits"], module(x)["logits"]) and torch.equal(other, net.bn2.running_mean)


@trains
@exports
def test_the_state_is_saved_and_loaded_and_copies_are_copies() -> None:
    torch = importlib.import_module("torch")
    module, x = prepared(), images(16, seed=3)
    learn(module, 3)
    kept = copy.deepcopy(module.state_dict())
    assert {name.split(".")[0] for name in kept} == {"module", "activations", "weights", "zeros"}
    twin = copy.deepcopy(module)
    with torch.no_grad():
        expected = module(x)["logits"]
    learn(module, 3)
    with torch.no_grad():
        assert torch.equal(twin(x)["logits"], expected) and not torch.equal(module(x)["logits"], expected)
    again = prepared()
    again.load_state_dict(kept)
    again.eval()
    with torch.no_grad():
        assert float((again(x)["logits"] - expected).abs().max()) < 1e-5
    assert next(iter(again.to("cpu").parameters())).device.type == "cpu"


@trains
@exports
def test_few_bits_stay_few(tmp_path: Path) -> None:
    module = prepared(recipe={**ALL, "bits": 2})
    learn(module, 4)
    written = tmp_path / "net.onnx"
    qat.export(module, written, benchmark=False)
    stored = [array for array in constants(written).values() if array.dtype == np.int8 and array.size > 16]
    assert len(stored) == 3 and all(np.abs(array).max() <= 1 for array in stored)


@trains
@exports
def test_packed_weights_learn_too(tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
    x = torch.randn(12, 3, 64)
    module = qat.prepare(net, x, recipe={"preset": "w4", "block_size": 32, "accuracy_level": 0})
    assert len(module.graph.threads.layers) == 2
    optimizer = torch.optim.Adam(module.parameters(), 0.003)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (module(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    module.eval()
    result = qat.export(module, tmp_path / "net.onnx", benchmark=False)
    assert result.sqnr_db is not None and result.sqnr_db > 60


@trains
@exports
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"recipe": {"preset": "w8a8", "smooth": 0.5}}, RecipeError, "--smooth changes weights"),
        ({"recipe": {"preset": "w8a8-smooth"}}, RecipeError, "changes weights before they are trained"),
        ({"recipe": {"preset": "nf4"}}, OnnxqError, "."),
        ({"target": "toaster"}, TargetError, "toaster"),
        ({"example_inputs": (1, 2, 3, 4)}, CalibrationError, "does not run on example_inputs"),
        ({"example_inputs": "torch.zeros(2, 4, 8, 8)"}, CalibrationError, "does not run on example_inputs"),
        ({"module": 3}, ModelError, "an int is no torch.nn.Module|a int is no"),
        ({"module": "branching"}, ModelError, "torch.export cannot export Branching"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_one_line(options: dict[str, Any], error: type[Exception], said: str) -> None:
    torch = importlib.import_module("torch")

    class Branching(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return x + 1 if x.sum() > 0 else x

    module = {"branching": Branching()}.get(options.get("module", ""), options.get("module", torch_net()))
    example = options.get("example_inputs", images())
    example = torch.zeros(2, 4, 8, 8) if isinstance(example, str) else example
    rest = {name: value for name, value in options.items() if name not in ("module", "example_inputs")}
    with pytest.raises(error, match=said) as caught:
        qat.prepare(module, example, **rest)
    assert "\n" not in str(caught.value)


@trains
@exports
def test_export_takes_what_prepare_gives_and_refuses_what_has_broken(tmp_path: Path) -> None:
    torch = importlib.import_module("torch")
    with pytest.raises(RecipeError, match="is not what onnxq.qat.prepare returns"):
        qat.export(torch_net(), tmp_path / "net.onnx")
    module = prepared()
    with torch.no_grad():
        module.module.head.weight.fill_(float("nan"))
    with pytest.raises((ModelError, VerificationError), match="not finite|NaN"):
        qat.export(module, tmp_path / "net.onnx", benchmark=False)
    assert not (tmp_path / "net.onnx").exists()
    with pytest.raises(TypeError, match="prepared for the argument 1.0|called with"):
        module(images(), 2.0)


def test_without_torch_one_line_says_the_extra() -> None:
    if importlib.util.find_spec("torch") is not None:
        code = "import sys; sys.modules['torch'] = None; import importlib.util as u; f = u.find_spec\n"
        code += "u.find_spec = lambda n, *a: None if n == 'torch' else f(n, *a)\n"
        code += "from onnxq import qat\ntry:\n    qat.prepare(None, None)\n"
        code += "except Exception as e:\n    print(type(e).__name__, e)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("MissingExtraError") and "pip install 'onnxq[torch]'" in done.stdout
        return
    with pytest.raises(MissingExtraError, match="needs PyTorch"):
        qat.prepare(None, None)
