"""``onnxruntime.quantization`` as scripts call it, done by onnxq: change the import, and nothing else.

The signatures are those of onnxruntime 1.32. What is written was loaded, run and compared with the float model first.
"""

from __future__ import annotations

from onnxq.compat.onnxruntime.calibrate import (
    TensorData,
    TensorsData,
    create_calibrator,
)
from onnxq.compat.onnxruntime.calls import quant_pre_process, quantize, quantize_dynamic, quantize_static
from onnxq.compat.onnxruntime.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxq.compat.onnxruntime.quant_types import (
    CalibrationDataReader,
    CalibrationMethod,
    DynamicQuantConfig,
    QuantConfig,
    QuantFormat,
    QuantType,
    StaticQuantConfig,
    UnsupportedError,
)
from onnxq.compat.onnxruntime.written_overrides import tensor_quant_overrides

__all__ = [
    "CalibrationDataReader",
    "CalibrationMethod",
    "DynamicQuantConfig",
    "MatMulNBitsQuantizer",
    "QuantConfig",
    "QuantFormat",
    "QuantType",
    "StaticQuantConfig",
    "TensorData",
    "TensorsData",
    "UnsupportedError",
    "create_calibrator",
    "quant_pre_process",
    "quantize",
    "quantize_dynamic",
    "quantize_static",
    "tensor_quant_overrides",
]
