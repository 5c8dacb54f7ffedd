"""Models on 64-bit ARM, in an emulator: the same numbers as here, in every form that its kernels have.

``ONNXQ_ARM_PYTHON`` names an arm64 Python with onnxruntime, or a script that starts one under qemu-aarch64.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.runtime.engines.places import RunsOn

pytestmark = pytest.mark.arm

FEW = 8


def few(root: Path, name: str) -> list[dict[str, np.ndarray]]:
    with np.load(root / "calibration_data" / f"{name}.npz", allow_pickle=False) as arrays:
        samples = {key: array for key, array in arrays.items() if key != "labels"}
    return [{key: array[i : i + 1] for key, array in samples.items()} for i in range(FEW)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits_resnet", {"preset": "w8a8"}),
        ("digits_resnet", {"preset": "w8a8", "format": "qoperator"}),
        ("digits_dsconv", {"preset": "w8a8"}),
        ("digits_mlp", {"preset": "w4"}),
        ("text_encoder", {"preset": "w8a8-dynamic"}),
        ("text_lstm", {"preset": "w8a8-dynamic"}),
    ],
)
def test_a_model_gives_there_what_it_gives_here(root: Path, tmp_path: Path, name: str, options: dict[str, str]) -> None:
    model, output = root / "models" / f"{name}.onnx", tmp_path / "q.onnx"
    samples = few(root, name)
    onnxq.quantize(model, output, target="arm", calibration=samples, benchmark=False, **options)
    here = onnxq.compare(model, output, data=samples)
    there = onnxq.compare(model, output, data=samples, runs_on=RunsOn(python=os.environ["ONNXQ_ARM_PYTHON"]))
    assert here.sqnr_db is not None
    assert there.sqnr_db is not None
    assert there.sqnr_db == pytest.approx(here.sqnr_db, abs=1.5)
