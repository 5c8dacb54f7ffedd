"""Float-equivalent rewrites of whole graphs that need statistics.

Comes in: a model and statistics. Goes out: the same function with other weights.
Imports `plan`, `graph`, `algorithms`.
"""
