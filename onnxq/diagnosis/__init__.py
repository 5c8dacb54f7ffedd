"""Which node hurts.

Comes in: a float and a quantized model, samples. Goes out: nodes by the error they cause.
Imports `pipeline` and `verify`.
"""
