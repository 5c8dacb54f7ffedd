"""Roundings and scales of one weight that learn.

Comes in: a weight and second moments of its inputs. Goes out: its integers and grid. Imports the rest of algorithms.
"""
