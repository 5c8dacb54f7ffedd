"""In: a job whose float model is larger than its limit of memory allows. Out: what was built of it, and a verdict.

No more than one layer is in memory. May import what `onnxq.pipeline` may.
"""
