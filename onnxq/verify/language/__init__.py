"""Language models as they are used: the passes that are timed, and what they generate.

Sessions, feeds and texts in tokens come in, timings and figures go out. May import what verify may.
"""
