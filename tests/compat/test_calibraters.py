"""Ranges by onnxruntime's calls: the numbers are those of onnxruntime's own classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import calibrate as theirs

from onnxq.compat.onnxruntime import CalibrationMethod, create_calibrator
from onnxq.compat.onnxruntime import calibrate as ours
from onnxq.errors import ModelError

RNG = np.random.default_rng(7)
SAMPLES = [np.cumsum(RNG.normal(0, 0.3 + 0.2 * i, (1, 3, 4, 4)), axis=-1).astype(np.float32) for i in range(6)]


class Samples:
    def __init__(self, first: int = 0, last: int = 6) -> None:
        self._left: Iterator[Any] = iter([{"x": sample} for sample in SAMPLES[first:last]])

    def get_next(self) -> Any:
        return next(self._left, None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv, Relu, Conv and Add; also a branch of an If, and an integer value, that have no ranges."""
    weights = [numpy_helper.from_array(RNG.normal(0, 0.5, (3, 3, 1, 1)).astype(np.float32), f"w{i}") for i in (1, 2)]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="conv1"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2"),
        helper.make_node("Add", ["c", "a"], ["y"], name="add"),
        helper.make_node("Shape", ["y"], ["n"], name="shape"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy")
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [4])
    graph = helper.make_graph(nodes, "g", [x], [y, n], weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("MinMax", {}),
    ("MinMax", {"symmetric": True}),
    ("MinMax", {"moving_average": True, "averaging_constant": 0.25}),
    ("MinMax", {"max_intermediate_outputs": 100}),
    ("Entropy", {}),
    ("Entropy", {"num_bins": 512}),
    ("Percentile", {"percentile": 99.0}),
    ("Percentile", {"percentile": 98.0, "symmetric": False}),
    ("Distribution", {}),
    ("Distribution", {"scenario": "p3", "num_bins": 512}),
]


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("calls", [1, 2])
def test_ranges_are_those_of_onnxruntime(
    model: Path, tmp_path: Path, method: str, options: dict[str, Any], calls: int
) -> None:
    found = []
    for module in (ours, theirs):
        made: Any = module
        calibrater = made.create_calibrator(
            model,
            augmented_model_path=str(tmp_path / "augmented.onnx"),
            calibrate_method=made.CalibrationMethod[method],
            extra_options=options,
        )
        for call in range(calls):
            calibrater.collect_data(Samples(6 * call // calls, 6 * (call + 1) // calls))
        found.append(calibrater.compute_data())
    mine, reference = found
    assert mine.keys() == reference.keys() == {"x", "a", "b", "c", "y"}
    for name, data in reference.items():
        for key in ("lowest", "highest", "avg", "std"):
            if hasattr(data, key):
                expected, given = getattr(data, key), getattr(mine[name], key)
                np.testing.assert_allclose(given, expected, rtol=1e-6, err_msg=f"{name} {key}")
                assert given.dtype == expected.dtype and np.shape(given) == np.shape(expected)


def test_ranges_by_channel_hold_what_was_seen(model: Path, tmp_path: Path) -> None:
    calibrater = create_calibrator(model, ["Add"], tmp_path / "augmented.onnx", extra_options={"per_channel": True})
    calibrater.collect_data(Samples())
    calibrater.collect_data(Samples(0, 1))
    assert calibrater.compute_data().keys() == {"a", "c", "y"}
    low, high = calibrater.compute_data()["a"].range_value
    weights = numpy_helper.to_array(onnx.load(model).graph.initializer[0])[:, :, 0, 0]
    values = np.stack([np.einsum("oi,bihw->bohw", weights, sample) for sample in SAMPLES])
    np.testing.assert_allclose(low, values.min(axis=(0, 1, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(high, values.max(axis=(0, 1, 3, 4)), rtol=1e-5)


def test_the_augmented_model_is_written_and_can_be_read(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "augmented.onnx"
    calibrater = create_calibrator(model, ["Conv"], path)
    proto = calibrater.get_augment_model()
    assert [node.name for node in onnx.load(path).graph.node] == [node.name for node in proto.graph.node]
    assert {"x_ReduceMin", "x_ReduceMax", "c_ReduceMax"} <= {output.name for output in proto.graph.output}
    assert len(proto.graph.node) == 5 + 4 * 4


@pytest.mark.parametrize("method", ["entropy", "percentile", "distribution"])
def test_the_collector_counts_as_onnxruntime_does(method: str) -> None:
    arguments = {"num_bins": 512, "num_quantized_bins": 128, "percentile": 99.0, "scenario": "same"}
    first, second = ([RNG.standard_t(4, 500).astype(np.float32) * scale for _ in range(3)] for scale in (1, 2))
    pair = []
    for module in (ours, theirs):
        made: Any = module
        collector = made.HistogramCollector(method=method, symmetric=False, **arguments)
        collector.collect({"v": first})
        collector.collect({"v": second})
        pair.append(collector.get_histogram_dict()["v"])
    np.testing.assert_array_equal(pair[0][0], pair[1][0])
    np.testing.assert_allclose(pair[0][1].astype(np.float64), pair[1][1].astype(np.float64), rtol=1e-6)


@pytest.mark.parametrize("method", ["entropy", "percentile", "distribution"])
def test_halves_have_ranges_too(method: str) -> None:
    collector = ours.HistogramCollector(method, False, 512, 128, 100.0, "same")
    data = RNG.standard_t(4, 500).astype(np.float16)
    for part in (data[:10], data[10:]):
        collector.collect({"v": part})
    found = collector.compute_collection_result()["v"]
    low, high = found.range_value if method == "distribution" else found[:2]
    assert -np.abs(data).max() * 1.3 <= low < 0 < high <= np.abs(data).max() * 1.3


def test_ranges_go_through_a_file_that_onnxruntime_reads_too(model: Path, tmp_path: Path) -> None:
    calibrater = create_calibrator(model, augmented_model_path=tmp_path / "a.onnx", calibrate_method="Percentile")
    calibrater.collect_data(Samples())
    data = calibrater.compute_data()
    ours.save_tensors_data(data, tmp_path / "cache.json")
    assert json.loads((tmp_path / "cache.json").read_text())["smooth_quant"] is False
    back = ours.load_tensors_data(tmp_path / "cache.json")
    assert back.calibration_method is CalibrationMethod.Percentile
    np.testing.assert_array_equal(back["y"].range_value, data["y"].range_value)
    if hasattr(theirs, "load_tensors_data"):
        read = theirs.load_tensors_data(tmp_path / "cache.json")
        np.testing.assert_array_equal(read["y"].range_value, data["y"].range_value)


def test_what_makes_no_sense(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "augmented.onnx"
    with pytest.raises(ValueError, match="averaging constant"):
        create_calibrator(model, extra_options={"moving_average": True, "averaging_constant": 2})
    with pytest.raises(ValueError, match="calibrate_method: is 'Best'"):
        create_calibrator(model, calibrate_method="Best")
    with pytest.raises(ValueError, match="should be model path"):
        create_calibrator(onnx.load(model))
    with pytest.raises(ModelError, match="nowhere"):
        create_calibrator(tmp_path / "nowhere.onnx")
    for method in CalibrationMethod:
        with pytest.raises(ValueError, match="No data is collected"):
            create_calibrator(model, None, path, method).collect_data(Samples(0, 0))
    with pytest.raises(ValueError, match="No collector"):
        create_calibrator(model, None, path, "Entropy").compute_data()
    with pytest.raises(ValueError, match="512 <= num_bins"):
        calibrater = create_calibrator(model, None, path, "Distribution", extra_options={"num_bins": 128})
        calibrater.collect_data(Samples())
        calibrater.compute_data()
    with pytest.raises(ValueError, match="has elements of float64"):
        ours.HistogramCollector("entropy", False, 128, 128, 99.0, "same").collect({"v": np.zeros(3)})
    with pytest.raises(ValueError, match="Unexpected value 'low'"):
        ours.TensorData(low=np.float32(0))
    with pytest.raises(ValueError, match="Unexpected dtype float64"):
        ours.TensorData(lowest=np.float64(0))
    with pytest.raises(TypeError, match="Values must be TensorData"):
        ours.TensorsData(CalibrationMethod.MinMax, {"v": 3})
    (tmp_path / "cache.json").write_text("[]")
    with pytest.raises(ValueError, match="is no calibration cache"):
        ours.load_tensors_data(tmp_path / "cache.json")
