"""What becomes of each node and value: decisions as data, then their numbers.

Comes in: a prepared model, a recipe, a target, statistics. Goes out: a `Plan`, then a `Rewrite`.
Imports `graph`, `targets`, `recipe`, `stats`, `algorithms`.
"""
