"""Quantized models back in float, whoever made them.

Comes in: a model. Goes out: the same network with float weights and without rounding of activations.
Imports `graph` alone.
"""
