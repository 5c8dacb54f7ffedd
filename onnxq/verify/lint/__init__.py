"""A quantized model against the rules of a target, whoever made it.

Comes in: a model and a target. Goes out: findings, and the model with what can be made right without data.
Imports what `verify` may.
"""
