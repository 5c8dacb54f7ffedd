"""In: a job whose recipe names a form of caches. Out: attention in the operator that takes it, and caches that hold it.

May import what `onnxq.pipeline` may.
"""
