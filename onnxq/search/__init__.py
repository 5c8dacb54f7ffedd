"""Many quantizations: what to try, what each gave, and which is best.

Comes in: a `Job` and its limits. Goes out: the chosen candidate and the history.
Imports `pipeline`, `diagnosis`, `verify`.
"""
