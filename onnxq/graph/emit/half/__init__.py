"""Writing a float32 model as one that computes in float16 or bfloat16, or stores its weights so.

Comes in: a graph, and what has to stay float32. Goes out: the graph, changed.
Imports what `graph/emit` may.
"""
