"""The search for the fastest model inside limits: what to try, what each gave, and which is best.

Comes in: a `Job` of a named preset and `Limits`. Goes out: the chosen candidate and the history.
Imports what `search` may.
"""
