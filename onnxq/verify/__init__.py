"""Is the quantized model as good: outputs against the float model's, latency, memory, and whether it runs at all.

Comes in: two models and samples. Goes out: figures and warnings.
Imports `runtime`, `graph`, `data`.
"""
