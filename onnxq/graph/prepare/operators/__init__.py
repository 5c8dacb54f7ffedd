"""Operators written in the form that later steps know, one file each.

Comes in: a model. Goes out: the same function in other operators.
Imports `graph.reading` and `folding`.
"""
