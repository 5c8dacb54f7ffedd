"""Operators in the form that runs fastest, in float as on integers, a pass a file.

In comes a graph whose constants are folded; out goes one that computes the same, outputs, names and types kept.
Each pass has ``run(model) -> int``, how many places it changed; a second run changes nothing. Imports ``graph`` alone.
"""
