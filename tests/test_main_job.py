"""The first command of the README, from Python: a float model in, a smaller one out that is as good."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnxq


def accuracy(model: Path, samples: Path) -> float:
    """Share of the labelled samples that the model puts in their class."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (name,) = [value.name for value in session.get_inputs()]
    with np.load(samples) as data:
        (logits,) = session.run(None, {name: data[name]})
        return float((logits.argmax(1) == data["labels"]).mean())


@pytest.mark.parametrize("stem", ["digits_resnet", "digits_mlp"])
def test_a_trained_model_becomes_smaller_and_stays_as_good(root: Path, tmp_path: Path, stem: str) -> None:
    for folder, name in [("models", f"{stem}.onnx"), ("calibration_data", f"{stem}.npz")]:
        (tmp_path / folder).mkdir()
        shutil.copy(root / folder / name, tmp_path / folder)
    model = tmp_path / "models" / f"{stem}.onnx"
    before = model.read_bytes()

    result = onnxq.quantize(model, preset="w8a8", benchmark=False)

    samples = root / "models" / f"{stem}.test.npz"
    assert Path(result.output) == model.with_name(f"{stem}.w8a8.onnx")
    assert result.size_after < 0.5 * result.size_before
    assert result.sqnr_db > 20
    assert accuracy(Path(result.output), samples) > accuracy(model, samples) - 0.01
    assert model.read_bytes() == before
