"""Streaming, mergeable, serializable statistics of values, and the range methods that read them.

Comes in: arrays, batch by batch. Goes out: statistics, ranges.
Imports `core`, and numpy.
"""
