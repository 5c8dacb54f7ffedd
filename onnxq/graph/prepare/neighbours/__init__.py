"""Two operators that follow each other, swapped or joined so that fewer or faster kernels are left, a pair a file.

Comes in: a model with constants folded. Goes out: the same function in other operators.
Imports `graph.reading`, and of `folding` what a layer is.
"""
