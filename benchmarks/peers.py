"""onnxruntime.quantization as a peer: its static configurations, each run as its documentation says.

`quant_pre_process`, then `quantize_static`; batch 1 or whatever the feeds have, all feeds. Its calibration session is
held to one thread, like everything else measured here.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.feeds import Feed, read_feeds


@dataclass(frozen=True)
class PeerConfig:
    """One way to call `quantize_static`; the fields are named after its arguments."""

    quant_format: str = "QDQ"
    activation_type: str = "QUInt8"
    weight_type: str = "QInt8"
    per_channel: bool = True
    calibrate_method: str = "MinMax"


CONFIGS: dict[str, PeerConfig] = {
    "u8s8 qdq": PeerConfig(),
    "u8s8 qdq per-tensor": PeerConfig(per_channel=False),
    "u8s8 qoperator": PeerConfig(quant_format="QOperator"),
    "u8s8 qdq entropy": PeerConfig(calibrate_method="Entropy"),
    "u8s8 qdq percentile": PeerConfig(calibrate_method="Percentile"),
    "s8s8 qdq (defaults)": PeerConfig(activation_type="QInt8", per_channel=False),
}
"""By the name that the tables show. Its own defaults are int8 x int8, per tensor, QDQ, MinMax."""

QUICK_CONFIGS = ("u8s8 qdq", "u8s8 qdq per-tensor", "s8s8 qdq (defaults)")


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds read one by one from a folder."""

    def __init__(self, folder: Path) -> None:
        self._feeds: Iterator[Feed] = read_feeds(folder)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantize_with_peer(config: PeerConfig, model: Path, feeds: Path, output: Path) -> dict[str, float | bool]:
    """Quantize a model as `config` says.

    Args:
        config: what to ask for.
        model: the float model.
        feeds: a folder of feeds, see `benchmarks.feeds`.
        output: the file to write.

    Returns:
        ``seconds`` in all, of which ``calibrate_seconds`` (session, inference and ranges), and whether
        ``preprocessed``: where `quant_pre_process` fails, the model is taken as it is.
    """
    clock = _time_calibration()
    prepared = output.with_suffix(".prepared.onnx")
    start = time.perf_counter()
    preprocessed = _preprocess(model, prepared)
    quantize_static(
        prepared,
        output,
        _Reader(feeds),
        quant_format=QuantFormat[config.quant_format],
        activation_type=QuantType[config.activation_type],
        weight_type=QuantType[config.weight_type],
        per_channel=config.per_channel,
        calibrate_method=CalibrationMethod[config.calibrate_method],
    )
    seconds = time.perf_counter() - start
    prepared.unlink()
    return {"seconds": seconds, "calibrate_seconds": sum(clock), "preprocessed": preprocessed}


def _preprocess(model: Path, output: Path) -> bool:
    """Run `quant_pre_process`, without its symbolic shape inference where that fails; else copy the model."""
    for skip_symbolic_shape in (False, True):
        try:
            quant_pre_process(model, output, skip_symbolic_shape=skip_symbolic_shape)
        except Exception:  # it raises plain Exception; the next attempt asks less of it
            continue
        return True
    shutil.copyfile(model, output)
    return False


def _time_calibration() -> list[float]:
    """Hold the calibration session to one thread and collect the seconds spent in the calibrator."""
    clock: list[float] = []
    # By name: the package has a function `quantize` in the place of the module.
    ort_quantize = importlib.import_module("onnxruntime.quantization.quantize")
    ort_calibrate = importlib.import_module("onnxruntime.quantization.calibrate")

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                clock.append(time.perf_counter() - start)

        return run

    def create_inference_session(self: Any) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self.infer_session = ort.InferenceSession(
            self.augmented_model_path, sess_options=options, providers=self.execution_providers
        )

    create = ort_quantize.create_calibrator

    def create_calibrator(*arguments: Any, **options: Any) -> Any:
        calibrator = timed(create)(*arguments, **options)
        calibrator.collect_data = timed(calibrator.collect_data)
        calibrator.compute_data = timed(calibrator.compute_data)
        return calibrator

    ort_calibrate.__dict__["CalibraterBase"].create_inference_session = create_inference_session
    ort_quantize.__dict__["create_calibrator"] = create_calibrator
    return clock
