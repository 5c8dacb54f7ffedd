"""The grids of a model, written as onnxruntime's overrides and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization as theirs
import pytest

from onnxq.compat import onnxruntime as ours
from onnxq.errors import ModelError
from tests.compat.test_onnxruntime_calls import Digits


def grids(path: Path) -> dict[str, tuple[Any, Any]]:
    """(scales, zero points) of each activation and 8-bit weight, by the name of the float tensor."""
    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        constant = node.input[0] in arrays if node.op_type == "DequantizeLinear" else False
        if (
            (node.op_type == "QuantizeLinear" or constant)
            and len(node.input) > 2
            and arrays[node.input[2]].dtype.itemsize == 1
        ):
            name = node.input[0].removesuffix("_quantized")
            found[name] = (arrays[node.input[1]].reshape(-1), arrays[node.input[2]].reshape(-1))
    return found


@pytest.mark.parametrize("per_channel", [False, True])
def test_another_model_gets_the_same_grids(root: Path, tmp_path: Path, per_channel: bool) -> None:
    model, first = root / "models" / "digits_resnet.onnx", tmp_path / "first.onnx"

    class Images(Digits):
        def __init__(self) -> None:
            with np.load(root / "calibration_data" / "digits_resnet.npz") as data:
                self._samples = iter([{"image": image[None]} for image in data["image"][:40]])

    options = {"op_types_to_quantize": ["Conv", "Gemm"], "per_channel": per_channel}
    ours.quantize_static(model, first, Images(), **options)
    overrides = ours.tensor_quant_overrides(first)
    expected = grids(first)
    assert set(overrides) == set(expected)
    for name, (scales, zeros) in expected.items():
        assert [float(entry["scale"]) for entry in overrides[name]] == scales.tolist()
        assert [int(entry["zero_point"]) for entry in overrides[name]] == zeros.tolist()
    known = ours.tensor_quant_overrides(first, model)
    assert len(known) > 5 and known.keys() <= overrides.keys()
    again, other = tmp_path / "again.onnx", tmp_path / "other.onnx"
    ours.quantize_static(
        model, again, Images(), calibrate_method=ours.CalibrationMethod.Percentile, **options,
        extra_options={"CalibPercentile": 90.0, "TensorQuantOverrides": known},
    )  # fmt: skip
    found = grids(again)
    shared = found.keys() & known.keys()
    assert len(shared) > 5
    for name in shared:
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found[name][1], expected[name][1], err_msg=name)
    in_their_words = {
        name: [{**entry, "quant_type": theirs.QuantType[entry["quant_type"].name]} for entry in entries]
        for name, entries in known.items()
    }
    kinds = {"activation_type": theirs.QuantType.QUInt8, "weight_type": theirs.QuantType.QInt8}
    theirs.quantize_static(
        str(model), str(other), Images(), **options, **kinds, extra_options={"TensorQuantOverrides": in_their_words}
    )
    read = grids(other)
    agree = [name for name in shared & read.keys() if np.allclose(read[name][0], expected[name][0], rtol=1e-6)]
    assert len(agree) > 5


def test_a_model_without_grids_has_none(root: Path) -> None:
    with pytest.raises(ModelError, match="has no QuantizeLinear or DequantizeLinear with a constant grid"):
        ours.tensor_quant_overrides(root / "models" / "digits_resnet.onnx")
