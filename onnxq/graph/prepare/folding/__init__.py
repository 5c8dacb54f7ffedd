"""Constants: lifted, computed once, shared, and folded into the layers beside them.

Comes in: a model. Goes out: the same function with fewer nodes.
Imports `graph.reading`.
"""
