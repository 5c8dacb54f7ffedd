"""Samples on their way through a model, part by part, with what lies between the parts on disk.

Comes in: a model, samples, places to stop. Goes out: sums over what layers read there. May import what `runtime` may.
"""
