"""onnxruntime.quantization as a peer: its configurations, each run as its documentation says.

Static: `quant_pre_process`, then `quantize_static`; batch 1 or whatever the feeds have, all feeds. Its calibration
session is held to one thread, like everything else measured here. Dynamic: `quant_pre_process` or the fusions of
`onnxruntime.transformers`, then `quantize_dynamic`. Weights alone: `MatMulNBitsQuantizer`.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
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


@dataclass(frozen=True)
class DynamicConfig:
    """One way to call `quantize_dynamic`.

    Attributes:
        weight_type: as the argument.
        per_channel: as the argument.
        fuse: `onnxruntime.transformers.optimizer` runs first, in place of `quant_pre_process`.
    """

    weight_type: str = "QInt8"
    per_channel: bool = True
    fuse: bool = False


@dataclass(frozen=True)
class BlockConfig:
    """One way to call `MatMulNBitsQuantizer`; accuracy level 4 is its fast kernel."""

    bits: int
    block_size: int
    accuracy_level: int = 4


STATIC_CONFIGS: dict[str, PeerConfig] = {
    "u8s8 qdq": PeerConfig(),
    "u8s8 qdq per-tensor": PeerConfig(per_channel=False),
    "u8s8 qoperator": PeerConfig(quant_format="QOperator"),
    "u8s8 qdq entropy": PeerConfig(calibrate_method="Entropy"),
    "u8s8 qdq percentile": PeerConfig(calibrate_method="Percentile"),
    "s8s8 qdq (defaults)": PeerConfig(activation_type="QInt8", per_channel=False),
}
"""By the name that the tables show. Its own defaults are int8 x int8, per tensor, QDQ, MinMax."""

OTHER_CONFIGS: dict[str, DynamicConfig | BlockConfig] = {
    "dynamic per-channel": DynamicConfig(),
    "dynamic (defaults)": DynamicConfig(per_channel=False),
    "dynamic per-channel, fused": DynamicConfig(fuse=True),
    "4 bits, blocks of 32": BlockConfig(4, 32),
    "8 bits, blocks of 128": BlockConfig(8, 128),
}
"""By the name that the tables show."""

CONFIGS: dict[str, PeerConfig | DynamicConfig | BlockConfig] = {**STATIC_CONFIGS, **OTHER_CONFIGS}

QUICK_CONFIGS = ("u8s8 qdq", "u8s8 qdq per-tensor", "s8s8 qdq (defaults)")


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds read one by one from a folder."""

    def __init__(self, folder: Path) -> None:
        self._feeds: Iterator[Feed] = read_feeds(folder)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantize_with_peer(
    config: PeerConfig | DynamicConfig | BlockConfig, model: Path, feeds: Path, output: Path
) -> dict[str, float | bool]:
    """Quantize a model as `config` says.

    Args:
        config: what to ask for.
        model: the float model.
        feeds: a folder of feeds, see `benchmarks.feeds`; only static quantization reads them.
        output: the file to write.

    Returns:
        ``seconds`` in all. Of static quantization also ``calibrate_seconds`` (session, inference and ranges), and of
        both static and dynamic whether ``preprocessed``: where `quant_pre_process` fails, the model is taken as it is.
    """
    if isinstance(config, PeerConfig):
        return _quantize_static(config, model, feeds, output)
    start = time.perf_counter()
    if isinstance(config, BlockConfig):
        _quantize_blocks(config, model, output)
        return {"seconds": time.perf_counter() - start}
    preprocessed = _quantize_dynamic(config, model, output)
    return {"seconds": time.perf_counter() - start, "preprocessed": preprocessed}


def _quantize_dynamic(config: DynamicConfig, model: Path, output: Path) -> bool:
    prepared = output.with_suffix(".prepared.onnx")
    preprocessed = config.fuse or _preprocess(model, prepared)
    if config.fuse:
        from onnxruntime.transformers import optimizer

        # Zeros: it finds the number of heads and the width by itself.
        fused = optimizer.optimize_model(str(model), "bert", num_heads=0, hidden_size=0, opt_level=0)
        fused.save_model_to_file(str(prepared))
    quantize_dynamic(prepared, output, per_channel=config.per_channel, weight_type=QuantType[config.weight_type])
    prepared.unlink()
    return preprocessed


def _quantize_blocks(config: BlockConfig, model: Path, output: Path) -> None:
    quantizer = MatMulNBitsQuantizer(
        onnx.load(model), bits=config.bits, block_size=config.block_size, accuracy_level=config.accuracy_level
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(output))


def _quantize_static(config: PeerConfig, model: Path, feeds: Path, output: Path) -> dict[str, float | bool]:
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
