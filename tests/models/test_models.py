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
SAMPLES = {"digits": 200, "text_encoder": 192, "text_lstm": 128, "tiny_lm": 64}


def facts(name: str) -> dict[str, str]:
    """The model's row of its table in models/README.md, by column."""
    lines = (MODELS / "README.md").read_text(encoding="utf-8").splitlines()
    header: list[str] = []
    found = []
    previous: list[str] = []
    for line in lines:
        row = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if row and set(row[0]) == {"-"}:
            header = previous
        if row and row[0] == name:
            found.append(dict(zip(header, row, strict=True)))
        previous = row
    assert len(found) == 1, f"{name} has {len(found)} rows in models/README.md"
    return found[0]


def samples(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Inputs by name, and labels where there are some."""
    with np.load(path, allow_pickle=False) as arrays:
        inputs = dict(arrays)
    return inputs, inputs.pop("labels", None)


def session(name: str) -> ort.InferenceSession:
    """The model with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(MODELS / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])


def perplexity(logits: np.ndarray, labels: np.ndarray) -> float:
    """exp of the mean negative log likelihood of the labels."""
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0].astype(np.float64)
    largest = logits.max(-1)
    total = np.log(np.exp(logits - largest[..., None]).sum(-1, dtype=np.float64)) + largest
    return float(np.exp((total - chosen).mean()))


def test_each_model_has_its_data() -> None:
    assert {"digits_resnet", "digits_dsconv", "digits_mlp", "text_encoder", "text_lstm", "tiny_lm"} <= set(NAMES)
    for name in NAMES:
        assert (CALIBRATION / f"{name}.npz").is_file()
        assert (MODELS / f"{name}.test.npz").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_score_and_size_are_those_of_the_readme(name: str) -> None:
    inputs, labels = samples(MODELS / f"{name}.test.npz")
    assert labels is not None
    logits = session(name).run(["logits"], inputs)[0]
    claimed = facts(name)
    assert (MODELS / f"{name}.onnx").stat().st_size == int(claimed["size (bytes)"])
    if labels.ndim == 2:
        assert perplexity(logits, labels) == pytest.approx(float(claimed["test perplexity"]), rel=1e-3)
    else:
        accuracy = float((logits.argmax(1) == labels).mean())
        # Another processor may decide one sample the other way.
        assert accuracy == pytest.approx(float(claimed["test accuracy"]), abs=1 / len(labels) + 5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_calibration_samples_fit_the_model(name: str) -> None:
    graph = onnx.load(MODELS / f"{name}.onnx").graph
    inputs, labels = samples(CALIBRATION / f"{name}.npz")
    assert list(inputs) == [value.name for value in graph.input]
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch"
        array = inputs[value.name]
        assert len(array) == SAMPLES.get(name, SAMPLES["digits"])
        assert array.dtype == onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if name.startswith("digits"):
            assert array.shape[1:] == tuple(dim.dim_value for dim in dims[1:])
        else:
            assert [dim.dim_param for dim in dims] == ["batch", "length"]
    if labels is not None and labels.ndim == 1:
        assert np.bincount(labels).min() >= 10


@pytest.mark.parametrize("name", NAMES)
def test_no_calibration_sample_is_a_test_sample(name: str) -> None:
    def rows(path: Path) -> list[bytes]:
        inputs, _ = samples(path)
        # Without the padding, whose length is not the same in both files.
        arrays = inputs["input_ids"] if "input_ids" in inputs else next(iter(inputs.values()))
        return [np.trim_zeros(row).tobytes() if row.ndim == 1 else row.tobytes() for row in arrays]

    calibration = set(rows(CALIBRATION / f"{name}.npz"))
    assert len(calibration) == SAMPLES.get(name, SAMPLES["digits"])
    assert not calibration & set(rows(MODELS / f"{name}.test.npz"))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_nothing_of_the_machine(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    assert not model.doc_string and not model.graph.doc_string and not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    text = (MODELS / f"{name}.onnx").read_bytes()
    assert not re.search(rb"/(home|root|work|usr|opt|tmp)/", text)


def test_the_networks_differ_as_intended() -> None:
    graphs = {name: onnx.load(MODELS / f"{name}.onnx").graph for name in NAMES}
    operators = {name: {node.op_type for node in graph.node} for name, graph in graphs.items()}
    assert {"Conv", "BatchNormalization", "Add"} <= operators["digits_resnet"]
    assert {"Conv", "Clip", "Sigmoid", "Mul"} <= operators["digits_dsconv"]
    assert {"MatMul", "Gemm"} <= operators["digits_mlp"]
    assert {"MatMul", "LayerNormalization", "Softmax", "Erf", "Gather"} <= operators["text_encoder"]
    assert {"Pow", "ReduceMean", "Softmax", "Sigmoid", "Cos", "Expand", "Gather"} <= operators["tiny_lm"]
    assert [node.op_type for node in graphs["text_lstm"].node].count("LSTM") == 2


@pytest.mark.parametrize("name", ["text_encoder", "text_lstm", "tiny_lm"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 150)])
def test_language_models_take_any_batch_and_length(name: str, shape: tuple[int, int]) -> None:
    model = session(name)
    ids = np.random.default_rng(0).integers(1, 90, shape)
    inputs = {value.name: ids if value.name == "input_ids" else np.ones_like(ids) for value in model.get_inputs()}
    (together,) = model.run(None, inputs)
    assert np.isfinite(together).all()
    alone = [model.run(None, {key: array[n : n + 1] for key, array in inputs.items()})[0] for n in range(shape[0])]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-3, atol=1e-3)


def test_padding_is_in_the_samples_of_the_encoder_and_does_not_count() -> None:
    inputs, _ = samples(MODELS / "text_encoder.test.npz")
    lengths = inputs["attention_mask"].sum(1)
    assert lengths.min() < lengths.max() / 3
    assert ((inputs["input_ids"] != 0) == (inputs["attention_mask"] == 1)).all()
    model = session("text_encoder")
    (padded,) = model.run(None, {key: array[:4] for key, array in inputs.items()})
    for row in range(4):
        cut = {key: array[row : row + 1, : lengths[row]] for key, array in inputs.items()}
        np.testing.assert_allclose(model.run(None, cut)[0][0], padded[row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["text_lstm", "tiny_lm"])
def test_language_models_do_not_see_what_follows(name: str) -> None:
    inputs, labels = samples(MODELS / f"{name}.test.npz")
    ids = inputs["input_ids"][:2]
    assert labels is not None and (ids[:, 1:] == labels[:2, :-1]).all()
    changed = ids.copy()
    changed[:, 40:] = 5
    model = session(name)
    before, after = (model.run(None, {"input_ids": each})[0] for each in (ids, changed))
    np.testing.assert_allclose(before[:, :40], after[:, :40], rtol=1e-3, atol=1e-3)
    assert np.abs(before[:, 41:] - after[:, 41:]).max() > 0.1


def test_the_encoder_and_the_lstm_are_under_three_megabytes_and_everything_under_ten() -> None:
    assert sum((MODELS / f"{name}.onnx").stat().st_size for name in ("text_encoder", "text_lstm")) < 3_000_000
    files = [path for folder in (MODELS, CALIBRATION) for path in folder.iterdir() if path.is_file()]
    # What onnxq wrote beside a model is not of the project.
    own = [path for path in files if path.suffix != ".onnx" or "." not in path.stem]
    assert sum(path.stat().st_size for path in own) < 10_000_000
