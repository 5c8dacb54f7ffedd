"""The shipped models do what models/README.md says, and their samples are kept apart."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CALIBRATION = ROOT / "calibration_data"
# A second dot is in what onnxq wrote beside a model: <stem>.<preset>.onnx.
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx") if "." not in path.stem)


def facts(name: str) -> dict[str, str]:
    """The model's row of the table in models/README.md, by column."""
    lines = (MODELS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    found = [row for row in rows if row[0] == name]
    assert len(found) == 1, f"{name} has {len(found)} rows in models/README.md"
    return dict(zip(rows[0], found[0], strict=True))


def samples(path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Input name, input, labels."""
    with np.load(path, allow_pickle=False) as arrays:
        (name,) = set(arrays) - {"labels"}
        return name, arrays[name], arrays["labels"]


def test_there_are_three_models_and_each_has_its_data() -> None:
    assert {"digits_resnet", "digits_dsconv", "digits_mlp"} <= set(NAMES)
    for name in NAMES:
        assert (CALIBRATION / f"{name}.npz").is_file()
        assert (MODELS / f"{name}.test.npz").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_and_size_are_those_of_the_readme(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    input_name, x, labels = samples(MODELS / f"{name}.test.npz")
    logits = session.run(["logits"], {input_name: x})[0]
    accuracy = float((logits.argmax(1) == labels).mean())
    claimed = facts(name)
    # Another processor may decide one sample the other way.
    assert accuracy == pytest.approx(float(claimed["test accuracy"]), abs=1 / len(labels))
    assert path.stat().st_size == int(claimed["size (bytes)"])


@pytest.mark.parametrize("name", NAMES)
def test_calibration_samples_fit_the_model(name: str) -> None:
    graph = onnx.load(MODELS / f"{name}.onnx").graph
    input_name, x, labels = samples(CALIBRATION / f"{name}.npz")
    (model_input,) = graph.input
    dims = model_input.type.tensor_type.shape.dim
    assert input_name == model_input.name
    assert dims[0].dim_param == "batch"
    assert x.shape[1:] == tuple(dim.dim_value for dim in dims[1:])
    assert x.dtype == np.float32
    assert np.bincount(labels, minlength=10).min() >= 10


@pytest.mark.parametrize("name", NAMES)
def test_no_calibration_sample_is_a_test_sample(name: str) -> None:
    calibration = {row.tobytes() for row in samples(CALIBRATION / f"{name}.npz")[1]}
    test = {row.tobytes() for row in samples(MODELS / f"{name}.test.npz")[1]}
    assert len(calibration) == 200
    assert not calibration & test


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_nothing_of_the_machine(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    assert not model.doc_string and not model.graph.doc_string and not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    text = (MODELS / f"{name}.onnx").read_bytes()
    assert not re.search(rb"/(home|root|work|usr|opt|tmp)/", text)


def test_the_networks_differ_as_intended() -> None:
    operators = {name: {node.op_type for node in onnx.load(MODELS / f"{name}.onnx").graph.node} for name in NAMES}
    assert {"Conv", "BatchNormalization", "Add"} <= operators["digits_resnet"]
    assert {"Conv", "Clip", "Sigmoid", "Mul"} <= operators["digits_dsconv"]
    assert {"MatMul", "Gemm"} <= operators["digits_mlp"]


def test_together_under_five_megabytes() -> None:
    files = [path for folder in (MODELS, CALIBRATION) for path in folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
