"""Convolutions over single positions as products of matrices, and where the channels lie around them.

Comes in: a graph whose Q and DQ nodes are written. Goes out: the same graph with MatMulIntegerToFloat and Transposes.
May import what `onnxq.graph.emit` may.
"""
