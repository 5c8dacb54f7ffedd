"""``onnxruntime.quantization.calibrate``: ranges of a model's values, by the calls and with the numbers of onnxruntime.

Comes in: a model's path, a reader. Goes out: ranges by name. Imports what its package does.
"""

from __future__ import annotations

from onnxq.compat.onnxruntime.calibrate.calibraters import CalibraterBase, MinMaxCalibrater
from onnxq.compat.onnxruntime.calibrate.collectors import CalibrationDataCollector, HistogramCollector
from onnxq.compat.onnxruntime.calibrate.histogram_calibraters import (
    DistributionCalibrater,
    EntropyCalibrater,
    HistogramCalibrater,
    PercentileCalibrater,
    create_calibrator,
)
from onnxq.compat.onnxruntime.calibrate.tensor_data import (
    TensorData,
    TensorsData,
    load_tensors_data,
    save_tensors_data,
)
from onnxq.compat.onnxruntime.quant_types import CalibrationDataReader, CalibrationMethod

__all__ = [
    "CalibraterBase",
    "CalibrationDataCollector",
    "CalibrationDataReader",
    "CalibrationMethod",
    "DistributionCalibrater",
    "EntropyCalibrater",
    "HistogramCalibrater",
    "HistogramCollector",
    "MinMaxCalibrater",
    "PercentileCalibrater",
    "TensorData",
    "TensorsData",
    "create_calibrator",
    "load_tensors_data",
    "save_tensors_data",
]
