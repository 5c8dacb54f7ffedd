"""Searches on groups of elements that share a scale.

In: groups and what their elements count. Out: scales and offsets. Imports what `onnxq.algorithms` does.
"""
