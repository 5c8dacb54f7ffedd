"""Language models: what their inputs take, how they run, and texts as their samples.

Text files, tokenizers and a way to run the float graphs come in, feeds go out. May import data, core and errors.
"""
