"""Models that come trained with fake quantization: their grids are read, and the nodes that made them taken out.

Comes in: a prepared model with Q and DQ nodes. Goes out: the float model behind it, and the grids of its values and
weights. Imports core and the rest of graph.
"""
