"""Scales for the channels of activations.

Comes in: weights and some rows of what they read. Goes out: scales. Imports `core`.
"""
