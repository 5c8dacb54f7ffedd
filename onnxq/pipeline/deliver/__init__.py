"""What a rewritten model needs for where it goes: its float types, and the word of the engine that will run it.

Comes in: a job and a rewritten model. Goes out: the model as it is verified, or what is wrong with it.
Imports what `pipeline` may.
"""
