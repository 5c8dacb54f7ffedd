"""What is in models, and which node hurts.

Comes in: a float and a quantized model, samples. Goes out: nodes by the error they cause, and what a report shows.
Imports `pipeline` and `verify`.
"""
