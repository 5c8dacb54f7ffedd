"""One request from beginning to end: what is asked of a run, a job opened from it, the choice written and reported.

Comes in: a recipe, a model and the options of a run. Goes out: a verified file and its result.
Imports `search` and all that stands below it.
"""
