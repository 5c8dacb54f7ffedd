"""What an output holds, and the measure that fits it: classes, texts, boxes, embeddings, values, signals, states.

Comes in: what a graph says of an output, and both models' arrays. Goes out: the measure of that kind and its loss.
Imports `graph.reading` and `verify.loss`.
"""
