"""A folder of images is all that a newcomer needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, compose, helper, numpy_helper

import onnxq
from onnxq.data.preprocessing import PREPROCESSES

pytestmark = pytest.mark.images
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Digits as PNG files in a folder for each class."""
    from PIL import Image

    made = tmp_path_factory.mktemp("digits")
    with np.load(root / "calibration_data" / "digits_dsconv.npz") as data:
        images, labels = data["image"][:60], data["labels"][:60]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = made / str(label) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(path)
    return made


def trained_with(name: str, first: bool, root: Path) -> onnx.ModelProto:
    """The digits network as one that learned from colour images by a preset, channels first or last."""
    network = onnx.load(root / "models" / "digits_dsconv.onnx")
    preset = PREPROCESSES[name]
    shape = (1, 3, 1, 1) if first else (1, 1, 1, 3)
    std, mean = (np.resize(np.array(values, np.float32), 3).reshape(shape) for values in (preset.std, preset.mean))
    nodes = [
        helper.make_node("Mul", ["photo", "std"], ["centred"]),
        helper.make_node("Add", ["centred", "mean"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "unit"], ["colour"]),
        helper.make_node("ReduceMean", ["colour"], ["grey"], axes=[1 if first else 3], keepdims=1),
        *([] if first else [helper.make_node("Transpose", ["grey"], ["turned"], perm=[0, 3, 1, 2])]),
    ]
    constants = {"std": std, "mean": mean, "unit": np.array(1 / (255 * preset.scale), np.float32)}
    size = ["n", 3, 16, 16] if first else ["n", 16, 16, 3]
    last = "grey" if first else "turned"
    head = helper.make_model(
        helper.make_graph(
            nodes,
            "head",
            [helper.make_tensor_value_info("photo", TensorProto.FLOAT, size)],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", 1, 16, 16])],
            [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in constants.items()],
        ),
        opset_imports=network.opset_import,
        ir_version=network.ir_version,
    )
    return compose.merge_models(head, network, [(last, network.graph.input[0].name)])


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", ["imagenet", "0-255", "-1-1", "caffe"])
def test_preprocessing_is_found_by_trying(
    run: Run, folder: Path, root: Path, tmp_path: Path, name: str, first: bool
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(trained_with(name, first, root), path)
    result = run("quantize", path, "-c", folder, "-p", "w8a8", "--no-benchmark", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert any(f"guessed by trying: '{name}'" in warning for warning in found["warnings"]), found["warnings"]
    assert found["accuracy"]["quantized"] > 0.9


def test_what_is_said_is_not_guessed(folder: Path, root: Path) -> None:
    model = trained_with("imagenet", True, root)
    images = onnxq.Images(folder, preprocess="0-1", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    result = onnxq.quantize(model, calibration=images, preset="w8a8", benchmark=False)
    assert not any("guessed" in warning for warning in result.warnings)
    assert result.sqnr_db is not None and result.sqnr_db > 20


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--preprocess", "imagnet"], 2, "did you mean 'imagenet'?"),
        (["--mean", "a,b"], 2, "'a,b' is no list of numbers; write 0.485,0.456,0.406"),
        (["--resize", "cover"], 2, "--resize cover: pass the length of the shorter side"),
        (["--preprocess", "0-1", "--crop", "9"], 2, "--crop 9: the model's input 'image' is"),
    ],
)
def test_wrong_options_are_one_line(
    run: Run, folder: Path, root: Path, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    result = run("quantize", model, "-c", folder, "-o", output, *arguments)
    assert (result.exit_code, message in result.stderr) == (exit_code, True), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not output.exists()


def test_image_options_need_data(run: Run, root: Path, tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes((root / "models" / "digits_mlp.onnx").read_bytes())
    result = run("quantize", tmp_path / "digits.onnx", "--preprocess", "0-1")
    assert (result.exit_code, "--preprocess: says how images become samples" in result.stderr) == (2, True)
