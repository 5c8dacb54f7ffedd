"""Models on disk: load, check, save.

Comes in: a path or a proto. Goes out: a model; a file that is whole or absent.
Imports `graph`'s own modules.
"""
