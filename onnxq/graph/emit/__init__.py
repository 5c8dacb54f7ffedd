"""Emitters: apply decisions to a graph, one file a format.

Comes in: a prepared model and a `Rewrite`. Goes out: the quantized model.
Imports `graph.reading` and `core`.
"""
