"""Where each node runs: candidates, what their kernels cost, the cheapest cut.

Comes in: a model, a target, shapes. Goes out: the nodes on integers, and why not the others.
Imports what `plan` may.
"""
