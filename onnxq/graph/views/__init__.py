"""Copies of a model for runs in memory: extra outputs, single layers, isolated nodes.

Comes in: a model, names. Goes out: a copy, and what its outputs mean.
Imports `graph.reading`.
"""
