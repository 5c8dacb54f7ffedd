"""Models run here: the only room that opens ONNX Runtime sessions."""
