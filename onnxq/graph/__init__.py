"""Graphs: the only package that knows onnx and onnx_ir.

Comes in: model files. Goes out: graphs that were read, prepared, copied or rewritten.
Imports `core` and `errors`.
"""
