"""Weights packed for kernels that unpack them: blocks, tables of values, and stacks of experts.

In: a model and the quantized weights of its nodes. Out: the model, changed in place. May import: core, graph.
"""
