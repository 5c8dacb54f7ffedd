"""Graphs: the only room that knows onnx and onnx_ir."""
