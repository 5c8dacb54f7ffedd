"""Form, grid and algorithm of each weight.

Comes in: layers and statistics of their inputs. Goes out: quantized weights and biases.
Imports what `plan` may.
"""
