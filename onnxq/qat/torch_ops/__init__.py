"""ONNX operators as functions of torch tensors, a family a file.

Comes in: a node and its tensors. Goes out: its outputs. A row in a family's table is all that an operator needs.
"""
