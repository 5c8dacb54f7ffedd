"""Models run here: the only package that opens ONNX Runtime sessions.

Comes in: a model and feeds. Goes out: outputs, statistics, times.
Imports `graph`, `data`, `stats`, and onnxruntime.
"""
