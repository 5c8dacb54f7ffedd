"""From the fastest model, where it is outside the accuracy budget, to one nearly as fast that is inside.

Comes in: candidates that were timed and compared, and measured layers. Goes out: further candidates.
Imports what `search` may.
"""
