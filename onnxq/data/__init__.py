"""Samples in every form they come in.

Comes in: files, folders, iterables. Goes out: readers of feeds, arrays by input name, one sample at a time,
with the states of recurrent models that the samples lack.
Imports `core` and `errors`, and numpy.
"""
