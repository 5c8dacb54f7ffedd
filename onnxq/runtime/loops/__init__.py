"""In: an open model with caches, and samples. Out: what it gives when it is run as it is used, step by step.

May import what `onnxq.runtime` may.
"""
