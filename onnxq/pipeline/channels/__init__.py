"""Channels of activations, scaled before anything is quantized.

Comes in: a job. Goes out: its prepared model with factors between channels, where the quantized model gains by them.
Imports what `pipeline` may.
"""
