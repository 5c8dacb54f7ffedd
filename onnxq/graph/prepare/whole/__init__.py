"""Clean-up of whole models: functions, operator set, types and shapes, what nothing reads.

Comes in: a model. Goes out: the same model in the form the rest relies on.
Imports `graph.reading` and `folding`.
"""
