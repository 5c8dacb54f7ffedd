"""Parameters of values: calibrated, fixed, shared or found at inference.

Comes in: the placed nodes, statistics. Goes out: a decision for each value.
Imports what `plan` may.
"""
