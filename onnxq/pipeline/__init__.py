"""One quantization, a file a step, in the order of the way.

Comes in: a `Job`. Goes out: a quantized model with its verdict.
Imports `plan`, `passes`, `runtime`, `verify`.
"""
