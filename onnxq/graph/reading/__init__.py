"""What a graph says; nothing here changes one.

Comes in: a model or a node. Goes out: facts: operators, patterns, masks, signs, weights, names.
Imports `graph`'s own modules.
"""
