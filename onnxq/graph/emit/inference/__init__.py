"""Writing what is quantized at inference: scales found for a tensor or a row, operators that quantize for themselves.

Comes in: a graph and its rewrite. Goes out: the graph, changed.
Imports what `graph/emit` may.
"""
