"""Results as data and as text.

Comes in: figures of the other packages. Goes out: what the API returns and the command line prints.
Imports `plan.decisions` and `verify`'s figures.
"""
