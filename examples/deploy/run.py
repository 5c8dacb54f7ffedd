"""An int8 model in use: onnxruntime alone, onnxq is not needed any more.

python examples/deploy/run.py models/digits_resnet.w8a8.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
# Integer kernels come with the optimizations at load, which are on by default: leave them on.
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
# Threads that wait by spinning take processor time from whatever else runs; this makes them sleep.
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(Path(sys.argv[1]), options, providers=["CPUExecutionProvider"])

# Names, shapes and types are those of the float model: what feeds that one feeds this one.
(image,) = session.get_inputs()
shape = [size if isinstance(size, int) else 1 for size in image.shape]
(logits,) = session.run(None, {image.name: np.full(shape, 0.5, np.float32)})
print(int(logits[0].argmax()))
