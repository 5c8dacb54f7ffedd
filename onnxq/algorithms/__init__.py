"""Weight algorithms: pure functions on arrays, one file each.

Comes in: a weight, statistics of its input, a grid. Goes out: a quantized weight.
Imports `core`, and numpy.
"""
